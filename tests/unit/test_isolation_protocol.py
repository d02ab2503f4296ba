"""Messages survive the way there and back, and nothing else gets through."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolation import protocol
from isolation.config import SpawnerConfig
from isolation.errors import ProtocolError
from isolation.spec import BindMount, Ended, HostReport, Limits, SandboxSpec, SandboxUsage, SetupFailed, Started

SPEC = SandboxSpec(
    id="0190-a.1",
    argv=("sh", "-c", "echo 'ü'"),
    env={"PATH": "/bin", "EMPTY": ""},
    limits=Limits(0.5, 1 << 30, 10, None, 5),
    cwd="/tmp",
    mounts=(BindMount("/a", "/b"), BindMount("/c", "/d", read_only=False)),
    host_network=True,
    timeout_s=1.5,
    grace_s=0.0,
)
ENDED = Ended("x", None, 9, True, "timeout", 1.0, 2.0, SandboxUsage(0.5, 1, 2, 3, 1.0), detail="more, ü")
MESSAGES: list[protocol.Message] = [
    protocol.Launch(SPEC),
    protocol.Launch(SandboxSpec("x", ("true",), {}, Limits(1.0, None, 1))),
    protocol.Configure(SpawnerConfig("h", Path("/s"), shares=(BindMount("/a", "/a"),), hidden=(Path("/x"),))),
    protocol.Configure(SpawnerConfig("h", Path("/s"), lock=Path("/l"))),
    protocol.SetDeadline(12.25),
    protocol.Fence(),
    protocol.Stop("x", 2.0),
    protocol.Ping(3),
    protocol.Pong(3),
    protocol.Close(),
    protocol.Refused("words"),
    HostReport(1, ("disk io",), 7),
    Started("x", 5, 1.0),
    SetupFailed("x", "exec", 2, "/bin/nope", "words"),
    ENDED,
    replace(ENDED, exit_code=255, signal=None, out_of_memory=False, detail=""),
]


PACKED = [message for message in MESSAGES if isinstance(message, Started | Ended)]
AS_JSON = [message for message in MESSAGES if message not in PACKED]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_there_and_back(message: protocol.Message) -> None:
    assert protocol.decode(protocol.encode(message)) == message


@pytest.mark.parametrize("message", AS_JSON, ids=lambda m: type(m).__name__)
def test_a_missing_field_is_named(message: protocol.Message) -> None:
    version, kind, fields = json.loads(protocol.encode(message))
    for name in fields:
        less = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(ProtocolError, match=name):
            protocol.decode(json.dumps([version, kind, less]).encode())


@pytest.mark.parametrize("message", AS_JSON, ids=lambda m: type(m).__name__)
def test_a_field_of_another_type_is_refused(message: protocol.Message) -> None:
    version, kind, fields = json.loads(protocol.encode(message))
    for name in fields:
        odd = fields | {name: {"x": [1]}}
        with pytest.raises(ProtocolError):
            protocol.decode(json.dumps([version, kind, odd]).encode())


def test_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="version 1"):
        protocol.decode(b'[1,"Close",{}]')


@pytest.mark.parametrize("message", PACKED, ids=lambda m: type(m).__name__)
def test_a_packed_report_that_is_cut_or_of_another_version_is_refused(message: protocol.Message) -> None:
    data = protocol.encode(message)
    for cut in (data[:1], data[:12], data[:1] + b"\1" + data[2:], data[:-1] + b"\xff"):
        with pytest.raises(ProtocolError):
            protocol.decode(cut)


@pytest.mark.parametrize(
    "odd",
    [
        Started("", 5, 1.0),
        Started("a b", 5, 1.0),
        Started("x", 0, 1.0),
        Started("x", 5, -1.0),
        Started("x", 5, float("nan")),
        replace(ENDED, id="/"),
        replace(ENDED, ended_by="a\0b"),
        replace(ENDED, exit_code=256),
        replace(ENDED, signal=0),
        replace(ENDED, finished_at=float("inf")),
        replace(ENDED, usage=SandboxUsage(cpu_s=-0.5)),
    ],
)
def test_odd_values_in_a_packed_report_are_refused(odd: Started | Ended) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(protocol.encode(odd))


@given(st.sampled_from([b"S\3", b"E\3"]), st.binary(max_size=200))
def test_any_bytes_after_a_mark_are_a_report_or_an_error(mark: bytes, data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert protocol.decode(mark + data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        protocol.decode(data)
    except ProtocolError:
        protocol.find_id(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200)
@given(st.sampled_from(AS_JSON), st.data())
def test_any_value_in_any_field_is_a_message_or_an_error(message: protocol.Message, data: st.DataObject) -> None:
    version, kind, fields = json.loads(protocol.encode(message))
    place = fields["spec"] if kind == "Launch" else fields
    if place:
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(_JSON)
    with contextlib.suppress(ProtocolError):
        protocol.decode(json.dumps([version, kind, fields]).encode())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


@pytest.mark.parametrize("size", [10, protocol.INLINE_BYTES * 3])
def test_descriptors_and_large_bodies_arrive(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    spec = SandboxSpec("big", ("echo", "x" * size), {}, Limits(1.0, None, 1))
    files = [os.memfd_create(str(i)) for i in range(3)]
    protocol.send(pair[0], protocol.Launch(spec), (files[0], files[1], files[2]))
    received = protocol.receive(pair[1])
    assert protocol.decode(received.data) == protocol.Launch(spec)
    assert [os.fstat(fd).st_ino for fd in received.fds] == [os.fstat(fd).st_ino for fd in files]
    protocol.close_all((*files, *received.fds))


def test_a_lost_body_still_says_whose_it_was(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].send(protocol.MEMFD_MARK + b"some-id")
    received = protocol.receive(pair[1])
    assert received.cut_by == errno.EMFILE
    assert protocol.find_id(received.data) == "some-id"


def test_too_large_is_refused_by_the_sender(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ProtocolError, match="too large"):
        protocol.send_encoded(pair[0], b"x" * (protocol.BODY_BYTES_MAX + 1))


def test_the_end_and_an_empty_queue(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        protocol.receive(pair[1])
    pair[0].close()
    assert protocol.receive(pair[1]).data == b""
