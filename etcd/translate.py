"""From grpc's errors to ours: the one place that knows etcd's error texts.

What matters is the line between "nothing was written" and "not known": a write that timed out, or whose stream broke
(even with "connection refused", which grpc also says of a connection that was lost after sending), may have been
applied or be applied later. Only etcd's own refusals are definite.
"""

from __future__ import annotations

import asyncio

import grpc

from etcd.errors import (
    Compacted,
    InvalidRequest,
    LeaseNotFound,
    MemberNotFound,
    MemberNotLearner,
    MembershipRefused,
    NoSpace,
    OutcomeUnknown,
    RequestTooLarge,
    StoreError,
    StoreUnavailable,
)

#: After these another endpoint is tried: this one is down, frozen, or cut off from its quorum (etcd answers UNKNOWN
#: "context deadline exceeded" then), or is no etcd (any more).
ROTATES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
#: Of those, after which a read may be sent to the next member at once: this one did not even take it.
NOT_TAKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED})

#: Refusals by which etcd says that it applied nothing: (code, part of the text) -> error. In etcd's source:
#: api/v3rpc/rpctypes/error.go.
_REFUSALS: tuple[tuple[grpc.StatusCode, str, type[StoreError]], ...] = (
    (grpc.StatusCode.INVALID_ARGUMENT, "request is too large", RequestTooLarge),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", RequestTooLarge),  # grpc's own limit, 2 MiB
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "database space exceeded", NoSpace),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests", StoreUnavailable),  # refused before it was proposed
    (grpc.StatusCode.NOT_FOUND, "lease not found", LeaseNotFound),
    # Refused before it was proposed. An endpoint may be told to clients before its member has its vote.
    (grpc.StatusCode.UNAVAILABLE, "rpc not supported for learner", StoreUnavailable),
    (grpc.StatusCode.INTERNAL, "rpc not supported for learner", StoreUnavailable),  # 3.4
    (grpc.StatusCode.UNAVAILABLE, "unhealthy cluster", MembershipRefused),
    (grpc.StatusCode.FAILED_PRECONDITION, "which is in sync with leader", MembershipRefused),
    (grpc.StatusCode.FAILED_PRECONDITION, "can only promote a learner member", MemberNotLearner),
    (grpc.StatusCode.FAILED_PRECONDITION, "too many learner members", MembershipRefused),
    (grpc.StatusCode.FAILED_PRECONDITION, "not enough started members", MembershipRefused),
    (grpc.StatusCode.UNKNOWN, "not enough started members", MembershipRefused),  # 3.5, of a removal
    (grpc.StatusCode.FAILED_PRECONDITION, "Peer URLs already exists", MembershipRefused),
    (grpc.StatusCode.FAILED_PRECONDITION, "member ID already exist", MembershipRefused),
    (grpc.StatusCode.FAILED_PRECONDITION, "not leader", MembershipRefused),
    (grpc.StatusCode.FAILED_PRECONDITION, "bad leader transferee", MembershipRefused),
    (grpc.StatusCode.NOT_FOUND, "member not found", MemberNotFound),
    (grpc.StatusCode.INVALID_ARGUMENT, "", InvalidRequest),
    (grpc.StatusCode.FAILED_PRECONDITION, "", InvalidRequest),
    (grpc.StatusCode.NOT_FOUND, "", InvalidRequest),
    # No etcd: a node of ours, perhaps, that has the port by now on which a member was.
    (grpc.StatusCode.UNIMPLEMENTED, "", StoreUnavailable),
    (grpc.StatusCode.UNAUTHENTICATED, "", StoreUnavailable),
    (grpc.StatusCode.PERMISSION_DENIED, "", StoreUnavailable),
)


def error_of(error: grpc.aio.AioRpcError, address: str, *, may_be_applied: bool) -> StoreError:
    """The error of `etcd/errors.py` for a call that failed at `address`."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.OUT_OF_RANGE:
        if "compacted" in details:
            return Compacted(0)
        return InvalidRequest(details)
    for refused, text, kind in _REFUSALS:
        if code is refused and text in details:
            return kind(f"etcd at {address}: {details}")
    kind = OutcomeUnknown if may_be_applied else StoreUnavailable
    return kind(f"etcd at {address}: {code.name}: {details}")


def is_canceled_from_outside() -> bool:
    """Whether a CancelledError just caught is meant for the running task.

    grpc also raises it out of a call that was ended by closing its channel: then it must not look as if our caller
    had been canceled.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
