"""What a reader of a log asks for when its stream broke: pure, so told in messages."""

from __future__ import annotations

import pytest

from pilfer._log_reading import LogReading
from pilfer.v1.tasks_pb2 import LOG_STREAM_STDERR, LOG_STREAM_STDOUT, LogRequest, LogResponse


def out(attempt: int, offset: int, data: bytes) -> LogResponse:
    return LogResponse(stream=LOG_STREAM_STDOUT, attempt=attempt, offset=offset, data=data)


def err(attempt: int, offset: int, data: bytes) -> LogResponse:
    return LogResponse(stream=LOG_STREAM_STDERR, attempt=attempt, offset=offset, data=data)


def told(attempt: int, notice: str) -> LogResponse:
    return LogResponse(attempt=attempt, notice=notice)


def gap(attempt: int, offset: int, missing: int) -> LogResponse:
    """What is missing right before that offset."""
    return LogResponse(
        stream=LOG_STREAM_STDOUT, attempt=attempt, offset=offset, missing_bytes=missing, notice="some are missing"
    )


FOLLOW = LogRequest(id="t", follow=True)
TAIL = LogRequest(id="t", follow=True, tail_lines=3)


@pytest.mark.parametrize(
    ("request_", "responses", "again"),
    [
        (FOLLOW, [], FOLLOW),
        (
            FOLLOW,
            [out(2, 0, b"12"), err(2, 0, b"1"), out(2, 2, b"34")],
            LogRequest(id="t", follow=True, attempt=2, stdout_offset=4, stderr_offset=1, through_attempts=True),
        ),
        # Of another attempt nothing was had yet, though it is known to have begun.
        (
            FOLLOW,
            [out(1, 0, b"12"), told(2, "begins")],
            LogRequest(id="t", follow=True, attempt=2, through_attempts=True),
        ),
        # A task that cuts its own output off begins again further ahead.
        (
            FOLLOW,
            [out(1, 0, b"12345"), out(1, 0, b"6")],
            LogRequest(id="t", follow=True, attempt=1, stdout_offset=1, through_attempts=True),
        ),
        # What is missing was told: it is asked for from behind it.
        (
            FOLLOW,
            [out(1, 0, b"12"), gap(1, 1002, 1000)],
            LogRequest(id="t", follow=True, attempt=1, stdout_offset=1002, through_attempts=True),
        ),
        # The last lines of a stream that gave nothing yet are asked for again, but not those of the next attempt.
        (
            TAIL,
            [out(1, 70, b"12")],
            LogRequest(id="t", follow=True, tail_lines=3, attempt=1, stdout_offset=72, through_attempts=True),
        ),
        (
            TAIL,
            [out(1, 70, b"12"), out(2, 0, b"1")],
            LogRequest(id="t", follow=True, attempt=2, stdout_offset=1, through_attempts=True),
        ),
        # One attempt alone, and what is not followed, does not go on to others.
        (
            LogRequest(id="t", follow=True, attempt=1),
            [out(1, 0, b"1")],
            LogRequest(id="t", follow=True, attempt=1, stdout_offset=1),
        ),
        (LogRequest(id="t"), [out(3, 0, b"1")], LogRequest(id="t", attempt=3, stdout_offset=1)),
    ],
)
def test_what_is_asked_for_again(request_: LogRequest, responses: list[LogResponse], again: LogRequest) -> None:
    reading = LogReading(request_)
    assert all(reading.take(response) for response in responses)
    assert reading.request() == again


def test_a_notice_is_news_once_for_each_attempt() -> None:
    reading = LogReading(FOLLOW)
    heard = [told(1, "waits"), told(1, "waits"), told(1, "left out"), told(2, "waits"), told(2, "waits")]
    assert [reading.take(response) for response in heard] == [True, False, True, True, False]


def test_what_is_missing_is_news_each_time() -> None:
    """A follower that is slow comes upon several gaps of the same size."""
    reading = LogReading(FOLLOW)
    assert [reading.take(gap(1, offset, 1000)) for offset in (1000, 3000)] == [True, True]
