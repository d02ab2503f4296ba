"""Output that can be computed: what is right passes, and a byte that is wrong, missing or told twice does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pilfer import Attempt, LogChunk, Outcome, Reason, Stream, TaskSpec
from tests.chaos.acts import NO_ROOM, Act
from tests.chaos.followers import flaws_of_attempt
from tests.chaos.pattern import LINE_BYTES, Reading, expected, flaws_of_part, flaws_of_whole, lines

ID = "01890000-0000-7000-8000-000000000001"
SIZES = {Stream.STDOUT: 40 * LINE_BYTES, Stream.STDERR: 2 * LINE_BYTES}
OUT = lines(ID, 1, Stream.STDOUT, 0, 40)
ERR = lines(ID, 1, Stream.STDERR, 0, 2)
LIMIT = 1 << 20


def read(*chunks: LogChunk) -> Reading:
    reading = Reading(ID)
    for chunk in chunks:
        reading.take(chunk)
    return reading


def out(data: bytes, attempt: int = 1) -> LogChunk:
    return LogChunk(Stream.STDOUT, data, attempt)


def err(data: bytes) -> LogChunk:
    return LogChunk(Stream.STDERR, data, 1)


def missing(count: int) -> LogChunk:
    return LogChunk(Stream.STDOUT, b"", 1, notice="gone", missing_bytes=count)


def test_a_line_has_its_length_and_says_whose_it_is() -> None:
    assert len(OUT) == 40 * LINE_BYTES
    assert (
        len(set(OUT.splitlines()) | set(ERR.splitlines()) | set(lines(ID, 2, Stream.STDOUT, 0, 40).splitlines())) == 82
    )


def test_any_slice_can_be_computed() -> None:
    assert all(
        expected(ID, 1, Stream.STDOUT, start, end) == OUT[start:end]
        for start in (0, 1, 63, 64, 130)
        for end in (start, start + 1, 200, 64 * 40)
    )


@pytest.mark.parametrize("cut", [1, 64, 100, 64 * 39 + 1])
def test_a_whole_log_passes_in_any_pieces(cut: int) -> None:
    assert flaws_of_whole(read(out(OUT[:cut]), err(ERR), out(OUT[cut:])), 1, SIZES, LIMIT) == []


def test_what_is_too_long_may_lack_its_middle() -> None:
    reading = read(out(OUT[:640]), missing(640), out(OUT[1280:]), err(ERR))
    assert flaws_of_whole(reading, 1, SIZES, limit_bytes=2100) == []


def change(data: bytes) -> bytes:
    return data[:777] + bytes([data[777] ^ 1]) + data[778:]


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([out(change(OUT)), err(ERR)], "byte 777"),
        ([out(OUT[:-1]), err(ERR)], "2559 bytes, 2560 were written"),
        ([out(OUT), err(ERR), err(b"more")], "is wrong"),
        ([out(OUT[:640]), out(OUT[576:]), err(ERR)], "byte 701 of stdout"),
        ([out(lines(ID, 2, Stream.STDOUT, 0, 40)), err(ERR)], "of attempt 1 is wrong"),
        ([out(ERR), err(ERR)], "is wrong"),
        ([out(OUT[:640]), missing(640), out(OUT[1280:]), err(ERR)], "within the limit"),
        ([out(OUT)], "stderr of attempt 1 has 0 bytes"),
    ],
)
def test_what_is_wrong_is_told(chunks: list[LogChunk], words: str) -> None:
    found = flaws_of_whole(read(*chunks), 1, SIZES, LIMIT)
    assert any(words in flaw for flaw in found), found


def test_more_than_the_limit_is_told() -> None:
    assert any("beyond the limit" in flaw for flaw in flaws_of_whole(read(out(OUT), err(ERR)), 1, SIZES, 2000))


def test_of_an_attempt_that_was_ended_any_beginning_will_do() -> None:
    assert flaws_of_part(read(out(OUT[:100])), 1, SIZES) == []
    assert flaws_of_part(read(out(change(OUT))), 1, SIZES)
    assert flaws_of_part(read(out(lines(ID, 1, Stream.STDOUT, 0, 41))), 1, SIZES)


def _attempt(reason: Reason, code: int | None = None) -> Attempt:
    return Attempt(1, "node", "host", outcome=Outcome(reason, exit_code=code))


@pytest.mark.parametrize(
    ("attempt", "is_judged"),
    [
        (_attempt(Reason.EXITED, 0), bool),
        (_attempt(Reason.EXITED, NO_ROOM), lambda found: not found),
        (_attempt(Reason.NODE_LOST), lambda found: not found),
    ],
)
def test_who_ended_by_itself_has_written_everything(attempt: Attempt, is_judged: Callable[[list[str]], bool]) -> None:
    act = Act("writes", TaskSpec("acts"), written=tuple(SIZES.items()))
    assert is_judged(flaws_of_attempt(act, attempt, read(out(OUT[:100])), limit_bytes=LIMIT))
