"""From a gRPC status with google.rpc details to the client's errors: one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from pilfer.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidRequest,
    NoQuorum,
    NotAllowed,
    NotFound,
    PilferError,
    PreconditionFailed,
    ResourceExhausted,
    RevisionGone,
    ServerFailure,
    TimedOut,
    Unavailable,
)

#: The metadata key of google.rpc.Status, as grpcio-status writes it.
_DETAILS_KEY = "grpc-status-details-bin"

_CLASSES: dict[grpc.StatusCode, type[PilferError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.OUT_OF_RANGE: RevisionGone,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # A node that stops cancels the calls it still has; a cancel of our own never comes here as a status.
    grpc.StatusCode.CANCELLED: Unavailable,
}


class RpcStatus(Protocol):
    """What errors of grpc and of grpc.aio have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


#: How grpc begins the message of a connection that could not be made.
_NOT_CONNECTED = "failed to connect to all addresses"


#: Of the google.rpc.ErrorInfo that a node puts beside UNAVAILABLE, and beside no answer that is grpc's own.
_DOMAIN = "pilfer.unavailable"
_REASON_STORE = "STORE_UNAVAILABLE"


def error_of(status: RpcStatus, target: object, *, overdue: str) -> PilferError:
    """The client's error for a failed call to a target. overdue: what to say of a deadline that passed, for which grpc
    has various words of its own."""
    code = status.code()
    message = overdue if code is grpc.StatusCode.DEADLINE_EXCEEDED else status.details() or code.name
    if message.startswith(_NOT_CONNECTED):
        message = f"no node answers at {target}: {message.rpartition('error: ')[2]}"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(message, _violations(status))
    if code is grpc.StatusCode.UNAVAILABLE:
        reason = _reason(status)
        if reason == _REASON_STORE:
            return NoQuorum(message, code=code.name)
        return Unavailable(message, code=code.name, is_from_node=reason is not None)
    return _CLASSES.get(code, ServerFailure)(message, code=code.name)


def _violations(status: RpcStatus) -> list[FieldViolation]:
    bad_request = error_details_pb2.BadRequest()
    found: list[FieldViolation] = []
    for detail in _details(status):
        if detail.Unpack(bad_request):
            found += [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
    return found


def _reason(status: RpcStatus) -> str | None:
    """Why a node says that it is unavailable; None: no node says so."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in _details(status) if detail.Unpack(info) and info.domain == _DOMAIN), None)


def _details(status: RpcStatus) -> Iterator[any_pb2.Any]:
    for key, value in status.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            yield from status_pb2.Status.FromString(value).details
