"""Logs through any node: two nodes with disks of their own on real grpc, over one fake etcd."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from etcd import codec, keys
from etcd.port import Put, Range, Txn
from node.api.log import LogCall
from node.api.log_forward import RemoteLogs
from node.api.server import task_service
from node.api.tasks import TaskCalls
from node.api.watch import WatchCall
from node.core import lifecycle
from node.core.log_cap import Span
from node.core.model import Node, Outcome, Reason, Task
from node.peer_channels import FORWARDED, PeerChannels
from node.running.admission import Admission
from node.running.log_watch import punch
from node.running.logs import LogStore
from pilfer.v1 import tasks_pb2, tasks_pb2_grpc
from tests.support.api_node import come, go, node_record
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_store import FakeStore
from tests.support.holes import can_punch
from tests.support.require import require
from tests.support.tasks import new_task, open_store
from tests.support.wait import wait_until

PATIENCE_S = 0.5
WAIT_S = 20.0
EXITED = Outcome(Reason.EXITED, exit_code=0)
STDOUT, STDERR = tasks_pb2.LOG_STREAM_STDOUT, tasks_pb2.LOG_STREAM_STDERR


@dataclass
class Served:
    """A node that serves TaskService, and its disk."""

    node: Node
    etcd: FakeEtcd
    logs: LogStore
    calls: TaskCalls
    peers: PeerChannels
    server: grpc.aio.Server | None = None

    async def serve(self, node_id: str | None = None) -> None:
        """Serves at a fresh port; as another incarnation where an id is given."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        port = server.add_insecure_port("127.0.0.1:0")
        remote = RemoteLogs(self.etcd, self.peers.tasks, patience_s=PATIENCE_S)
        log = LogCall(self.etcd, self.calls, self.logs, self.node.host_id, remote)
        service = task_service(self.calls, WatchCall(self.etcd), log)
        tasks_pb2_grpc.add_TaskServiceServicer_to_server(service, server)
        await server.start()
        self.server = server
        self.node = replace(self.node, id=node_id or self.node.id, address=f"127.0.0.1:{port}")
        await come(self.etcd, self.node)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    async def die(self) -> None:
        """As a machine that lost its power: no server, no key."""
        await self.stop()
        await go(self.etcd, self.node)

    def write(self, task: Task, data: bytes, *, attempt: int = 1, stream: str = "stdout") -> None:
        with self.logs.path(task.id, attempt, stream).open("ab") as file:
            file.write(data)

    def stub(self) -> tasks_pb2_grpc.TaskServiceAsyncStub:
        return self.peers.tasks(self.node.address)


class Two:
    """Two nodes: `a` is asked, `b` ran the task."""

    def __init__(self, a: Served, b: Served) -> None:
        self.a, self.b = a, b

    async def put(self, task: Task) -> Task:
        await self.a.etcd.txn(Txn(success=(Put(keys.task(task.id), codec.encode_task(task)),)))
        return task

    async def running(self, on: Served, task: Task | None = None) -> Task:
        before = task or new_task()
        return await self.put(lifecycle.claim(before, node_id=on.node.id, host_id=on.node.host_id, now=2e9))

    async def ended(self, task: Task) -> Task:
        return await self.put(lifecycle.finish(task, EXITED, started_at=2e9, now=2e9 + 1))


@asynccontextmanager
async def _node(store: FakeStore, number: int, root: Path) -> AsyncIterator[Served]:
    root.mkdir()
    logs, peers = LogStore(root), PeerChannels(lambda: None)
    try:
        async with FakeEtcd(store) as etcd, open_store(etcd) as tasks:
            admission = Admission((), (), allow_host_network=False)
            calls = TaskCalls(tasks, admission, retention_age_s=1e9, refusal=lambda: None)
            served = Served(node_record(number), etcd, logs, calls, peers)
            await served.serve()
            yield served
            await served.stop()
    finally:
        await peers.close()
        logs.close()


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    store = FakeStore()
    async with _node(store, 1, tmp_path / "a") as a, _node(store, 2, tmp_path / "b") as b:
        yield Two(a, b)


class Reader:
    """Reads a log in the background and keeps what came."""

    def __init__(self, at: Served, request: tasks_pb2.LogRequest, *, timeout_s: float = WAIT_S) -> None:
        self.got: list[tasks_pb2.LogResponse] = []
        self._call = at.stub().Log(request, timeout=timeout_s)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for response in self._call:
            self.got.append(response)

    def bytes_of(self, attempt: int = 1, stream: tasks_pb2.LogStream = STDOUT) -> bytes:
        return b"".join(r.data for r in self.got if r.attempt == attempt and r.stream == stream)

    @property
    def notices(self) -> list[str]:
        return [r.notice for r in self.got if r.notice]

    async def end(self) -> None:
        await self._reading

    async def wait_bytes(self, data: bytes, attempt: int = 1) -> None:
        await wait_until(lambda: self.bytes_of(attempt) == data, WAIT_S, what=f"{data!r} has come")

    async def wait_notice(self, part: str) -> None:
        await wait_until(lambda: any(part in n for n in self.notices), WAIT_S, what=f"a notice of {part!r}")

    async def refused(self) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await self._reading
        return told.value

    def cancel(self) -> None:
        self._call.cancel()


async def test_what_ran_elsewhere_is_fetched_from_there(two: Two) -> None:
    task = await two.ended(await two.running(two.b))
    two.b.write(task, b"one\ntwo\n" + bytes(200_000))
    two.b.write(task, b"complaint", stream="stderr")
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id))
    await read.end()
    assert read.bytes_of() == b"one\ntwo\n" + bytes(200_000)
    assert read.bytes_of(stream=STDERR) == b"complaint"
    assert [r.offset for r in read.got if r.stream == STDOUT] == [0, 65_536, 131_072, 196_608]

    tail = Reader(two.a, tasks_pb2.LogRequest(id=task.id, stream=STDERR, tail_lines=1))
    await tail.end()
    assert tail.bytes_of(stream=STDERR) == b"complaint"
    assert tail.bytes_of() == b""


async def test_a_reader_goes_on_at_an_offset(two: Two) -> None:
    task = await two.ended(await two.running(two.b))
    two.b.write(task, b"0123456789")
    two.b.write(task, b"abcdef", stream="stderr")
    for asked in (two.a, two.b):
        read = Reader(asked, tasks_pb2.LogRequest(id=task.id, attempt=1, stdout_offset=7, stderr_offset=6))
        await read.end()
        assert read.bytes_of() == b"789"
        assert read.bytes_of(stream=STDERR) == b""
        error = await Reader(asked, tasks_pb2.LogRequest(id=task.id, stdout_offset=7)).refused()
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_not_kept_is_told_and_a_broken_stream_goes_on_behind_it(two: Two) -> None:
    require("holes", is_there=can_punch(two.b.logs.path("x-ff", 1, "stdout").parent), reason="no holes in files here")
    task = await two.running(two.b)
    two.b.write(task, b"a" * 300_000)
    punched = Span(65_536, 262_144)
    with two.b.logs.path(task.id, 1, "stdout").open("r+b") as file:
        punch(file.fileno(), punched)
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=True))
    await wait_until(lambda: len(read.bytes_of()) == 300_000 - punched.length, WAIT_S)
    await two.b.die()
    await two.b.serve(node_id=node_record(2).id.replace("0001", "0002"))
    two.b.write(task, b"end")
    await two.ended(task)
    await read.end()
    gaps = [(r.missing_bytes, r.offset, r.data, r.stream) for r in read.got if r.missing_bytes]
    assert gaps == [(punched.length, punched.end, b"", STDOUT)]
    assert read.bytes_of() == b"a" * (300_000 - punched.length) + b"end"
    (notice,) = read.notices
    assert "192 KiB of stdout are missing here" in notice
    assert "256 MiB" in notice


async def test_it_is_followed_to_its_end_from_elsewhere(two: Two) -> None:
    task = await two.running(two.b)
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=True))
    two.b.write(task, b"first ")
    await read.wait_bytes(b"first ")
    two.b.write(task, b"last")
    await two.ended(task)
    await read.end()
    assert read.bytes_of() == b"first last"
    assert read.notices == []


async def test_a_stream_that_breaks_goes_on_at_its_byte_when_the_node_is_back(two: Two) -> None:
    """As another incarnation at another address, after the last lines were asked for."""
    task = await two.running(two.b)
    two.b.write(task, b"old\nnew ")
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=True, tail_lines=1))
    await read.wait_bytes(b"new ")
    await two.b.die()
    two.b.write(task, b"written meanwhile ")
    await two.b.serve(node_id=node_record(2).id.replace("0001", "0002"))
    await read.wait_bytes(b"new written meanwhile ")
    two.b.write(task, b"end")
    await two.ended(task)
    await read.end()
    assert read.bytes_of() == b"new written meanwhile end"


async def test_a_call_is_handed_on_once_at_most(two: Two) -> None:
    task = await two.ended(await two.running(two.b))
    handed_on = two.a.stub().Log(tasks_pb2.LogRequest(id=task.id), metadata=((FORWARDED, "1"),), timeout=WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await anext(aiter(handed_on))
    assert told.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "handed on no further" in (told.value.details() or "")

    # A record that leads to the wrong node makes no circle.
    await come(two.a.etcd, replace(two.b.node, address=two.a.node.address))
    error = await Reader(two.a, tasks_pb2.LogRequest(id=task.id)).refused()
    assert "handed on no further" in (error.details() or "")


async def test_a_host_that_is_gone_is_named_with_since_when(two: Two) -> None:
    task = await two.ended(await two.running(two.b))
    await two.b.die()
    for request in (tasks_pb2.LogRequest(id=task.id), tasks_pb2.LogRequest(id=task.id, follow=True)):
        error = await Reader(two.a, request).refused()
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        words = error.details() or ""
        assert two.b.node.name in words
        assert two.b.node.host_id in words
        assert "2027-01-15T08:00:00Z" in words  # its record was last seen then


async def test_a_host_that_nobody_knows_is_told_by_its_id(two: Two) -> None:
    stranger = node_record(9)
    before = new_task()
    task = lifecycle.claim(before, node_id=stranger.id, host_id=stranger.host_id, now=2e9)
    await two.ended(task)
    error = await Reader(two.a, tasks_pb2.LogRequest(id=task.id)).refused()
    assert stranger.host_id in (error.details() or "")


async def test_a_node_without_an_address_is_told(two: Two) -> None:
    task = await two.ended(await two.running(two.b))
    await come(two.b.etcd, replace(two.b.node, address=""))
    error = await Reader(two.a, tasks_pb2.LogRequest(id=task.id)).refused()
    assert "--listen" in (error.details() or "")


async def test_a_follower_sees_the_next_attempt_and_is_told_what_is_missing(two: Two) -> None:
    first = await two.running(two.b)
    two.b.write(first, b"lost after this")
    read = Reader(two.a, tasks_pb2.LogRequest(id=first.id, follow=True))
    await read.wait_bytes(b"lost after this")
    await two.b.die()
    second = await two.running(two.a, await two.put(lifecycle.requeue(first, now=2e9 + 2)))
    two.a.write(second, b"again", attempt=2)
    await read.wait_bytes(b"again", attempt=2)
    await two.ended(second)
    await read.end()
    missing, begins = read.notices
    assert two.b.node.host_id in missing
    assert begins == f"attempt 2 begins on {two.a.node.name}"
    assert [r.attempt for r in read.got] == [1, 1, 2, 2]


async def test_a_follower_of_an_attempt_given_back_misses_nothing(two: Two) -> None:
    first = await two.running(two.a)
    two.a.write(first, b"one")
    read = Reader(two.b, tasks_pb2.LogRequest(id=first.id, follow=True))
    await read.wait_bytes(b"one")
    two.a.write(first, b" more")
    back = lifecycle.give_back(first, Outcome(Reason.GIVEN_BACK), started_at=2e9, now=2e9 + 1)
    second = await two.running(two.b, await two.put(back))
    two.b.write(second, b"two", attempt=2)
    await two.ended(second)
    await read.end()
    assert (read.bytes_of(1), read.bytes_of(2)) == (b"one more", b"two")
    assert read.notices == [f"attempt 2 begins on {two.b.node.name}"]


async def test_a_node_that_does_not_answer_is_waited_for_and_the_follower_told_once(two: Two) -> None:
    task = await two.running(two.b)
    two.b.write(task, b"one")
    await two.b.stop()  # its key lives on
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=True))
    await read.wait_notice("does not answer")
    await two.b.serve()
    await read.wait_bytes(b"one")
    await two.ended(task)
    await read.end()
    assert len(read.notices) == 1

    await two.b.stop()
    error = await Reader(two.a, tasks_pb2.LogRequest(id=task.id)).refused()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "does not answer" in (error.details() or "")


async def test_without_a_store_a_log_that_is_not_followed_is_not_waited_for_for_ever(two: Two) -> None:
    task = await two.ended(await two.running(two.b))
    host_key = keys.host_key(two.b.node.host_id)

    def no_word_of_the_host(_method: str, argument: object) -> Fault | None:
        return LOST_BEFORE if isinstance(argument, Range) and argument.key == host_key else None

    two.a.etcd.faults = no_word_of_the_host
    error = await Reader(two.a, tasks_pb2.LogRequest(id=task.id)).refused()
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_frozen_node_takes_the_call_and_says_nothing(two: Two) -> None:
    """The kernel completes connections of a process that is stopped."""
    task = await two.ended(await two.running(two.b))
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        await come(two.b.etcd, replace(two.b.node, address=f"127.0.0.1:{frozen.getsockname()[1]}"))
        for follow in (False, True):
            error = await Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=follow)).refused()
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "does not answer" in (error.details() or "")


async def test_a_reader_that_goes_away_ends_the_call_behind_it(two: Two) -> None:
    task = await two.running(two.b)
    two.b.write(task, b"one")
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=True))
    await read.wait_bytes(b"one")
    assert two.b.etcd.watches
    read.cancel()
    await wait_until(lambda: not two.b.etcd.watches and not two.a.etcd.watches, WAIT_S, what="both calls have ended")


async def test_the_deadline_counts_behind_it_too(two: Two) -> None:
    task = await two.running(two.b)
    read = Reader(two.a, tasks_pb2.LogRequest(id=task.id, follow=True), timeout_s=1.0)
    error = await read.refused()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_until(lambda: not two.b.etcd.watches and not two.a.etcd.watches, WAIT_S, what="both calls have ended")
