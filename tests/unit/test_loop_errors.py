"""A callback that fails is told; an event that grpc has for a loop that is closed is no failure."""

from __future__ import annotations

import asyncio
import logging

import pytest

from node import loop_errors


class PollerCompletionQueue:
    """Named as grpc's."""

    def __init__(self, closed: asyncio.AbstractEventLoop) -> None:
        self._closed = closed

    def handle_events(self) -> None:
        self._closed.call_soon_threadsafe(print)


def _broken() -> None:
    raise RuntimeError("a defect")


async def test_only_the_event_of_a_closed_loop_is_kept_quiet(caplog: pytest.LogCaptureFixture) -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_errors.handle)
    with caplog.at_level(logging.INFO):
        loop.call_soon(PollerCompletionQueue(closed).handle_events)
        await asyncio.sleep(0)
        assert caplog.text == ""
        loop.call_soon(_broken)
        await asyncio.sleep(0)
        assert "a defect" in caplog.text
