"""Output that can be computed: what `acts.c` writes, and whether what was read is that. Pure.

Every line has 64 bytes and says whose it is: task, attempt, stream, its number. So a byte that is wrong, missing, told
twice or of another attempt shows, whatever the length, and without keeping any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pilfer import LogChunk, Stream

LINE_BYTES = 64


def lines(task_id: str, attempt: int, stream: Stream, first: int, count: int) -> bytes:
    """So many lines from the first on, as the task writes them."""
    head = f"{task_id} {attempt % 10_000:04d} {stream[3]} "
    return "".join([f"{head}{number:019d}\n" for number in range(first, first + count)]).encode()


def expected(task_id: str, attempt: int, stream: Stream, start: int, end: int) -> bytes:
    """Bytes start up to and without end."""
    first = start // LINE_BYTES
    last = -(-end // LINE_BYTES)
    return lines(task_id, attempt, stream, first, last - first)[start - first * LINE_BYTES : end - first * LINE_BYTES]


@dataclass(slots=True)
class Heard:
    """One stream of one attempt, as it was read from its beginning."""

    task_id: str
    attempt: int
    stream: Stream
    #: Offset of the next byte.
    end: int = 0
    missing_bytes: int = 0
    flaw: str = ""

    def take(self, data: bytes) -> None:
        """The next bytes."""
        wanted = expected(self.task_id, self.attempt, self.stream, self.end, self.end + len(data))
        if data != wanted and not self.flaw:
            at = next(index for index, (one, other) in enumerate(zip(data, wanted, strict=True)) if one != other)
            self.flaw = (
                f"byte {self.end + at} of {self.stream} of attempt {self.attempt} is wrong: "
                f"{data[at : at + LINE_BYTES]!r} instead of {wanted[at : at + LINE_BYTES]!r}"
            )
        self.end += len(data)

    def skip(self, count: int) -> None:
        """Bytes that were written and are not kept."""
        self.missing_bytes += count
        self.end += count

    @property
    def kept(self) -> int:
        return self.end - self.missing_bytes


@dataclass(slots=True)
class Reading:
    """All that was heard of one task's output."""

    task_id: str
    streams: dict[tuple[int, Stream], Heard] = field(default_factory=dict)
    #: Words that came in place of data, by attempt.
    notices: dict[int, list[str]] = field(default_factory=dict)

    def take(self, chunk: LogChunk) -> None:
        if chunk.missing_bytes:
            self.of(chunk.attempt, chunk.stream).skip(chunk.missing_bytes)
        elif chunk.notice:
            self.notices.setdefault(chunk.attempt, []).append(chunk.notice)
        elif chunk.data:
            self.of(chunk.attempt, chunk.stream).take(chunk.data)

    def of(self, attempt: int, stream: Stream) -> Heard:
        """What was heard of it; nothing so far, maybe."""
        return self.streams.setdefault((attempt, stream), Heard(self.task_id, attempt, stream))

    def flaws(self) -> Iterator[str]:
        """LogIsWhatWasWritten, of every byte that was heard."""
        return (heard.flaw for heard in self.streams.values() if heard.flaw)


def flaws_of_whole(reading: Reading, attempt: int, sizes: dict[Stream, int], limit_bytes: int) -> list[str]:
    """What is wrong with the log of an attempt that wrote so much and was read to its end: LogIsWhatWasWritten, and
    the rule of truncation (each stream is sure of half of the limit, and has what the other leaves)."""
    found = list(reading.flaws())
    heard = {stream: reading.of(attempt, stream) for stream in sizes}
    for stream, size in sizes.items():
        one = heard[stream]
        if one.end != size:
            found.append(f"{stream} of attempt {attempt} has {one.end} bytes, {size} were written")
        others = sum(other for name, other in sizes.items() if name is not stream)
        if one.missing_bytes and size <= max(limit_bytes // 2, limit_bytes - others):
            found.append(
                f"{stream} of attempt {attempt} lacks {one.missing_bytes} of {size} bytes, within the limit of "
                f"{limit_bytes}"
            )
    kept = sum(one.kept for one in heard.values())
    if kept > limit_bytes:
        found.append(f"{kept} bytes of attempt {attempt} are kept, beyond the limit of {limit_bytes}")
    return found


def flaws_of_part(reading: Reading, attempt: int, sizes: dict[Stream, int]) -> list[str]:
    """The same of an attempt that was ended from outside: any beginning will do."""
    found = list(reading.flaws())
    for stream, size in sizes.items():
        one = reading.of(attempt, stream)
        if one.end > size:
            found.append(f"{stream} of attempt {attempt} has {one.end} bytes, at most {size} could be written")
    return found
