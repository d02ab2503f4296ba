"""What an UNAVAILABLE of a node says of itself, and what the client makes of it: the two tables agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import pytest

from etcd.errors import OutcomeUnknown, StoreUnavailable
from node.api.errors import ApiError, answers
from pilfer import NoQuorum, PilferError, ResourceExhausted, Unavailable
from pilfer._status import error_of
from pilfer.errors import NotFound


class Aborted(Exception):  # noqa: N818  (as grpc.aio ends a method)
    """The call has its status."""


@dataclass(slots=True)
class Context:
    """A call's context, and then the status that its caller gets."""

    status: grpc.StatusCode = grpc.StatusCode.OK
    words: str = ""
    metadata: tuple[tuple[str, bytes], ...] = ()

    async def abort(self, code: grpc.StatusCode, words: str, metadata: tuple[tuple[str, bytes], ...]) -> NoReturn:
        self.status, self.words, self.metadata = code, words, metadata
        raise Aborted

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return self.words

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self.metadata


@pytest.mark.parametrize(
    ("error", "kind", "is_from_node"),
    [
        (StoreUnavailable("nothing could be read"), NoQuorum, True),
        (OutcomeUnknown("no answer"), NoQuorum, True),
        (ApiError(grpc.StatusCode.UNAVAILABLE, "nobody signs"), Unavailable, True),
        (ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"), ResourceExhausted, None),
        (ApiError(grpc.StatusCode.NOT_FOUND, "no task"), NotFound, None),
    ],
)
async def test_what_a_node_could_not_do_is_told_from_no_node(
    error: Exception, kind: type[PilferError], is_from_node: bool | None
) -> None:
    @answers
    async def method(_self: None, _request: None, _context: Any) -> None:
        raise error

    context = Context()
    with pytest.raises(Aborted):
        await method(None, None, context)
    found = error_of(context, "unix:/node.sock", overdue="")
    assert type(found) is kind
    assert getattr(found, "is_from_node", None) is is_from_node


def test_a_connection_that_failed_carries_nothing() -> None:
    found = error_of(Context(grpc.StatusCode.UNAVAILABLE, "Connection reset"), "unix:/node.sock", overdue="")
    assert type(found) is Unavailable
    assert not found.is_from_node
