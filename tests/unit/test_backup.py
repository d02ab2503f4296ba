"""A backup: what the verb leaves where it is asked for twice or interrupted, and what a node leaves, or refuses."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from etcd.port import MemberStatus, Put, Txn
from node import app
from node.api.backup import BackupCall
from node.api.server import node_service
from node.cli import failures
from node.config import Settings
from node.core.snapshots import RESERVE_BYTES
from node.datadir import DataDir, DataDirBusy
from node.files import TEMPORARY_PREFIX
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc
from tests.support.api_node import once
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd
from tests.support.tasks import TIMEOUT_S
from tests.support.wait import wait_until_sync

PART_BYTES = 1 << 16
PARTS = 4

Before = Callable[[int], None]


class Backups(nodes_pb2_grpc.NodeServiceServicer):
    """A node that does nothing but this. The first call sends bytes of 1, the second of 2, ..."""

    def __init__(self, *before: Before) -> None:
        """before: for each call, what happens before it sends its part with this number."""
        self._before = list(before)
        self._calls = 0

    def Backup(self, _request: nodes_pb2.BackupRequest, _context: Any) -> Iterator[nodes_pb2.BackupChunk]:  # noqa: N802  (gRPC's name)
        before = self._before[self._calls]
        self._calls += 1
        data = bytes([self._calls]) * PART_BYTES
        for number in range(PARTS):
            before(number)
            yield nodes_pb2.BackupChunk(data=data, size_bytes=PARTS * PART_BYTES)


def whole_of(call: int) -> bytes:
    return bytes([call]) * PARTS * PART_BYTES


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves such a node, and gives its address."""
    servers: list[grpc.Server] = []
    # Not joined by the server's stop: calls that hang in a test end with it.
    threads = ThreadPoolExecutor(max_workers=4)

    def start(*before: Before) -> str:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        backups = Backups(*before)  # type: ignore[abstract]  # what is left out answers UNIMPLEMENTED
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(backups, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()
    threads.shutdown()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of nothing but backups."""
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


def backup(address: str, file: Path, *more: str) -> int:
    return failures.run(["backup", str(file), *more, "--address", address, "--insecure"])


def test_a_directory_that_is_not_there_is_named(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It named a file of ours that nobody knows. No node is asked."""
    file = place / "nowhere" / "x"
    assert backup("127.0.0.1:9", file) == 1
    assert capfd.readouterr().err == f"node: {file}: there is no directory {place}/nowhere\n"
    (place / "file").touch()
    assert backup("127.0.0.1:9", place / "file" / "x") == 1
    assert f"there is no directory {place}/file" in capfd.readouterr().err


def nothing(_number: int) -> None:
    """Nothing happens."""


# -- the verb ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--force",)])
@pytest.mark.parametrize("is_second_broken", [False, True])
def test_two_at_once_do_not_meet(
    serve: Serve, place: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], is_second_broken: bool
) -> None:
    """The second opens its file while the first writes; both wrote into one, and either removed the other's."""
    first_began, second_writes, first_ended = threading.Event(), threading.Event(), threading.Event()

    def before_first(number: int) -> None:
        first_began.set()
        if number == 2:
            assert second_writes.wait(TIMEOUT_S)

    def before_second(number: int) -> None:
        if number == 2:
            second_writes.set()
            assert first_ended.wait(TIMEOUT_S)
            if is_second_broken:
                raise ConnectionError("as if it broke")

    address = serve(before_first, before_second)
    file = place / "backup"
    codes: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(backup, address, file, "--json", *options)
        assert first_began.wait(TIMEOUT_S)
        second = pool.submit(backup, address, file, *options)
        codes.append(first.result(TIMEOUT_S))
        told = json.loads(capfd.readouterr().out)
        assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.read_bytes() == whole_of(1)
        first_ended.set()
        codes.append(second.result(TIMEOUT_S))
    does_replace = bool(options) and not is_second_broken
    assert codes[0] == 0
    assert (codes[1] == 0) == does_replace
    assert file.read_bytes() == whole_of(2 if does_replace else 1), "nothing is replaced unasked"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [*place.iterdir()] == [file]


def test_what_lies_under_a_name_like_it_stays(serve: Serve, place: Path) -> None:
    theirs = place / ".backup.unfinished"
    theirs.write_text("theirs")
    assert backup(serve(nothing), place / "backup") == 0
    assert theirs.read_text() == "theirs"


def test_its_name_is_durable_when_it_says_so(serve: Serve, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (place / "backup").exists()))

    monkeypatch.setattr(os, "fsync", spy)
    assert backup(serve(nothing), place / "backup") == 0
    assert [has_name for path, has_name in synced if path != place] == [False], "the content first"
    assert synced[-1] == (place, True)


def test_a_file_system_without_hard_links_will_do(
    serve: Serve, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file = place / "backup"

    def appear(number: int) -> None:
        if number == 2:
            file.write_text("theirs")

    address = serve(nothing, appear)
    assert backup(address, file) == 0
    assert file.read_bytes() == whole_of(1)
    file.unlink()
    assert backup(address, file) == 2
    assert "is there already" in capfd.readouterr().err
    assert file.read_text() == "theirs"
    assert [*place.iterdir()] == [file]


def test_what_ctrl_c_interrupts_leaves_nothing(serve: Serve, place: Path) -> None:
    is_over = threading.Event()

    def hang(number: int) -> None:
        if number == 2:
            is_over.wait(TIMEOUT_S)

    command = [sys.executable, "-m", "node", "backup", str(place / "backup"), "--address", serve(hang), "--insecure"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        try:
            wait_until_sync(lambda: any(path.stat().st_size for path in place.iterdir()), 60.0, what="it writes")
            program.send_signal(signal.SIGINT)
            out, _ = program.communicate(timeout=60.0)
        finally:
            is_over.set()
            program.kill()
    assert (program.returncode, out) == (130, b"")
    assert [*place.iterdir()] == []


# -- the node ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(etcd: FakeEtcd, directory: Path) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(node_service(BackupCall(etcd, directory)), server)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def asked(address: str, file: Path) -> int:
    return await asyncio.wait_for(asyncio.to_thread(backup, address, file), TIMEOUT_S)


Usage = namedtuple("Usage", "free")


async def test_a_node_without_room_for_it_refuses_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The copy lies on the node's disk while it is sent: it must not be what fills that."""
    database = 300 << 20
    free = 2 * database + RESERVE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(free))
    (tmp_path / "data").mkdir()
    async with FakeEtcd() as etcd, serving(etcd, tmp_path / "data") as address:
        await etcd.txn(Txn(success=(Put(b"/a", b"one"),)))
        status = await etcd.status()

        async def status_of_large() -> MemberStatus:
            return replace(status, db_size_bytes=database)

        monkeypatch.setattr(etcd, "status", status_of_large)
        assert await asked(address, place / "backup") == 0
        capfd.readouterr()
        free -= 1
        snapshots = etcd.calls.count("snapshot")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first_part(address)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await asked(address, place / "other") == 1
        told = capfd.readouterr().err
        assert "no room for a backup" in told
        assert "300M" in told, "why"
        assert "--address" in told, "what to do"
        assert etcd.calls.count("snapshot") == snapshots
        assert [path.name for path in place.iterdir()] == ["backup"]
        assert [*(tmp_path / "data").iterdir()] == []


async def first_part(address: str) -> nodes_pb2.BackupChunk:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: nodes_pb2_grpc.NodeServiceAsyncStub = nodes_pb2_grpc.NodeServiceStub(channel)
        async for part in stub.Backup(nodes_pb2.BackupRequest(), timeout=TIMEOUT_S):
            return part
    raise AssertionError("it ended without any")


async def test_a_disk_that_fills_up_meanwhile_is_no_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_file: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with FakeEtcd() as etcd, serving(etcd, tmp_path) as address:
        monkeypatch.setattr(etcd, "snapshot", full)
        with pytest.raises(grpc.aio.AioRpcError, match="no room for a backup") as caught:
            await first_part(address)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [*tmp_path.iterdir()] == []


async def test_without_etcd_it_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    async with FakeEtcd() as etcd, serving(etcd, tmp_path) as address:
        await etcd.txn(Txn(success=(Put(b"/a", b"one"),)))
        for method in ("status", "snapshot"):
            etcd.faults = once(LOST_BEFORE, method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await first_part(address)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [*tmp_path.iterdir()] == []


# -- what a killed node left ------------------------------------------------------------------------------------------


class Stood(Exception):  # noqa: N818  (no error)
    """The start came as far as to ask where it stands."""


async def start(directory: Path) -> None:
    await app.serve(Settings(data_dir=directory, name="a"), None, stop=asyncio.Event(), hurry=asyncio.Event())


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory in which a node was killed that took a backup, and wrote a file of its own."""

    async def stand(*_: object) -> None:
        raise Stood

    monkeypatch.setattr(app, "stand", stand)
    directory = tmp_path / "data"
    DataDir.open(directory).close()
    (directory / "precious").write_text("stays")
    copy = directory / f"{TEMPORARY_PREFIX}k3j2_x1"
    copy.mkdir()
    (copy / "snapshot.new").write_bytes(b"half a database")
    (directory / f"{TEMPORARY_PREFIX}cluster.json-0a1b2c3d").write_text("{")
    (directory / f"{TEMPORARY_PREFIX}link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("stays")
    # Where directories cannot be exchanged this is the cluster's data, on their way (`node.files.exchange`).
    (directory / "etcd" / f"{TEMPORARY_PREFIX}data").mkdir()
    return directory


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]


async def test_the_next_start_removes_what_a_killed_node_left(left: Path, tmp_path: Path) -> None:
    assert len(leftovers(left)) == 3
    with pytest.raises(Stood):
        await start(left)
    assert leftovers(left) == []
    assert leftovers(left / "etcd") == [f"{TEMPORARY_PREFIX}data"]
    assert (left / "precious").read_text() == (tmp_path / "elsewhere" / "file").read_text() == "stays"


async def test_a_start_beside_whoever_has_the_lock_removes_nothing(left: Path) -> None:
    with DataDir.open(left), pytest.raises(DataDirBusy):  # as node restore and node recover do
        await start(left)
    assert len(leftovers(left)) == 3


async def test_what_cannot_be_removed_is_said_and_keeps_no_node_from_starting(
    left: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(Stood):
        await start(left)
    assert "cannot be removed: [Errno 5] Input/output error" in caplog.text
