"""Reads one log file forward, and tells what is missing of it instead of showing zeros.

The middle of a long output is a hole in its file (`node/core/log_cap.py`), and a hole reads as zeros. So before a read
the file system is asked where the next data begin and how far they go (lseek(2), SEEK_DATA and SEEK_HOLE), and what
lies between is told as missing. A hole that a task makes itself, by truncate(2) or by writing at an offset, cannot be
told from one of ours and is told the same way.

The interleaving that matters: data are there, then the hole is punched, then they are read as zeros. So the question is
asked again after the read, and where the span is not all data any more, what was read is thrown away and the reader
starts over. The kernel drops the cached pages, frees the blocks, and only then can a read give zeros, all under the
file's lock, for which the second question waits: a read that gave zeros is always followed by an answer that tells
of the hole. A second round finds a hole that begins where it stands, or less to read; so each round makes progress.

Where a file system knows no holes, it calls everything data: nothing is punched there either.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

#: Size of one chunk on the wire (design, section 7).
CHUNK_BYTES = 64 * 1024


class Piece(NamedTuple):
    """What a read gave. Neither missing nor data: the end, for now."""

    #: Bytes before the data that were written and are not kept.
    missing_bytes: int
    #: Where the data begin in the stream.
    offset: int
    data: bytes

    @property
    def is_empty(self) -> bool:
        return not self.data and not self.missing_bytes


class LogReader:
    """Reads one file forward; at its end `read` gives an empty piece, and may give more later."""

    def __init__(self, fd: int) -> None:
        """fd: open for reading; closed by `close`."""
        self._fd = fd
        self._offset = 0
        self._end: int | None = None

    def end_here(self) -> None:
        """What is written from now on is not read: the file of a task that writes on has no end."""
        self._end = os.fstat(self._fd).st_size

    def seek(self, offset: int) -> None:
        """Goes on at this byte; where the file has become shorter than that, at its beginning."""
        self._offset = offset

    def read(self, size: int = CHUNK_BYTES) -> Piece:
        """Either what is missing from here on, without data, or the next data, at most `size` bytes."""
        length = os.fstat(self._fd).st_size
        if length < self._offset:
            self._offset = 0  # the task cut its own output off: what it wrote since is new
        end = length if self._end is None else min(length, self._end)
        while self._offset < end:
            start = self._next_data(end)
            if start > self._offset:
                missing, self._offset = start - self._offset, start
                return Piece(missing, start, b"")
            until = min(self._offset + size, self._next_hole(end), end)
            data = os.pread(self._fd, until - self._offset, self._offset)
            if data and self._is_data(self._offset + len(data)):
                offset, self._offset = self._offset, self._offset + len(data)
                return Piece(0, offset, data)
            # Punched while it was read, or cut off by the task.
            end = min(end, os.fstat(self._fd).st_size)
        return Piece(0, self._offset, b"")

    def _next_data(self, end: int) -> int:
        """Where the data at or after this offset begin; `end` where there are none."""
        return min(end, self._seek(self._offset, os.SEEK_DATA, end))

    def _next_hole(self, end: int) -> int:
        return self._seek(self._offset, os.SEEK_HOLE, end)

    def _is_data(self, until: int) -> bool:
        """Whether everything from this offset up to `until` is data now."""
        return self._next_data(until) == self._offset and self._next_hole(until) >= until

    def _seek(self, offset: int, how: int, otherwise: int) -> int:
        try:
            return os.lseek(self._fd, offset, how)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from there on, or the file has become shorter
                return otherwise
            raise

    def seek_to_last_lines(self, lines: int) -> None:
        """Moves to the start of the last `lines` lines; a last line without newline counts as one. Where fewer are
        kept after what is missing, to what is missing."""
        end = os.fstat(self._fd).st_size
        self._offset = self._start_of_last(end, lines) if lines > 0 else end

    def _start_of_last(self, end: int, lines: int) -> int:
        hole, first = self._last_hole(end)
        position, wanted = end, lines
        if end > first and os.pread(self._fd, 1, end - 1) == b"\n":
            wanted += 1  # the newline that ends the last line does not begin another one
        while position > first:
            size = min(CHUNK_BYTES, position - first)
            block = os.pread(self._fd, size, position - size)
            count = block.count(b"\n")
            if count < wanted:
                wanted -= count
                position -= size
                continue
            index = len(block)
            for _ in range(wanted):
                index = block.rindex(b"\n", 0, index)
            return position - size + index + 1
        return hole

    def _last_hole(self, end: int) -> tuple[int, int]:
        """Where the last hole begins, and the data after it; zeros where there is none."""
        hole = first = position = 0
        while position < end:
            data = min(end, self._seek(position, os.SEEK_DATA, end))
            if data > position:
                hole, first = position, data
            position = self._seek(data, os.SEEK_HOLE, end) if data < end else end
        return hole, first

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
