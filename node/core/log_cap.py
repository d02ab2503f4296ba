"""How much of an attempt's output is kept, and which part goes when there is more. Pure.

The limit is for both streams together. Each is sure of half of it and may use what the other does not: a task that
writes to stdout alone has the whole limit for it. Of a stream that is over its share the middle goes: how it began
and how it ended are what people look for. What is cut out becomes a hole in the file (`node/running/log_watch.py`), so
that offsets stay what they were.

A cut takes more than it must (an eighth of the share), so that a stream that goes on is not cut at every block; so of
a long stream the first half of its share and the last three to four eighths are there.

Invariant: after the cuts that `cuts` asks for, the streams together keep at most the limit, and neither has lost
anything while it kept no more than half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Of its share, what a cut leaves free for what comes next.
_SPARE_PART = 8
#: Blocks that the length does not explain: fewer are the file system's own tables.
_TABLES_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file from `start` up to and without `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


NO_HOLE = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Output:
    """One stream's file: how long it is, and what was cut out of it before."""

    size: int
    hole: Span = NO_HOLE

    @property
    def kept(self) -> int:
        return self.size - min(self.hole.length, max(0, self.size - self.hole.start))


def shares(kept: Sequence[int], limit: int) -> list[int]:
    """What each of two streams may keep, given what they have (bytes). Each is sure of half."""
    return [max(limit // 2, limit - other) for other in reversed(kept)]


def cuts(outputs: Sequence[Output], limit: int, align: int) -> list[Span | None]:
    """For each of two streams: what to cut out of its file now; None: nothing. Spans begin and end at multiples of
    align (bytes; the file system's block or more), and cover the hole that is there."""
    allowed = shares([output.kept for output in outputs], limit)
    return [_cut(output, share, align) for output, share in zip(outputs, allowed, strict=True)]


def _cut(output: Output, share: int, align: int) -> Span | None:
    if output.kept <= share:
        return None
    start = _down(share // 2, align)
    if output.hole.length:
        start = min(start, output.hole.start)
    tail = max(0, share - share // _SPARE_PART - start)
    # At the start of a block: what is kept may be a block less, never more.
    end = min(_up(max(0, output.size - tail), align), _down(output.size, align))
    end = max(end, min(output.hole.end, _down(output.size, align)))
    return Span(start, end) if end > start else None


def hidden(output: Output, allocated: int) -> int:
    """What a file has on the disk (bytes) that its length and its hole do not explain: a task wrote into the hole, or
    reserved room behind its end."""
    return max(0, allocated - output.kept)


def is_hiding(hidden_bytes: int, share: int) -> bool:
    """Whether the hole is to be punched once more, which harms nobody."""
    return hidden_bytes > max(_TABLES_BYTES, share // _SPARE_PART)


def is_hoarding(hidden_bytes: int, share: int) -> bool:
    """Whether room must be behind the end that no file system reserves by itself (XFS: no more than there is before),
    so that something may be done that could cost such a task some output."""
    return hidden_bytes > share + _TABLES_BYTES


def _down(value: int, align: int) -> int:
    return value - value % align


def _up(value: int, align: int) -> int:
    return value + -value % align
