"""Who may call what, on a real grpc server with real certificates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from node.api.callers import ANONYMOUS, LOCAL, MAY_CALL, Caller, caller_of, origin_of, refusal
from node.api.server import Listen, node_service, serving
from node.peer_channels import forwarding
from node.trust.authority import LEAF_LIFE_S, key_pem, new_key, request_of, sign_request
from node.trust.material import Trust, admin_of, ensure_trust, load_authority
from pilfer.address import NODE_DNS_NAME
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc, tasks_pb2, tasks_pb2_grpc

NOW = 1_800_000_000.0
HOST = "22222222-2222-4222-8222-222222222222"
REMOVED = "33333333-3333-4333-8333-333333333333"
TOKEN = "11111111-1111-4111-8111-111111111111"

NODE, CLIENT, JOIN = Caller("node", HOST, HOST), Caller("client", "alice"), Caller("join", TOKEN)
#: Caller -> what it may call of: any task call, list of tokens, Join, Contacts, Sign, ShareAuthority, health.
TABLE = (
    (LOCAL, "task tokens health"),
    (ANONYMOUS, "task tokens health"),
    (CLIENT, "task tokens health"),
    (Caller("client", admin_of(HOST), HOST), "task tokens health"),
    (NODE, "task tokens Contacts Sign ShareAuthority health"),
    (JOIN, "Join health"),
    (Caller("unknown", "x"), "health"),
    (Caller("node", REMOVED, REMOVED), "health"),
    (Caller("client", admin_of(REMOVED), REMOVED), "health"),
)
METHODS = {
    "task": "/pilfer.v1.TaskService/Status",
    "tokens": "/pilfer.v1.NodeService/ListTokens",
    "health": "/grpc.health.v1.Health/Check",
    **{name: f"/pilfer.v1.NodeService/{name}" for name in ("Join", "Contacts", "Sign", "ShareAuthority")},
}


@pytest.mark.parametrize(("caller", "allowed"), TABLE, ids=str)
def test_the_table(caller: Caller, allowed: str) -> None:
    found = {name for name, path in METHODS.items() if refusal(path, caller, lambda host: host == REMOVED) is None}
    assert found == set(allowed.split())


def test_a_refusal_says_what_to_do() -> None:
    def words(method: str, caller: Caller) -> str:
        return refusal(METHODS[method], caller, lambda host: host == REMOVED) or ""

    assert "node invite" in words("task", JOIN)
    assert "node token create" in words("Join", CLIENT)
    assert "between nodes, and not for client alice" in words("Sign", CLIENT)
    assert "join with a new token" in words("task", Caller("node", REMOVED, REMOVED))


def test_every_method_in_the_table_exists() -> None:
    """A misspelt path would fall to the rule for all others."""
    ours = nodes_pb2.DESCRIPTOR.services_by_name["NodeService"]
    known = {f"/{ours.full_name}/{method.name}" for method in ours.methods}
    known |= {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    assert set(MAY_CALL) <= known


@dataclass
class Echo:
    """Answers every call with nothing, and keeps who called."""

    seen: list[Caller]

    def _note(self, context: Any) -> None:
        self.seen.append(origin_of(context))

    async def Status(self, _request: object, context: Any) -> tasks_pb2.StatusResponse:  # noqa: N802  (gRPC's name)
        self._note(context)
        return tasks_pb2.StatusResponse()

    async def Watch(self, _request: object, context: Any) -> AsyncGenerator[tasks_pb2.WatchResponse, None]:  # noqa: N802
        self._note(context)
        for revision in (1, 2):
            yield tasks_pb2.WatchResponse(revision=revision)

    async def Join(self, _request: object, context: Any) -> nodes_pb2.JoinResponse:  # noqa: N802
        self._note(context)
        return nodes_pb2.JoinResponse()

    async def Contacts(self, _request: object, context: Any) -> nodes_pb2.ContactsResponse:  # noqa: N802
        self._note(context)
        return nodes_pb2.ContactsResponse()


@dataclass
class Served:
    trust: Trust
    address: str
    socket: Path
    seen: list[Caller]

    def credentials(self, role: str, name: str) -> grpc.ChannelCredentials:
        authority = load_authority(self.trust.pki_dir)
        assert authority is not None
        key = new_key()
        certificate = sign_request(
            authority, request_of(key), role=role, common_name=name, life_s=LEAF_LIFE_S, now=time.time()
        )
        return grpc.ssl_channel_credentials(self.trust.ca_cert.read_bytes(), key_pem(key), certificate)

    def channel(self, caller: Caller) -> grpc.aio.Channel:
        if caller == LOCAL:
            return grpc.aio.insecure_channel(f"unix:{self.socket}")
        if caller == ANONYMOUS:
            return grpc.aio.insecure_channel(self.address)
        named = [("grpc.ssl_target_name_override", NODE_DNS_NAME)]
        return grpc.aio.secure_channel(self.address, self.credentials(caller.role, caller.name), named)


@contextlib.asynccontextmanager
async def served(directory: Path, *, insecure: bool = False) -> AsyncIterator[Served]:
    trust = ensure_trust(directory / "pki", cluster_name="lab", host_id=HOST, host_names=(), now=time.time())
    echo = Echo([])
    unused = dict.fromkeys(("Submit", "Cancel", "List", "Log"), echo.Status)
    tasks = cast("tasks_pb2_grpc.TaskServiceServicer", SimpleNamespace(Status=echo.Status, Watch=echo.Watch, **unused))
    socket = directory / "node.sock"
    listen = Listen("127.0.0.1:0", None if insecure else trust)
    async with serving(
        tasks, node_service(echo), socket=socket, listen=listen, is_removed=lambda host: host == REMOVED
    ) as address:
        assert address is not None
        yield Served(trust, address, socket, echo.seen)


async def outcome(call: Any) -> str:
    """ "ok", or the name of the code."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "ok"


async def calls_of(channel: grpc.aio.Channel) -> dict[str, str]:
    nodes, tasks = nodes_pb2_grpc.NodeServiceStub(channel), tasks_pb2_grpc.TaskServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)

    async def watch() -> None:
        assert [r.revision async for r in tasks.Watch(tasks_pb2.WatchRequest(), timeout=20)] == [1, 2]

    return {
        "Status": await outcome(tasks.Status(tasks_pb2.StatusRequest(), timeout=20)),
        "Watch": await outcome(watch()),
        "Join": await outcome(nodes.Join(nodes_pb2.JoinRequest(), timeout=20)),
        "Contacts": await outcome(nodes.Contacts(nodes_pb2.ContactsRequest(), timeout=20)),
        "Health": await outcome(health.Check(health_pb2.HealthCheckRequest(), timeout=20)),
    }


def expected(*allowed: str) -> dict[str, str]:
    names = ("Status", "Watch", "Join", "Contacts", "Health")
    return {name: "ok" if name in allowed else "PERMISSION_DENIED" for name in names}


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        (LOCAL, ("Status", "Watch", "Health")),
        (CLIENT, ("Status", "Watch", "Health")),
        (NODE, ("Status", "Watch", "Contacts", "Health")),
        (JOIN, ("Join", "Health")),
        (Caller("node", REMOVED, REMOVED), ("Health",)),
        (Caller("client", admin_of(REMOVED), REMOVED), ("Health",)),
    ],
    ids=str,
)
async def test_a_server_lets_in_whom_the_table_names(tmp_path: Path, caller: Caller, allowed: tuple[str, ...]) -> None:
    async with served(tmp_path) as node, node.channel(caller) as channel:
        assert await calls_of(channel) == expected(*allowed)
        assert set(node.seen) <= {caller}


async def test_on_loopback_a_plain_connection_is_anybodys(tmp_path: Path) -> None:
    async with served(tmp_path, insecure=True) as node, node.channel(ANONYMOUS) as channel:
        assert await calls_of(channel) == expected("Status", "Watch", "Health")
        assert set(node.seen) == {ANONYMOUS}


async def test_without_a_certificate_of_this_cluster_nobody_is_heard(tmp_path: Path) -> None:
    stranger = ensure_trust(tmp_path / "other", cluster_name="lab", host_id=HOST, host_names=(), now=time.time())
    named = [("grpc.ssl_target_name_override", NODE_DNS_NAME)]
    async with served(tmp_path) as node:
        ca = node.trust.ca_cert.read_bytes()
        for credentials in (
            grpc.ssl_channel_credentials(ca),
            grpc.ssl_channel_credentials(ca, stranger.node_key.read_bytes(), stranger.node_cert.read_bytes()),
        ):
            async with grpc.aio.secure_channel(node.address, credentials, named) as channel:
                assert set((await calls_of(channel)).values()) == {"UNAVAILABLE"}
        assert node.seen == []


async def test_whom_a_node_speaks_for_must_be_allowed_too_and_only_nodes_are_believed(tmp_path: Path) -> None:
    async with served(tmp_path) as node:
        for connected, words, result, seen in (
            (NODE, ("client", "alice"), "ok", Caller("client", "alice")),
            (NODE, ("client", "Jürgen Größe"), "ok", Caller("client", "Jürgen Größe")),
            (NODE, ("local", ""), "ok", LOCAL),
            (NODE, ("join", TOKEN), "PERMISSION_DENIED", None),
            (NODE, ("client", admin_of(REMOVED)), "PERMISSION_DENIED", None),
            (NODE, ("wizard", "x"), "PERMISSION_DENIED", None),
            (CLIENT, ("local", ""), "ok", CLIENT),
            (JOIN, ("local", ""), "PERMISSION_DENIED", None),
        ):
            node.seen.clear()
            async with node.channel(connected) as channel:
                status = tasks_pb2_grpc.TaskServiceStub(channel).Status
                call = status(tasks_pb2.StatusRequest(), metadata=forwarding(*words), timeout=20)
                assert await outcome(call) == result, words
            assert node.seen == ([] if seen is None else [seen])


async def test_a_call_that_no_part_has_is_unimplemented(tmp_path: Path) -> None:
    async with served(tmp_path) as node, node.channel(LOCAL) as channel:
        stub = nodes_pb2_grpc.NodeServiceStub(channel)
        assert await outcome(stub.ListTokens(nodes_pb2.ListTokensRequest(), timeout=20)) == "UNIMPLEMENTED"


def test_two_parts_with_the_same_call_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="Join is there 2 times"):
        node_service(Echo([]), Echo([]))


def test_no_certificate_makes_its_holder_the_local_administrator(tmp_path: Path) -> None:
    """Roles that only a connection can give are not read from a certificate, whatever an authority signs."""
    trust = ensure_trust(tmp_path / "pki", cluster_name="lab", host_id=HOST, host_names=(), now=NOW)
    context = SimpleNamespace(
        auth_context=lambda: {"x509_pem_cert": [trust.ca_cert.read_bytes()]},
        peer=lambda: "unix:",
        invocation_metadata=tuple,
    )
    assert caller_of(context).role == "unknown"
    context.auth_context = lambda: {"x509_pem_cert": [b"rubbish"]}
    assert caller_of(context).role == "unknown"
