"""Several managed etcds: joining as a learner, coming back, being removed; and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.errors import MembershipRefused, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.port import KeyRange, Member, Put, Range, Txn
from etcd.server import EtcdNotReady, EtcdServer, ServerEvent, ServerEventKind, plan_ports
from etcd.server_flags import EtcdConfig, peer_url
from tests.support.certificates import MEMBER_NAME, make_several
from tests.support.etcd_process import etcd_binary
from tests.support.wait import wait_until

pytestmark = pytest.mark.etcd

READY_S = 60.0
T = TypeVar("T")


class Nodes:
    """Managed etcds of one cluster, each as a node would have it: known by name, on loopback and on a "public" address
    of the loopback network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        certificates = make_several(directory / "pki", {"node": True, "command": False})
        self.tls = replace(certificates["node"], server_name=MEMBER_NAME)
        #: Of the same authority, but no member's.
        self.foreign_tls = replace(certificates["command"], server_name=MEMBER_NAME)
        self.events: dict[str, list[ServerEvent]] = {}
        self.servers: list[EtcdServer] = []

    def config(self, name: str, host: str = "127.0.0.2") -> EtcdConfig:
        return EtcdConfig(
            etcd_binary(),
            name=name,
            directory=self.directory / name,
            tls=self.tls,
            client_hosts=("127.0.0.1", host),
            peer_host=host,
            allowed_hostname=MEMBER_NAME,
        )

    async def start(self, config: EtcdConfig) -> EtcdServer:
        server = EtcdServer(config, on_event=self.events.setdefault(config.name, []).append)
        self.servers.append(server)
        await server.start()
        return server

    def kinds(self, name: str) -> list[ServerEventKind]:
        return [event.kind for event in self.events[name]]

    async def join(self, name: str, through: EtcdServer) -> tuple[EtcdServer, Member]:
        """Adds a learner and starts it; it is not promoted."""
        config = self.config(name, host="127.0.0.3")
        ports = plan_ports(config)
        async with self.client(through) as client:
            member = await eventually(lambda: client.add_learner([peer_url(config, ports)]))
            others = tuple((m.name, url) for m in await client.members() if m.name for url in m.peer_urls)
        joining = replace(config, state="existing", initial_cluster=others, peer_port=ports.peer)
        return await self.start(joining), member

    def client(self, server: EtcdServer, tls: ClientTls | None = None) -> EtcdClient:
        return EtcdClient([server.client_address], tls or self.tls)


async def eventually(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, once it is neither refused nor missing."""
    answers: list[T] = []

    async def is_answered() -> bool:
        with contextlib.suppress(MembershipRefused, StoreUnavailable):
            answers.append(await ask())
        return bool(answers)

    await wait_until(is_answered, READY_S, what="etcd agrees")
    return answers[0]


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    for server in made.servers:
        await server.stop(0.2)


async def test_a_learner_answers_is_promoted_is_ready_and_comes_back_without_any_list(nodes: Nodes) -> None:
    founder = await nodes.start(nodes.config("a"))
    await founder.wait_ready(READY_S)
    learner, member = await nodes.join("b", founder)
    await learner.wait_answering(READY_S)
    assert not learner.is_ready
    async with nodes.client(founder) as client:
        await eventually(lambda: client.promote(member.id))
        await learner.wait_ready(READY_S)
        await client.txn(Txn((), (Put(b"/a"),)), timeout_s=10)
        known = {m.name: m for m in await client.members()}
        assert known["b"].peer_urls == (learner.peer_url,)
        assert known["b"].client_urls == (learner.client_url,)
        assert learner.client_url.startswith("https://127.0.0.3:")
    await learner.stop()
    again = await nodes.start(nodes.config("b", host="127.0.0.3"))  # of whom it knew nothing but its own name
    await again.wait_ready(READY_S)
    async with nodes.client(again) as client:
        assert (await client.range(Range(b"/a"))).count == 1
        lease = await client.lease_grant(5)  # a follower passes it on to the leader, by the peer port
        async with client.keep_alive(lease.id) as pings:
            await pings.ping()
            assert (await pings.answer()).ttl_s > 0
    assert ServerEventKind.DIED not in nodes.kinds("b")


async def test_a_client_that_comes_to_a_learner_goes_on_to_a_voter(nodes: Nodes) -> None:
    founder = await nodes.start(nodes.config("a"))
    await founder.wait_ready(READY_S)
    learner, _ = await nodes.join("b", founder)
    await learner.wait_answering(READY_S)
    both = (learner.client_address, founder.client_address)
    async with EtcdClient(both, nodes.tls) as reader, EtcdClient(both, nodes.tls) as writer:
        assert (await reader.range(Range(b"/a"))).count == 0
        with pytest.raises(StoreUnavailable):  # a write is sent once; that it was refused is certain
            await writer.txn(Txn((), (Put(b"/a"),)))
        await writer.txn(Txn((), (Put(b"/a"),)))
    async with EtcdClient(both, nodes.tls) as watcher, watcher.watch([KeyRange(b"/", b"0")], start_revision=2) as seen:
        assert [event.kv.key for event in (await anext(seen)).events] == [b"/a"]


async def test_without_a_quorum_it_waits(nodes: Nodes) -> None:
    """The whole cluster was down and one voter comes back: not an error, however long the others take."""
    founder = await nodes.start(nodes.config("a"))
    await founder.wait_ready(READY_S)
    other, member = await nodes.join("b", founder)
    async with nodes.client(founder) as client:
        await eventually(lambda: client.promote(member.id))
    await other.wait_ready(READY_S)
    await asyncio.gather(founder.stop(), other.stop())
    first = await nodes.start(nodes.config("a"))
    with pytest.raises(EtcdNotReady, match="not ready after"):
        await first.wait_ready(3.0)
    second = await nodes.start(nodes.config("b", host="127.0.0.3"))
    await asyncio.gather(first.wait_ready(None), second.wait_ready(None))
    assert ServerEventKind.DIED not in nodes.kinds("a")


async def test_a_removed_member_says_so_and_is_not_started_again(nodes: Nodes) -> None:
    founder = await nodes.start(nodes.config("a"))
    await founder.wait_ready(READY_S)
    removed, member = await nodes.join("b", founder)
    await removed.wait_answering(READY_S)
    async with nodes.client(founder) as client:
        await eventually(lambda: client.promote(member.id))
        await removed.wait_ready(READY_S)
        await eventually(lambda: client.remove_member(member.id))
    await wait_until(lambda: removed.is_removed, READY_S, what="it is told")
    assert removed.pid is None
    assert nodes.kinds("b")[-2:] == [ServerEventKind.DIED, ServerEventKind.REMOVED]
    with pytest.raises(EtcdNotReady, match="removed this member"):
        await removed.wait_ready(READY_S)
    await removed.stop()

    again = await nodes.start(nodes.config("b", host="127.0.0.3"))
    with pytest.raises(EtcdNotReady, match="removed this member"):
        await again.wait_ready(READY_S)
    assert nodes.kinds("b")[-1] is ServerEventKind.REMOVED
    assert founder.is_ready
    assert ServerEventKind.REMOVED not in nodes.kinds("a")


async def test_a_removal_that_was_missed_is_told_at_the_next_start(nodes: Nodes) -> None:
    founder = await nodes.start(nodes.config("a"))
    await founder.wait_ready(READY_S)
    learner, member = await nodes.join("b", founder)
    await learner.wait_answering(READY_S)
    await learner.stop()
    async with nodes.client(founder) as client:
        await client.remove_member(member.id)
    again = await nodes.start(nodes.config("b", host="127.0.0.3"))
    with pytest.raises(EtcdNotReady, match="removed this member"):
        await again.wait_ready(READY_S)


async def test_only_members_certificates_are_let_in_on_the_client_port(nodes: Nodes) -> None:
    """One that the same authority gave to a command line or for a join opens no etcd."""
    server = await nodes.start(nodes.config("a"))
    await server.wait_ready(READY_S)
    public = server.client_url.removeprefix("https://")
    for where in (server.client_address, public):
        async with EtcdClient([where], nodes.foreign_tls) as stranger:
            with pytest.raises(StoreUnavailable):
                await stranger.range(Range(b"/a"), timeout_s=2)
            with pytest.raises(OutcomeUnknown):
                await stranger.txn(Txn((), (Put(b"/a"),)), timeout_s=2)
        async with EtcdClient([where], nodes.tls) as member:
            assert (await member.range(Range(b"/a"), timeout_s=5)).count == 0


async def test_only_members_certificates_are_let_in_on_the_peer_port(nodes: Nodes) -> None:
    server = await nodes.start(nodes.config("a"))
    await server.wait_ready(READY_S)

    async def version_of(tls: ClientTls) -> bytes:
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.load_cert_chain(tls.cert, tls.key)
        reader, writer = await asyncio.open_connection(
            "127.0.0.2", server.ports.peer, ssl=context, server_hostname=MEMBER_NAME
        )
        try:
            writer.write(b"GET /members HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    assert b" 200 OK" in await version_of(nodes.tls)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert await version_of(nodes.foreign_tls) == b""
        raise ConnectionError("closed without a word")


async def test_a_client_trusts_the_name_and_not_the_address(nodes: Nodes) -> None:
    """Whoever answers at a member's address must show a member's certificate."""
    config = replace(nodes.config("a"), tls=nodes.foreign_tls, allowed_hostname=None)

    def serves() -> bool:
        return config.log_file.exists() and "serving client" in config.log_file.read_text()

    server = await nodes.start(config)
    await wait_until(serves, READY_S, what="etcd serves")
    async with nodes.client(server) as client:
        with pytest.raises(StoreUnavailable):
            await client.status(timeout_s=2)


async def test_ipv6(nodes: Nodes) -> None:
    config = replace(nodes.config("a"), client_hosts=("::1",), peer_host="::1")
    server = await nodes.start(config)
    await server.wait_ready(READY_S)
    assert server.client_address == f"[::1]:{server.ports.client}"
    assert server.peer_url == f"https://[::1]:{server.ports.peer}"
    async with nodes.client(server) as client:
        (member,) = await client.members()
    assert member.client_urls == (server.client_url,)


async def test_a_wildcard_is_listened_on_and_never_told(nodes: Nodes) -> None:
    config = replace(
        nodes.config("a"),
        client_hosts=("0.0.0.0",),
        peer_host="0.0.0.0",
        advertised_host="127.0.0.3",
    )
    server = await nodes.start(config)
    await server.wait_ready(READY_S)
    assert server.client_address == f"127.0.0.1:{server.ports.client}"
    assert server.peer_url == f"https://127.0.0.3:{server.ports.peer}"
    async with EtcdClient([server.client_url.removeprefix("https://")], nodes.tls) as client:
        (member,) = await client.members()
    assert member.peer_urls == (server.peer_url,)


async def test_a_client_follows_its_list_and_returns_to_the_first(nodes: Nodes) -> None:
    """Two clusters stand for two members, so that the answer tells who gave it."""
    first, second = await nodes.start(nodes.config("a")), await nodes.start(nodes.config("b"))
    await asyncio.gather(first.wait_ready(READY_S), second.wait_ready(READY_S))
    for server, name in ((first, b"first"), (second, b"second")):
        async with nodes.client(server) as client:
            await client.txn(Txn((), (Put(b"/name", name),)))
    known: tuple[str, ...] = (first.client_address, second.client_address)

    async with EtcdClient(lambda: known, nodes.tls, return_after_s=0.5) as client:

        async def answered() -> bytes:
            with contextlib.suppress(StoreError):
                return (await client.range(Range(b"/name"), timeout_s=2)).kvs[0].value
            return b""

        async def is_answered_by(name: bytes) -> bool:
            return await answered() == name

        assert await answered() == b"first"
        assert first.pid is not None
        os.kill(first.pid, signal.SIGSTOP)
        await wait_until(lambda: is_answered_by(b"second"), READY_S, what="it goes on to the next")
        patience = asyncio.get_running_loop().time() + 2.0

        async def stays() -> bool:
            """The frozen one is asked again and again meanwhile, and does not get it back."""
            assert await answered() == b"second"
            return asyncio.get_running_loop().time() > patience

        await wait_until(stays, READY_S, what="two seconds have passed")
        os.kill(first.pid, signal.SIGCONT)
        await wait_until(lambda: is_answered_by(b"first"), READY_S, what="it returns")

        known = (second.client_address,)
        assert await answered() == b"second"
        known = ()
        assert await answered() == b"second"  # the last ones known count
