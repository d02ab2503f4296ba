"""etcd as a managed child: started, found ready, killed, restarted, stopped, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from etcd import rpc_pb2 as pb
from etcd import rpc_pb2_grpc as rpc
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.errors import OutcomeUnknown, StoreError, StoreUnavailable
from etcd.port import Put, Range, Txn
from etcd.ports import is_free
from etcd.server import EtcdNotReady, EtcdServer, ServerEvent, ServerEventKind, _end, _tail
from etcd.server_flags import EtcdConfig
from tests.support.certificates import make_tls
from tests.support.etcd_process import etcd_binary
from tests.support.wait import wait_until, wait_until_sync

if TYPE_CHECKING:
    from asyncio.subprocess import Process

pytestmark = pytest.mark.etcd

READY_S = 30.0


class Events:
    """Collects what the server tells."""

    def __init__(self) -> None:
        self.all: list[ServerEvent] = []

    def __call__(self, event: ServerEvent) -> None:
        self.all.append(event)

    @property
    def kinds(self) -> list[ServerEventKind]:
        return [event.kind for event in self.all]

    def of(self, kind: ServerEventKind) -> list[ServerEvent]:
        return [event for event in self.all if event.kind is kind]


@pytest.fixture
def config(tmp_path: Path) -> EtcdConfig:
    return EtcdConfig(etcd_binary(), name="me", directory=tmp_path / "etcd", tls=make_tls(tmp_path / "pki"))


@asynccontextmanager
async def running(
    config: EtcdConfig, events: Callable[[ServerEvent], None] = lambda _: None
) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(config, on_event=events)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def write(server: EtcdServer, tls: ClientTls, key: bytes) -> None:
    async with EtcdClient([server.client_address], tls) as client:
        await client.txn(Txn((), (Put(key),)), timeout_s=5)


async def count(server: EtcdServer, tls: ClientTls) -> int:
    async with EtcdClient([server.client_address], tls) as client:
        return (await client.range(Range(b"/", b"0", count_only=True), timeout_s=5)).count


async def test_start_ready_stop_in_order(config: EtcdConfig) -> None:
    events = Events()
    async with running(config, events) as server:
        await server.wait_ready(READY_S)
        assert server.is_ready
        pid = server.pid
        assert pid is not None
        assert is_alive(pid)
        await write(server, config.tls, b"/a")
        assert config.directory.stat().st_mode & 0o777 == 0o700
    assert not is_alive(pid)
    assert events.kinds == [
        ServerEventKind.STARTED,
        ServerEventKind.ANSWERING,
        ServerEventKind.READY,
        ServerEventKind.STOPPED,
    ]
    assert events.all[-1].pid == pid
    await server.stop()  # again: nothing to do


async def test_killed_it_comes_back_on_the_same_port_with_all_data(config: EtcdConfig) -> None:
    events = Events()
    async with running(config, events) as server:
        await server.wait_ready(READY_S)
        await write(server, config.tls, b"/a")
        address, pid = server.client_address, server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: len(events.of(ServerEventKind.READY)) == 2, READY_S, what="ready again")
        assert server.client_address == address
        assert server.pid != pid
        assert await count(server, config.tls) == 1
    (died,) = events.of(ServerEventKind.DIED)
    assert (died.pid, died.code) == (pid, -signal.SIGKILL)
    assert "signal 9" in str(died)
    assert len(events.of(ServerEventKind.RESTARTING)) == 1


async def test_an_exit_with_0_is_no_stop(config: EtcdConfig) -> None:
    """A SIGTERM that was not ours."""
    events = Events()
    async with running(config, events) as server:
        await server.wait_ready(READY_S)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGTERM)
        await wait_until(lambda: len(events.of(ServerEventKind.READY)) == 2, READY_S, what="ready again")


async def test_restart_on_the_same_directory_has_all_data_and_ports(config: EtcdConfig) -> None:
    async with running(config) as server:
        await server.wait_ready(READY_S)
        await write(server, config.tls, b"/a")
        ports = server.ports
    async with running(config) as server:
        await server.wait_ready(READY_S)
        assert server.ports == ports
        assert await count(server, config.tls) == 1


async def test_ports_taken_meanwhile_are_replaced_and_the_membership_says_so(config: EtcdConfig) -> None:
    async with running(config) as server:
        await server.wait_ready(READY_S)
        await write(server, config.tls, b"/a")
        before = server.ports
    with socket.socket() as client_port, socket.socket() as peer_port:
        for holder, port in ((client_port, before.client), (peer_port, before.peer)):
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", port))
            holder.listen()
        async with running(config) as server:
            await server.wait_ready(READY_S)
            assert server.ports.client != before.client
            assert server.ports.peer != before.peer
            assert await count(server, config.tls) == 1
            async with EtcdClient([server.client_address], config.tls) as client:
                (member,) = await client.members()
            assert member.peer_urls == (server.peer_url,)
            assert member.client_urls == (f"https://{server.client_address}",)


async def test_the_ports_are_those_beside_the_api_port(config: EtcdConfig) -> None:
    api_port = next(port for port in range(23_000, 30_000) if all(is_free("127.0.0.1", port + i) for i in range(3)))
    async with running(replace(config, api_port=api_port)) as server:
        await server.wait_ready(READY_S)
        assert server.client_address == f"127.0.0.1:{api_port + 1}"
        assert server.peer_url == f"https://127.0.0.1:{api_port + 2}"


async def test_a_frozen_one_is_stopped_all_the_same(config: EtcdConfig) -> None:
    async with running(config) as server:
        await server.wait_ready(READY_S)
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await server.stop(limit_s=0.5)
        assert not is_alive(pid)


async def test_what_cannot_come_up_is_told_with_its_last_words(config: EtcdConfig) -> None:
    config.data_dir.mkdir(parents=True)
    (config.data_dir / "member").write_text("no directory")
    events = Events()
    async with running(config, events) as server:
        with pytest.raises(EtcdNotReady) as told:
            await server.wait_ready(READY_S)
    assert "member" in str(told.value)
    assert str(config.log_file) in str(told.value)
    pauses = [event.in_s or 0 for event in events.of(ServerEventKind.RESTARTING)]
    assert pauses == sorted(pauses)
    assert len(pauses) >= 3
    assert pauses[-1] > pauses[0]


async def test_wait_ready_ends_in_time(config: EtcdConfig) -> None:
    async with running(config) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(EtcdNotReady, match="not ready"):
            await server.wait_ready(0.5)
        await server.stop(limit_s=0.2)


async def test_stop_while_it_waits_to_restart(config: EtcdConfig) -> None:
    events = Events()
    config.data_dir.mkdir(parents=True)
    (config.data_dir / "member").write_text("no directory")
    async with running(config, events) as server:
        await wait_until(lambda: len(events.of(ServerEventKind.RESTARTING)) >= 3, READY_S, what="it pauses")
        await asyncio.wait_for(server.stop(), 10)
        assert server.pid is None


async def test_only_the_main_thread_may_start_it(config: EtcdConfig) -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(lambda: asyncio.run(EtcdServer(config).start()))


async def test_environment_and_logs(config: EtcdConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's ETCD_* settings are not ours; logs are bounded at each start."""
    monkeypatch.setenv("ETCD_DATA_DIR", "/nonexistent/elsewhere")
    monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", "nonsense")
    config.directory.mkdir(parents=True)
    config.log_file.write_bytes(bytes(17 << 20))
    async with running(config) as server:
        await server.wait_ready(READY_S)
        assert (config.data_dir / "member").is_dir()
        assert config.log_file.stat().st_size < 1 << 20
        assert config.log_file.with_name("etcd.log.old").exists()
        assert str(config.data_dir) in config.log_file.read_text()


async def test_without_a_certificate_nobody_gets_in(config: EtcdConfig, tmp_path: Path) -> None:
    stranger = make_tls(tmp_path / "stranger")
    async with running(config) as server:
        await server.wait_ready(READY_S)
        strangers = ClientTls(ca=config.tls.ca, cert=stranger.cert, key=stranger.key)
        for tls in (None, stranger, strangers):
            async with EtcdClient([server.client_address], tls) as client:
                with pytest.raises(StoreUnavailable):
                    await client.range(Range(b"/a"), timeout_s=2)
                with pytest.raises(OutcomeUnknown):
                    await client.txn(Txn((), (Put(b"/a"),)), timeout_s=2)
        # Trusts the right CA, shows no certificate at all.
        credentials = grpc.ssl_channel_credentials(config.tls.ca.read_bytes())
        async with grpc.aio.secure_channel(server.client_address, credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.KVStub(channel).Range(pb.RangeRequest(key=b"/a"), timeout=2)
        assert await count(server, config.tls) == 0


async def test_the_peer_port_wants_certificates_too(config: EtcdConfig) -> None:
    async with running(config) as server:
        await server.wait_ready(READY_S)
        context = ssl.create_default_context(cafile=str(config.tls.ca))
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which the server's refusal is part of the handshake
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", server.ports.peer, ssl=context)
        context.load_cert_chain(config.tls.cert, config.tls.key)
        _, writer = await asyncio.open_connection("127.0.0.1", server.ports.peer, ssl=context)
        writer.close()
        await writer.wait_closed()


PARENT = """
import asyncio, pathlib, sys
from etcd.binary import find_etcd
from etcd.endpoints import ClientTls
from etcd.server import EtcdServer
from etcd.server_flags import EtcdConfig

async def main(directory):
    pki = directory / "pki"
    tls = ClientTls(pki / "ca.crt", pki / "node.crt", pki / "node.key")
    server = EtcdServer(EtcdConfig(find_etcd(sys.argv[2]), name="me", directory=directory / "etcd", tls=tls))
    await server.start()
    await server.wait_ready(30)
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


class Ending:
    """A process that ends when it is told."""

    returncode: int | None = None

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def terminate(self) -> None:
        pass

    async def wait(self) -> int:
        await self.ended.wait()
        return 0


async def test_a_stop_that_is_canceled_as_the_process_ends_stays_canceled() -> None:
    """Otherwise whoever stops etcd goes on, and the node that is to end waits for it for ever."""
    process = Ending()
    stopping = asyncio.create_task(_end(cast("Process", process), 30.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    process.ended.set()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping


async def test_a_program_that_cannot_be_run_is_an_error_of_files(config: EtcdConfig, tmp_path: Path) -> None:
    """Found at the node's start, and gone when this host becomes a voter: to be tried again, as any file."""
    gone = replace(config, binary=replace(config.binary, path=tmp_path / "etcd-gone"))
    server = EtcdServer(gone)
    with pytest.raises(OSError, match="etcd-gone"):
        await server.start()
    await server.stop()


def test_a_log_that_cannot_be_read_has_no_last_words(tmp_path: Path) -> None:
    """No descriptors left, or a disk that fails: raised in the supervision it would end the restarts for good."""
    assert _tail(tmp_path) == ""


def test_it_dies_with_its_parent(config: EtcdConfig, tmp_path: Path) -> None:
    """kill -9 of the node: no stray etcd holds the data directory."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), str(config.binary.path)], stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        wait_until_sync(lambda: not is_alive(pid), 5, what="etcd is dead")
    finally:
        parent.kill()
        parent.communicate()


async def test_an_error_of_a_client_is_told_while_it_is_down(config: EtcdConfig) -> None:
    async with running(config) as server:
        await server.wait_ready(READY_S)
        async with EtcdClient([server.client_address], config.tls) as client:
            await server.stop()
            with pytest.raises(StoreError):
                await client.range(Range(b"/a"), timeout_s=2)


async def test_a_port_taken_between_its_choice_and_its_use_is_chosen_anew(config: EtcdConfig) -> None:
    """Two nodes that start at the same moment find the same port free."""
    events = Events()
    with socket.socket() as rival:

        def on_event(event: ServerEvent) -> None:
            events(event)
            if events.kinds.count(ServerEventKind.STARTED) == 1 and event.kind is ServerEventKind.STARTED:
                rival.bind(("127.0.0.1", server.ports.client))
                rival.listen()

        server = EtcdServer(config, on_event=on_event)
        try:
            await server.start()
            first = server.ports.client
            await server.wait_ready(READY_S)
            assert server.ports.client != first
            assert ServerEventKind.DIED in events.kinds
            async with EtcdClient([server.client_address], config.tls) as client:
                await client.range(Range(b"/x"))
        finally:
            await server.stop()
