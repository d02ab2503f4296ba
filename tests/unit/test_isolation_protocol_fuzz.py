"""Whatever the other end sends: a message, or an error that names what is wrong; never anything else.

Drawn by hypothesis: whole messages, any JSON value in any place of one, any datagram with any descriptors.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isolation import protocol
from isolation.config import SpawnerConfig
from isolation.errors import ProtocolError
from isolation.spec import BindMount, Ended, HostReport, Limits, SandboxSpec, SandboxUsage, SetupFailed, Started

_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=20)
_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,79}", fullmatch=True)
_BYTES = st.integers(1, 2**62)
_MAYBE_BYTES = st.none() | _BYTES
_COUNT = st.integers(0, 2**62)


def _seconds(high: float) -> st.SearchStrategy[float]:
    return st.floats(0, high, allow_nan=False)


_LIMITS = st.builds(
    Limits,
    cpu=st.floats(0.01, 65536, allow_nan=False),
    memory_bytes=_MAYBE_BYTES,
    pids=st.integers(1, 4_000_000),
    io_read_bytes_per_s=_MAYBE_BYTES,
    io_write_bytes_per_s=_MAYBE_BYTES,
    scratch_bytes=_MAYBE_BYTES,
)
_MOUNTS = st.lists(st.builds(BindMount, _TEXT, _TEXT, st.booleans()), max_size=3).map(tuple)
_SPECS = st.builds(
    SandboxSpec,
    id=_IDS,
    argv=st.lists(_TEXT, min_size=1, max_size=4).filter(lambda argv: bool(argv[0])).map(tuple),
    env=st.dictionaries(_TEXT.filter(lambda name: bool(name) and "=" not in name), _TEXT, max_size=3),
    limits=_LIMITS,
    cwd=st.none() | _TEXT,
    mounts=_MOUNTS,
    host_network=st.booleans(),
    timeout_s=st.none() | _seconds(3e8),
    grace_s=_seconds(3e7),
)
_PATHS = _TEXT.map(lambda name: Path("/") / name.lstrip("/"))
_CONFIGS = st.builds(
    SpawnerConfig,
    host_id=_IDS,
    scratch_root=_PATHS,
    shares=_MOUNTS,
    allow_host_network=st.booleans(),
    hidden=st.lists(_PATHS, max_size=3).map(tuple),
    memory_bytes=_MAYBE_BYTES,
    lock=st.none() | _PATHS,
)
_USAGE = st.builds(SandboxUsage, _seconds(1e9), _COUNT, _COUNT, _COUNT, _seconds(1e9))
_ENDED = st.builds(
    Ended,
    id=_IDS,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 127),
    out_of_memory=st.booleans(),
    ended_by=_TEXT,
    started_at=_seconds(4e9),
    finished_at=_seconds(4e9),
    usage=_USAGE,
)
#: Not JSON, but packed.
_PACKED: st.SearchStrategy[protocol.Report] = st.one_of(
    st.builds(Started, _IDS, st.integers(1, 2**31), _seconds(4e9)), _ENDED
)
_REPORTS: st.SearchStrategy[protocol.Report] = st.one_of(
    st.builds(SetupFailed, _IDS, _TEXT, st.integers(0, 4095), _TEXT, _TEXT),
    st.builds(HostReport, st.integers(0, 2), st.lists(_TEXT, max_size=3).map(tuple), st.integers(1, 2**31)),
    st.builds(protocol.Pong, _COUNT),
    st.builds(protocol.Refused, _TEXT),
)
_REQUESTS: st.SearchStrategy[protocol.Request] = st.one_of(
    st.builds(protocol.Launch, _SPECS),
    st.builds(protocol.Configure, _CONFIGS),
    st.builds(protocol.SetDeadline, _seconds(9e9)),
    st.builds(protocol.Stop, _IDS, _seconds(3e7)),
    st.builds(protocol.Ping, _COUNT),
    st.just(protocol.Fence()),
    st.just(protocol.Close()),
)
_JSON_MESSAGES: st.SearchStrategy[protocol.Message] = st.one_of(_REQUESTS, _REPORTS)
_MESSAGES: st.SearchStrategy[protocol.Message] = st.one_of(_JSON_MESSAGES, _PACKED)
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\0") | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(_MESSAGES)
def test_every_message_arrives_as_it_was(message: protocol.Message) -> None:
    assert protocol.decode(protocol.encode(message)) == message


def _places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value, the whole of it last."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield from _places(inner, (*path, key))
    yield path


def _put(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = _put(value[path[0]], path[1:], new)
    return changed


@settings(max_examples=100, deadline=None)
@given(_JSON_MESSAGES, st.data())
def test_any_value_in_any_place_is_a_message_or_a_named_error(message: protocol.Message, data: st.DataObject) -> None:
    sound = json.loads(protocol.encode(message))
    place = data.draw(st.sampled_from(list(_places(sound))))
    odd = _put(sound, place, data.draw(_ANY_JSON))
    found, words = _decode(json.dumps(odd).encode())
    if found is None:
        # By the innermost field that has a name of ours (the names of environment variables are the task's).
        names = [part for part in place[2:] if isinstance(part, str) and ("env" not in place or part == "env")]
        # Where an object was put there, it may be one of its own fields that is missing.
        assert not names or names[-1] in words or "is missing" in words, (place, words)
    else:
        assert protocol.decode(protocol.encode(found)) == found


def _decode(data: bytes) -> tuple[protocol.Message | None, str]:
    """The message, or the words of what is wrong with it."""
    try:
        return protocol.decode(data), ""
    except ProtocolError as error:
        return None, str(error)


@settings(max_examples=100, deadline=None)
@given(_MESSAGES, st.data())
def test_any_change_of_bytes_is_a_message_or_an_error(message: protocol.Message, data: st.DataObject) -> None:
    raw = bytearray(protocol.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    _decode(cut)
    protocol.find_id(cut)


#: One descriptor of each kind that can be sent.
_KINDS: dict[str, Callable[[], int]] = {
    "memfd": lambda: os.memfd_create("x", os.MFD_CLOEXEC),
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "path": lambda: os.open("/", os.O_PATH),
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "event": lambda: os.eventfd(0),
    "null": lambda: os.open("/dev/null", os.O_RDWR),
    "endless": lambda: os.open("/dev/zero", os.O_RDONLY),
    "write only": lambda: os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_WRONLY),
    "terminal": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "processes": lambda: os.open("/proc", os.O_RDONLY),
}


@pytest.fixture(scope="module")
def kinds() -> Iterator[dict[str, int]]:
    fds = {name: make() for name, make in _KINDS.items()}
    yield fds
    for fd in fds.values():
        os.close(fd)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=50) | st.binary(max_size=90).map(lambda tail: protocol.MEMFD_MARK + tail),
    st.lists(st.sampled_from(sorted(_KINDS)), max_size=protocol.FDS_MAX + 2),
)
def test_any_datagram_with_any_descriptors_is_received(kinds: dict[str, int], data: bytes, names: list[str]) -> None:
    before = _descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [data], [kinds[name] for name in names])
        received = protocol.receive(theirs)
        assert received.data
        assert len(received.fds) <= protocol.FDS_MAX
        _decode(received.data)
        protocol.find_id(received.data)
        protocol.close_all(received.fds)
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
