"""One question to one peer, with an answer that can be acted on: what it said, why it refuses, or why it is silent.

For nodes that are not members yet, or come back: `node/joining/join.py`. A handshake comes first
(`node/joining/handshake.py`), since grpc has one code for every connection that does not come about; then the call.
What a peer refuses it says in google.rpc.ErrorInfo, one word out of `node.core.newcomer.Why`.

Must not do: repeat, or choose whom to ask.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status.rpc_status import GRPC_DETAILS_METADATA_KEY

from node.core.newcomer import ERROR_DOMAIN, Why
from node.joining.handshake import Finding, Handshake, Papers, examine
from node.peer_channels import PeerChannels
from pilfer.v1 import nodes_pb2_grpc
from pilfer.version import VERSION

#: Counting a token's use, and having a certificate signed by another node, which may be the third that is asked.
CALL_TIMEOUT_S: Final = 15.0

_WORDS: Final = {why.value: why for why in Why}

Answer = TypeVar("Answer")

#: Says nothing about us; it may be otherwise in a moment.
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        # A peer's defect, or a record that it cannot read: another peer, or a repair, may help.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
    }
)


class JoinRefused(Exception):  # noqa: N818  (named after what is so, as in the conventions)
    """This host is not admitted, and asking again would not help; the text says why and what to do."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class Said(Generic[Answer]):
    """It answered."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Refused:
    """It answered, and will not."""

    why: Why
    message: str


@dataclass(frozen=True, slots=True)
class Silent:
    """No answer now."""

    reason: str
    #: The connection ended when it had seen our certificate: it stops just now, or does not accept it.
    is_after_our_certificate: bool = False


async def ask(
    address: str,
    papers: Papers,
    call: Callable[[nodes_pb2_grpc.NodeServiceAsyncStub], Awaitable[Answer]],
    *,
    now: float,
) -> Said[Answer] | Refused | Silent:
    """Asks the node at HOST:PORT by `call`, which must have a deadline. `now`: Unix seconds, for its certificate.

    A call that was sent and not answered (Silent) may have been done.
    """
    try:
        handshake = await examine(address, papers, now=now)
    except ValueError as error:
        # Remembered, or told by another node: one that cannot be read must not keep the others from being asked.
        return Silent(str(error))
    if handshake.finding is Finding.FITS:
        return await _call(address, papers, call)
    return _without_a_call(address, handshake)


def _without_a_call(address: str, handshake: Handshake) -> Refused | Silent:
    match handshake.finding:
        case Finding.NOT_A_NODE:
            return Refused(Why.NOT_A_NODE, f"what answers at {address} is no node of a cluster: {handshake.detail}")
        case Finding.OTHER_AUTHORITY:
            return Refused(
                Why.WRONG_CLUSTER,
                f"{address} belongs to another cluster: {handshake.detail}. If it is the right one, take a join token"
                " from there (node token create)",
            )
        case Finding.OTHER_TIME:
            return Refused(
                Why.CLOCK, f"the clock here is wrong, or the certificate of {address} is too old: {handshake.detail}"
            )
        case _:
            return Silent(handshake.detail, is_after_our_certificate=handshake.finding is Finding.REFUSED)


async def _call(
    address: str, papers: Papers, call: Callable[[nodes_pb2_grpc.NodeServiceAsyncStub], Awaitable[Answer]]
) -> Said[Answer] | Refused | Silent:
    channels = PeerChannels(papers.channel_credentials)
    try:
        return Said(await call(channels.nodes(address)))
    except grpc.aio.AioRpcError as error:
        return _understood(address, error)
    finally:
        await channels.close()


def _understood(address: str, error: grpc.aio.AioRpcError) -> Refused | Silent:
    code, words = error.code(), error.details() or error.code().name
    if (why := _why(error.trailing_metadata() or ())) is not None:
        return Refused(why, words)
    if code in _PASSING:
        return Silent(words)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(
            Why.NOT_A_NODE,
            f"{address} does not know this call: it is an older version of Pilfer than this ({VERSION}), or no node",
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        # Said by the check of callers, before the call itself: about our certificate.
        return Refused(Why.CERTIFICATE_REFUSED, words)
    return Refused(Why.INVALID, f"{code.name}: {words}")


def _why(metadata: Iterable[tuple[str, Any]]) -> Why | None:
    """The word of a refusal; None where there is none. One that a newer version has made up is told as it is."""
    info = error_details_pb2.ErrorInfo()
    for key, value in metadata:
        if key == GRPC_DETAILS_METADATA_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                    return _WORDS.get(info.reason.lower(), Why.INVALID)
    return None
