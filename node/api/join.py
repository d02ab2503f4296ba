"""A peer's side of joining: Join for newcomers, Contacts for nodes that come back.

Join, in order: what agrees without looking (protocol, cluster, clock); what the cluster has against this host; the
name is claimed; the token's use is counted; the certificate is signed; the answer goes out. Each step may be repeated
by the same host without costing anything again, so that an answer that was lost, a peer that died in between, or a
second peer asked at once end in one member with one name and one use. The use is counted before the certificate
leaves: a token good for one host never lets two in. What a refused newcomer leaves behind is at most a claim on a
name, which counts for a minute (NAME_CLAIM_S).

The newcomer is not written down anywhere else: it becomes a member by its own first session
(`node/cluster/host_record.py`), with the guards that count (removed hosts, one node per host).

Contacts is answered from memory alone, also while etcd has no quorum: after the whole cluster was down, nodes find
each other by it.

Must not do: check the caller's role (`node/api/callers.py` did), or log anything of a token but its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from etcd import codec, keys
from etcd.cluster_codec import decode_removal
from etcd.errors import RecordCorrupt
from etcd.port import Etcd, KeyValue, Range, RangeResult, Txn
from node.api.callers import caller_of
from node.api.errors import ApiError, answers
from node.core.model import Node, Removal
from node.core.newcomer import (
    ERROR_DOMAIN,
    Asked,
    Greeting,
    Newcomer,
    Refusal,
    Why,
    names_of_others,
    refusal_of_greeting,
    refusal_of_name,
    refusal_of_newcomer,
)
from node.joining.cluster_memory import Contacts
from node.joining.names import claim_name
from node.trust.authority import LEAF_LIFE_S, ROLE_JOIN, ROLE_NODE, TrustError
from node.trust.signer import NobodySigns, Signer
from node.trust.tokens import TokenExpired, TokenRefused, TokenRevoked, Tokens, TokenUsedUp
from pilfer.v1 import nodes_pb2
from pilfer.version import PROTOCOL, VERSION

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_CODES: Final = {
    Why.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Why.ADDRESS_UNREACHABLE: grpc.StatusCode.INVALID_ARGUMENT,
    Why.NAME_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    Why.HOST_ALIVE: grpc.StatusCode.ALREADY_EXISTS,
    Why.ADDRESS_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    Why.REMOVED: grpc.StatusCode.PERMISSION_DENIED,
    Why.TOKEN_UNKNOWN: grpc.StatusCode.PERMISSION_DENIED,
    Why.TOKEN_EXPIRED: grpc.StatusCode.PERMISSION_DENIED,
    Why.TOKEN_REVOKED: grpc.StatusCode.PERMISSION_DENIED,
    Why.TOKEN_USED_UP: grpc.StatusCode.PERMISSION_DENIED,
    Why.CERTIFICATE_REFUSED: grpc.StatusCode.PERMISSION_DENIED,
}

_WHY_TOKEN: Final[dict[type[TokenRefused], Why]] = {
    TokenExpired: Why.TOKEN_EXPIRED,
    TokenRevoked: Why.TOKEN_REVOKED,
    TokenUsedUp: Why.TOKEN_USED_UP,
}


class JoinCalls:
    """Join and Contacts of NodeService."""

    def __init__(
        self,
        etcd: Etcd,
        *,
        cluster_id: str,
        host_id: str,
        ca_certificate: Callable[[], bytes],
        signer: Signer,
        tokens: Tokens,
        contacts: Callable[[], Contacts],
        living_node: Callable[[str], str],
        clock: Callable[[], float] = time.time,
        certificate_life_s: float = LEAF_LIFE_S,
    ) -> None:
        """host_id: this host's. ca_certificate: PEM of the cluster's authority. contacts: what this node knows now,
        answered without waiting, itself included. living_node: id of the living node of this host id, where that is
        known for sure, else empty. certificate_life_s: of newcomers' certificates."""
        self._etcd = etcd
        self._cluster_id = cluster_id
        self._host_id = host_id
        self._ca_certificate = ca_certificate
        self._signer = signer
        self._tokens = tokens
        self._contacts = contacts
        self._living_node = living_node
        self._clock = clock
        self._certificate_life_s = certificate_life_s

    @answers
    async def Join(self, request: nodes_pb2.JoinRequest, context: Any) -> nodes_pb2.JoinResponse:  # noqa: N802  (gRPC's name)
        asked = Asked(
            protocol=PROTOCOL,
            version=VERSION,
            cluster_id=self._cluster_id,
            host_id=self._host_id,
            now=self._clock(),
            is_from_elsewhere=is_from_elsewhere(context.peer()),
        )
        newcomer = Newcomer(
            host_id=request.host_id,
            name=request.name,
            is_name_given=request.is_name_given,
            address=request.address,
            host_names=tuple(request.host_names),
        )
        self._check_greeting(request, asked)
        token_id = _token_of(request, context)
        nodes, removed = await self._read_cluster()
        _refuse(refusal_of_newcomer(newcomer, asked, nodes=nodes, removed=removed))
        taken = names_of_others(nodes, newcomer.host_id)
        name = await claim_name(self._etcd, newcomer, taken=taken, now=asked.now, removed=removed)
        if name is None:
            raise refused(refusal_of_name(newcomer))
        await self._use(token_id, newcomer.host_id, asked.now)
        certificate = await self._sign(request, newcomer)
        log.info(
            "host=%s joins as %s at %s, version %s, with token=%s",
            newcomer.host_id,
            name,
            newcomer.address,
            request.version,
            token_id,
        )
        return nodes_pb2.JoinResponse(
            cluster_id=self._cluster_id,
            ca_certificate=await asyncio.to_thread(self._ca_certificate),
            certificate=certificate,
            name=name,
            contacts=self._own_contacts(),
        )

    @answers
    async def Contacts(  # noqa: N802  (gRPC's name)
        self, request: nodes_pb2.ContactsRequest, _context: Any
    ) -> nodes_pb2.ContactsResponse:
        if request.protocol != PROTOCOL:
            raise refused(
                Refusal(
                    Why.PROTOCOL,
                    "protocol",
                    f"this node speaks protocol {PROTOCOL} (version {VERSION}), the caller {request.protocol}: upgrade"
                    " the older one",
                )
            )
        if request.host_id == self._host_id:
            # Its own memory is what it has already.
            raise refused(Refusal(Why.SELF, "host_id", "the node that was asked is the one that asks"))
        return nodes_pb2.ContactsResponse(
            contacts=self._own_contacts(), living_node_id=self._living_node(request.host_id)
        )

    def _own_contacts(self) -> nodes_pb2.Contacts:
        contacts = self._contacts()
        return nodes_pb2.Contacts(
            cluster_id=self._cluster_id,
            etcd_endpoints=contacts.etcd_endpoints,
            node_addresses=contacts.node_addresses,
        )

    def _check_greeting(self, request: nodes_pb2.JoinRequest, asked: Asked) -> None:
        there = request.now.ToNanoseconds() / 1e9
        refusal = refusal_of_greeting(
            Greeting(
                protocol=request.protocol,
                version=request.version,
                cluster_id=request.cluster_id,
                now=there,
            ),
            asked,
        )
        if refusal is not None and refusal.why is Why.CLOCK:
            both = f" (there it is {_shown(there)}, here {_shown(asked.now)})"
            refusal = Refusal(refusal.why, refusal.field, refusal.message + both)
        _refuse(refusal)

    async def _read_cluster(self) -> tuple[list[Node], dict[str, Removal]]:
        """Living nodes, and removed hosts by id, at one revision."""
        living, removed = keys.all_nodes(), keys.all_removed()
        read = Txn(success=(Range(living.key, living.range_end), Range(removed.key, removed.range_end)))
        nodes, removals = (r for r in (await self._etcd.txn(read)).results if isinstance(r, RangeResult))
        return list(_readable(nodes.kvs, _node)), dict(_readable(removals.kvs, _removal))

    async def _use(self, token_id: str, host_id: str, now: float) -> None:
        try:
            await self._tokens.use(token_id, host_id, now)
        except TokenRefused as error:
            raise refused(Refusal(_WHY_TOKEN.get(type(error), Why.TOKEN_UNKNOWN), "token_id", str(error))) from None

    async def _sign(self, request: nodes_pb2.JoinRequest, newcomer: Newcomer) -> bytes:
        try:
            return await self._signer.sign(
                request.certificate_request,
                role=ROLE_NODE,
                common_name=newcomer.host_id,
                host_names=newcomer.host_names,
                life_s=self._certificate_life_s,
            )
        except TrustError as error:
            raise refused(Refusal(Why.INVALID, "certificate_request", str(error))) from None
        except NobodySigns as error:
            # The use is counted for this host; when it asks again, it costs none.
            raise ApiError(grpc.StatusCode.UNAVAILABLE, f"nobody signs now: {error}") from None


def _node(kv: KeyValue) -> Node:
    return codec.decode_node(kv.key, kv.value)


def _removal(kv: KeyValue) -> tuple[str, Removal]:
    host_id = keys.parse_cluster_id(kv.key)
    try:
        return host_id, decode_removal(kv.key, kv.value)
    except RecordCorrupt:
        # That the key is there is what bars the host.
        return host_id, Removal(name="name unknown", at=0.0)


def _readable(kvs: Iterable[KeyValue], read: Callable[[KeyValue], _Value]) -> Iterator[_Value]:
    """Without what a stranger left below our keys: it must not keep anybody from joining."""
    for kv in kvs:
        with contextlib.suppress(RecordCorrupt):
            yield read(kv)


def refused(refusal: Refusal) -> ApiError:
    """The answer to a newcomer that is not admitted: the reason for programs, the field, and the words for people."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=refusal.why.value.upper(), domain=ERROR_DOMAIN),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
            ]
        ),
    ]
    code = _CODES.get(refusal.why, grpc.StatusCode.FAILED_PRECONDITION)
    return ApiError(code, refusal.message, details)


def _refuse(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise refused(refusal)


def _token_of(request: nodes_pb2.JoinRequest, context: Any) -> str:
    """The token that the call's certificate belongs to. What the request says must agree: whoever has one token must
    not spend, or hide behind, another."""
    caller = caller_of(context)
    if caller.role != ROLE_JOIN or caller.name != request.token_id:
        raise refused(
            Refusal(
                Why.CERTIFICATE_REFUSED,
                "token_id",
                f"the call was made as {caller}, and names token {request.token_id or '(none)'}: a newcomer calls with"
                " the certificate of the token that it names",
            )
        )
    return caller.name


def is_from_elsewhere(peer: str) -> bool:
    """Of grpc's name of the other end (`ipv4:192.0.2.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:`): another machine."""
    family, _, rest = unquote(peer).partition(":")
    if family not in ("ipv4", "ipv6"):
        return False
    try:
        address = ipaddress.ip_address(rest.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback


def _shown(seconds: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError):
        return f"{seconds:g}"
