"""gRPC codes and google.rpc details: the one table of what a client is told when something goes wrong.

Service methods raise `ApiError` or let an error of the store pass; the decorators here turn both into a status.
Nothing else in the node chooses a gRPC code.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status.rpc_status import GRPC_DETAILS_METADATA_KEY

from etcd.errors import Compacted, NoSpace, OutcomeUnknown, RecordCorrupt, RequestTooLarge, StoreUnavailable
from node.core.validate import Violation

log = logging.getLogger(__name__)

#: Errors of the store -> (code, what it means and what to do). The first class that fits decides.
STORE_CODES: tuple[tuple[type[Exception], grpc.StatusCode, str], ...] = (
    (
        OutcomeUnknown,
        grpc.StatusCode.UNAVAILABLE,
        "etcd did not answer in time; it may or may not have been stored. Repeat the call with the same ids",
    ),
    (StoreUnavailable, grpc.StatusCode.UNAVAILABLE, "etcd does not answer (down, or no quorum). Try again"),
    (NoSpace, grpc.StatusCode.RESOURCE_EXHAUSTED, "the cluster's database is full; it is being tidied up. Try again"),
    (RequestTooLarge, grpc.StatusCode.INVALID_ARGUMENT, "a task is larger than the store takes"),
    (Compacted, grpc.StatusCode.OUT_OF_RANGE, "that revision is gone; list again and watch from there"),
    (RecordCorrupt, grpc.StatusCode.DATA_LOSS, "a record cannot be read"),
)


#: google.rpc.ErrorInfo says with every UNAVAILABLE that a node of ours gave it, and why; a connection that failed has
#: the same code and no details. Clients go by domain and reason (`pilfer/_status.py`). Not the domain of the refusals
#: of newcomers: a node that joins takes any reason of that for final.
UNAVAILABLE_DOMAIN = "pilfer.unavailable"
REASON_STORE = "STORE_UNAVAILABLE"
REASON_OTHER = "NOT_NOW"


class ApiError(Exception):
    """An answer other than OK: its code, a sentence for people and typed details for programs."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Sequence[Message] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


def invalid(violations: Iterable[Violation]) -> ApiError:
    """INVALID_ARGUMENT with every field that is wrong (google.rpc.BadRequest)."""
    found = list(violations)
    bad = error_details_pb2.BadRequest()
    for violation in found:
        bad.field_violations.add(field=violation.field, description=violation.message)
    shown = "; ".join(f"{v.field}: {v.message}" for v in found[:3])
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return ApiError(grpc.StatusCode.INVALID_ARGUMENT, f"{shown}{more}", [bad])


def not_found(task_id: str) -> ApiError:
    return ApiError(
        grpc.StatusCode.NOT_FOUND,
        f"no task {task_id}: it was never submitted here, or it ended long ago and was deleted by retention",
        [error_details_pb2.ResourceInfo(resource_type="task", resource_name=task_id)],
    )


def already_exists(task_id: str) -> ApiError:
    return ApiError(
        grpc.StatusCode.ALREADY_EXISTS,
        f"task {task_id} is there already with another spec; nothing was changed. Choose another id",
        [error_details_pb2.ResourceInfo(resource_type="task", resource_name=task_id)],
    )


def precondition(kind: str, subject: str, message: str) -> ApiError:
    """FAILED_PRECONDITION: something else has to be done first (google.rpc.PreconditionFailure). kind: a word for
    programs; subject: what it is about; message: what is the case and what to do."""
    detail = error_details_pb2.PreconditionFailure()
    detail.violations.add(type=kind, subject=subject, description=message)
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, message, [detail])


def node_not_found(given: str) -> ApiError:
    return ApiError(
        grpc.StatusCode.NOT_FOUND,
        f"no node is called {given[:64]!r}, and no node id or host id begins with that: node nodes lists them",
        [error_details_pb2.ResourceInfo(resource_type="node", resource_name=given)],
    )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    api_error = error if isinstance(error, ApiError) else _of_store(error)
    if api_error is None:
        log.exception("internal error in an API call")
        api_error = ApiError(grpc.StatusCode.INTERNAL, f"internal error: {error!r}; this is a defect of Pilfer")
    details = list(api_error.details)
    if api_error.code is grpc.StatusCode.UNAVAILABLE:
        is_of_store = isinstance(error, StoreUnavailable | OutcomeUnknown)
        reason = REASON_STORE if is_of_store else REASON_OTHER
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain=UNAVAILABLE_DOMAIN))
    status = status_pb2.Status(code=api_error.code.value[0], message=api_error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    metadata = ((GRPC_DETAILS_METADATA_KEY, status.SerializeToString()),) if details else ()
    await context.abort(api_error.code, api_error.message, metadata)
    raise AssertionError("abort returns never")


def _of_store(error: Exception) -> ApiError | None:
    for kind, code, meaning in STORE_CODES:
        if isinstance(error, kind):
            return ApiError(code, f"{meaning} ({error})")
    return None


Self = TypeVar("Self")
Request = TypeVar("Request")
Response = TypeVar("Response")


def answers(
    method: Callable[[Self, Request, Any], Awaitable[Response]],
) -> Callable[[Self, Request, Any], Awaitable[Response]]:
    """Wraps a unary method: its errors become statuses."""

    @functools.wraps(method)
    async def wrapped(self: Self, request: Request, context: Any) -> Response:
        try:
            return await method(self, request, context)
        except Exception as error:  # the top of a call: every error reaches the caller
            await _abort(context, error)

    return wrapped


def streams(
    method: Callable[[Self, Request, Any], AsyncGenerator[Response, None]],
) -> Callable[[Self, Request, Any], AsyncGenerator[Response, None]]:
    """Wraps a streaming method: its errors become statuses, and a client that goes away ends it at once."""

    @functools.wraps(method)
    async def wrapped(self: Self, request: Request, context: Any) -> AsyncGenerator[Response, None]:
        try:
            async with contextlib.aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:  # the top of a call: every error reaches the caller
            await _abort(context, error)

    return wrapped
