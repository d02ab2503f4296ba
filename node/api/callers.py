"""Who calls, and what each may call.

Who: the certificate of the connection says role and name (`node/trust/authority.py`); a connection over the unix socket
is the local administrator's, since the directory's permissions are the check there; what is left is a plain connection,
which there is on loopback alone. What a node calls for somebody else (`node/peer_channels.py`, ON_BEHALF_OF) counts as
that one's call too; from anybody but a node those words are not believed.

What: one table. Every connection must show a certificate of this cluster already (mutual TLS); the table only keeps a
join token from anything but joining, and what nodes tell one another from everybody else. The certificates of hosts
that were removed are refused, whoever signed them: they last up to 90 days.

Must not do: read etcd, or know what a call does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import grpc
from cryptography import x509

from node.peer_channels import ON_BEHALF_OF, parse_on_behalf_of
from node.trust.authority import ROLE_CLIENT, ROLE_JOIN, ROLE_NODE, subject_of
from node.trust.material import host_of_admin

#: Over the unix socket in the data directory.
ROLE_LOCAL: Final = "local"
#: Over a plain connection on loopback (--insecure).
ROLE_ANONYMOUS: Final = "anonymous"
#: A certificate of ours that says no role we know.
ROLE_UNKNOWN: Final = "unknown"

_EVERYBODY: Final = frozenset({ROLE_LOCAL, ROLE_ANONYMOUS, ROLE_CLIENT, ROLE_NODE, ROLE_JOIN, ROLE_UNKNOWN})
_PEOPLE_AND_NODES: Final = frozenset({ROLE_LOCAL, ROLE_ANONYMOUS, ROLE_CLIENT, ROLE_NODE})
_NODES: Final = frozenset({ROLE_NODE})
_TOKENS: Final = frozenset({ROLE_JOIN})

_NODE_SERVICE: Final = "/pilfer.v1.NodeService/"
#: The table: method -> who may call it. A method that does not stand here is for people and nodes.
MAY_CALL: Final[Mapping[str, frozenset[str]]] = {
    f"{_NODE_SERVICE}Join": _TOKENS,
    f"{_NODE_SERVICE}Contacts": _NODES,
    f"{_NODE_SERVICE}Sign": _NODES,
    f"{_NODE_SERVICE}ShareAuthority": _NODES,
    "/grpc.health.v1.Health/Check": _EVERYBODY,
    "/grpc.health.v1.Health/Watch": _EVERYBODY,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    role: str
    #: Of the certificate: a host id, a name for people, a token id; empty without one.
    name: str = ""
    #: The host whose certificate it is; empty for others than nodes and the administrators' certificates they keep.
    host_id: str = ""

    def __str__(self) -> str:
        return f"{self.role} {self.name}".rstrip()


LOCAL: Final = Caller(ROLE_LOCAL)
ANONYMOUS: Final = Caller(ROLE_ANONYMOUS)


def caller_of(context: Any) -> Caller:
    """Who is at the other end of this call's connection. `context`: grpc's, of a call on our server."""
    certificates = context.auth_context().get("x509_pem_cert")
    if certificates:
        return _holder_of(bytes(certificates[0]))
    return LOCAL if str(context.peer()).startswith("unix:") else ANONYMOUS


def origin_of(context: Any) -> Caller:
    """Who wants this call: whom a node names that handed it on, else the caller itself."""
    return _named(context, caller_of(context))


def _named(context: Any, caller: Caller) -> Caller:
    if caller.role != ROLE_NODE:
        return caller
    for key, value in context.invocation_metadata() or ():
        if key == ON_BEHALF_OF:
            try:
                role, name = parse_on_behalf_of(str(value))
            except ValueError:
                return Caller(ROLE_UNKNOWN)
            return Caller(role) if role in (ROLE_LOCAL, ROLE_ANONYMOUS) else _certified(role, name)
    return caller


def refusal(method: str, caller: Caller, is_removed: Callable[[str], bool]) -> str | None:
    """Why this caller may not call this method (its full path), in words for it; None: it may."""
    allowed = MAY_CALL.get(method, _PEOPLE_AND_NODES)
    if allowed is _EVERYBODY:
        return None
    if caller.host_id and is_removed(caller.host_id):
        return (
            f"host {caller.host_id} was removed from this cluster (node remove), and its certificates are no longer "
            "good here. To bring the machine back, empty its data directory and join with a new token"
        )
    return None if caller.role in allowed else _not_in_table(method.rpartition("/")[2], allowed, caller)


def _not_in_table(name: str, allowed: frozenset[str], caller: Caller) -> str:
    if allowed is _TOKENS:
        return (
            f"{name} is for the holder of a join token, and not for {caller}: make one with node token create, and "
            "give it to node start --peers"
        )
    if caller.role == ROLE_JOIN:
        return f"a join token is good for joining alone, not for {name}: for a command line, ask for node invite NAME"
    if allowed is _NODES:
        return f"{name} is between nodes, and not for {caller}"
    return f"the certificate of {caller} names no role that may call {name}: ask for a new one with node invite NAME"


class CallerCheck(grpc.aio.ServerInterceptor):
    """Refuses, before a method runs, whoever may not call it."""

    def __init__(self, is_removed: Callable[[str], bool]) -> None:
        """is_removed: whether the host with this id was removed; asked at each call, so answered from memory."""
        self._is_removed = is_removed

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or MAY_CALL.get(method) is _EVERYBODY:
            return handler  # type: ignore[no-any-return]  # Any, to take it apart below
        if handler.response_streaming:
            return self._stream(method, handler)
        return self._unary(method, handler)

    async def _check(self, method: str, context: Any) -> None:
        caller = caller_of(context)
        wanted_by = _named(context, caller)
        for one in (caller,) if wanted_by is caller else (caller, wanted_by):
            why = refusal(method, one, self._is_removed)
            if why is not None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)

    def _unary(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def checked(request: Any, context: Any) -> Any:
            await self._check(method, context)
            return await inner(request, context)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(checked, handler.request_deserializer, handler.response_serializer)

    def _stream(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def checked(request: Any, context: Any) -> AsyncGenerator[Any, None]:
            await self._check(method, context)
            async with contextlib.aclosing(inner(request, context)) as responses:
                async for response in responses:
                    yield response

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(checked, handler.request_deserializer, handler.response_serializer)


@lru_cache(maxsize=4096)
def _holder_of(certificate_pem: bytes) -> Caller:
    """The same certificate comes with every call of a connection."""
    try:
        subject = subject_of(x509.load_pem_x509_certificate(certificate_pem))
    except ValueError:
        return Caller(ROLE_UNKNOWN)
    return _certified(subject.role, subject.name)


def _certified(role: str, name: str) -> Caller:
    """The roles that a certificate can give: no certificate makes its holder the local administrator."""
    if role == ROLE_NODE:
        return Caller(role, name, host_id=name)
    if role == ROLE_CLIENT:
        return Caller(role, name, host_id=host_of_admin(name))
    return Caller(role if role == ROLE_JOIN else ROLE_UNKNOWN, name)
