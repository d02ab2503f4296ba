"""A callback that fails is told; an event that grpc has for a loop that is closed is no failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from node import loop_errors

CLOSED = RuntimeError("Event loop is closed")


class PollerCompletionQueue:
    """Named as grpc's."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def handle_events(self) -> None:
        raise self._error


def _other() -> None:
    raise CLOSED


@pytest.mark.parametrize(
    ("callback", "is_told"),
    [
        (PollerCompletionQueue(CLOSED).handle_events, False),
        (PollerCompletionQueue(RuntimeError("a defect")).handle_events, True),
        (PollerCompletionQueue(ValueError("closed")).handle_events, True),
        (_other, True),
    ],
)
async def test_only_the_event_of_a_closed_loop_is_kept_quiet(
    caplog: pytest.LogCaptureFixture, callback: Callable[[], None], is_told: bool
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_errors.handle)
    with caplog.at_level(logging.INFO):
        loop.call_soon(callback)
        await asyncio.sleep(0)
        assert ("Traceback" in caplog.text) == is_told


def test_a_closed_loop_says_so_in_these_words() -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    with pytest.raises(RuntimeError, match=str(CLOSED)):
        closed.call_soon_threadsafe(print)
