"""Channels to other nodes: real grpc with real certificates, and a clock of the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from node.peer_channels import (
    CHANNEL_LIFE_S,
    FORWARDED,
    ON_BEHALF_OF,
    UNUSED_S,
    PeerChannels,
    forwarding,
    parse_on_behalf_of,
)
from node.trust.authority import (
    ROLE_CLIENT,
    ROLE_NODE,
    Authority,
    found_authority,
    key_pem,
    new_key,
    request_of,
    sign_request,
)
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc, tasks_pb2, tasks_pb2_grpc
from tests.support.certificates import make_tls
from tests.support.tasks import TIMEOUT_S
from tests.support.wait import wait_until

DESCRIBE = nodes_pb2.DescribeRequest()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("test", new_key(), time.time())


def certified(authority: Authority, role: str, name: str) -> tuple[bytes, bytes, bytes]:
    """CA, key and certificate, in grpc's order."""
    key = new_key()
    certificate = sign_request(authority, request_of(key), role=role, common_name=name, now=time.time())
    return ca_of(authority), key_pem(key), certificate


def ca_of(authority: Authority) -> bytes:
    return authority.certificate.public_bytes(Encoding.PEM)


def server_credentials(ca: bytes, key: bytes, certificate: bytes) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)


class Peer:
    """Answers with who calls, and follows a log until it is told to end."""

    def __init__(self) -> None:
        self.address = ""
        self.metadata: dict[str, str | bytes] = {}
        self.goes_on = asyncio.Event()

    async def Describe(self, _request: nodes_pb2.DescribeRequest, context: Any) -> nodes_pb2.NodeView:  # noqa: N802  (gRPC's name)
        self.metadata = dict(context.invocation_metadata())
        (caller,) = context.auth_context().get("x509_common_name", [b""])
        return nodes_pb2.NodeView(state=caller.decode())

    async def Log(self, _request: tasks_pb2.LogRequest, _context: Any) -> AsyncGenerator[tasks_pb2.LogResponse, None]:  # noqa: N802
        yield tasks_pb2.LogResponse(attempt=1)
        await self.goes_on.wait()
        yield tasks_pb2.LogResponse(attempt=2)


@asynccontextmanager
async def peer(credentials: grpc.ServerCredentials | None = None, host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    # The generated classes answer every other call with UNIMPLEMENTED; their types would have each of them written.
    bases: Any = (Peer, nodes_pb2_grpc.NodeServiceServicer, tasks_pb2_grpc.TaskServiceServicer)
    served: Any = type("Served", bases, {})()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(served, server)
    tasks_pb2_grpc.add_TaskServiceServicer_to_server(served, server)
    address = f"{host}:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    served.address = f"{host}:{port}"
    await server.start()
    try:
        yield served
    finally:
        await server.stop(None)


@asynccontextmanager
async def channels(
    credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
    clock: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[PeerChannels]:
    made = PeerChannels(credentials, clock=clock)
    try:
        yield made
    finally:
        await made.close()


async def next_attempt(following: Any) -> int:
    attempt: int = (await following.read()).attempt
    return attempt


class Clock:
    """Moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_node_is_known_by_its_certificate_whatever_its_address(authority: Authority) -> None:
    """127.0.0.2 stands in no certificate."""
    own = certified(authority, ROLE_NODE, "own-host")
    async with (
        peer(server_credentials(*certified(authority, ROLE_NODE, "peer-host")), host="127.0.0.2") as other,
        channels(lambda: grpc.ssl_channel_credentials(*own)) as peers,
    ):
        assert (await peers.nodes(other.address).Describe(DESCRIBE, timeout=TIMEOUT_S)).state == "own-host"


async def test_whoever_is_no_node_is_not_spoken_to(authority: Authority, tmp_path: Any) -> None:
    """A certificate of an administrator, who may talk to nodes and must not pass for one; and a stranger's."""
    own = certified(authority, ROLE_NODE, "own-host")
    stranger = make_tls(tmp_path)
    impostors = (
        server_credentials(*certified(authority, ROLE_CLIENT, "admin")),
        server_credentials(stranger.ca.read_bytes(), stranger.key.read_bytes(), stranger.cert.read_bytes()),
    )
    for impostor in impostors:
        async with peer(impostor) as other, channels(lambda: grpc.ssl_channel_credentials(*own)) as peers:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await peers.nodes(other.address).Describe(DESCRIBE, timeout=TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not other.metadata


async def test_one_channel_for_each_address() -> None:
    async with peer() as one, peer() as two, channels() as peers:
        for address in (one.address, two.address, one.address):
            await peers.nodes(address).Describe(DESCRIBE, timeout=TIMEOUT_S)
        assert peers.nodes(one.address) is peers.nodes(one.address)
        assert len(peers) == 2


async def test_a_channel_older_than_an_hour_is_replaced_with_the_certificate_of_that_time(authority: Authority) -> None:
    clock = Clock()
    mine = [certified(authority, ROLE_NODE, "old"), certified(authority, ROLE_NODE, "renewed")]

    def newest() -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*mine[min(1, int(clock.now / CHANNEL_LIFE_S))])

    async with (
        peer(server_credentials(*certified(authority, ROLE_NODE, "peer-host"))) as other,
        channels(newest, clock) as peers,
    ):

        async def shown() -> str:
            return (await peers.nodes(other.address).Describe(DESCRIBE, timeout=TIMEOUT_S)).state

        assert await shown() == "old"
        clock.now = CHANNEL_LIFE_S - 1
        assert await shown() == "old"
        clock.now = CHANNEL_LIFE_S
        assert await shown() == "renewed"


async def test_a_call_that_lasts_keeps_its_channel_until_it_ends() -> None:
    clock = Clock()
    async with peer() as other, channels(clock=clock) as peers:
        following = peers.tasks(other.address).Log(tasks_pb2.LogRequest(), timeout=TIMEOUT_S)
        assert await next_attempt(following) == 1
        clock.now = CHANNEL_LIFE_S
        await peers.nodes(other.address).Describe(DESCRIBE, timeout=TIMEOUT_S)
        await peers.tidy()
        assert len(peers) == 2
        other.goes_on.set()
        assert await next_attempt(following) == 2
        assert await following.read() is grpc.aio.EOF


async def test_what_was_given_up_is_closed_when_it_is_at_rest() -> None:
    clock = Clock()
    async with channels(clock=clock) as peers:
        async with peer() as other:
            await peers.nodes(other.address).Describe(DESCRIBE, timeout=TIMEOUT_S)
        # Its server is gone, so nothing is under way on it.
        clock.now = CHANNEL_LIFE_S
        peers.nodes(other.address)

        async def only_the_new_one() -> bool:
            await peers.tidy()
            return len(peers) == 1

        await wait_until(only_the_new_one)


async def test_an_address_that_nobody_asks_for_is_forgotten() -> None:
    clock = Clock()
    async with channels(clock=clock) as peers:
        before = peers.nodes("127.0.0.1:1")
        clock.now = UNUSED_S - 1
        await peers.tidy()
        assert peers.nodes("127.0.0.1:1") is before
        clock.now += UNUSED_S - 1
        await peers.tidy()
        assert len(peers) == 1, "it was asked for meanwhile"
        clock.now += UNUSED_S
        await peers.tidy()
        assert len(peers) == 0


async def test_closing_ends_calls_and_nothing_is_made_after_it() -> None:
    async with peer() as other, channels() as peers:
        following = peers.tasks(other.address).Log(tasks_pb2.LogRequest(), timeout=TIMEOUT_S)
        assert await next_attempt(following) == 1
        await peers.close()
        with pytest.raises(asyncio.CancelledError):
            await following.read()
        assert len(peers) == 0
        with pytest.raises(RuntimeError, match="closed"):
            peers.nodes(other.address)


async def test_a_forwarded_call_carries_who_it_is_for() -> None:
    async with peer() as other, channels() as peers:
        metadata = forwarding("client", "Zoë at home")
        await peers.nodes(other.address).Describe(DESCRIBE, metadata=metadata, timeout=TIMEOUT_S)
        assert other.metadata[FORWARDED] == "1"
        assert parse_on_behalf_of(str(other.metadata[ON_BEHALF_OF])) == ("client", "Zoë at home")


@given(st.sampled_from(["node", "client", "local"]), st.text().filter(lambda text: text.isprintable()))
def test_any_name_travels(role: str, name: str) -> None:
    value = dict(forwarding(role, name))[ON_BEHALF_OF]
    assert value.isascii()
    assert parse_on_behalf_of(value) == (role, name)


@pytest.mark.parametrize("value", ["", "client", " name", "client %ff", "client Zoë"])
def test_what_we_did_not_write_is_not_believed(value: str) -> None:
    with pytest.raises(ValueError):
        parse_on_behalf_of(value)
