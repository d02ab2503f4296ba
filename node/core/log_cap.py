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
#: A file whose blocks exceed its share by less is left alone: they hold the file system's own tables too.
BLOCKS_SLACK_BYTES = 1024 * 1024


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


def is_beyond_share(allocated: int, share: int) -> bool:
    """Whether a file has more on the disk than it may, whatever its length says: a task that writes into its own
    holes, or reserves room behind the end of its output."""
    return allocated > share + max(BLOCKS_SLACK_BYTES, share // _SPARE_PART)


def _down(value: int, align: int) -> int:
    return value - value % align


def _up(value: int, align: int) -> int:
    return value + -value % align
