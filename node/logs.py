"""Output of tasks: two plain files per attempt, written by the task itself, read by whoever asks.

The node opens the files and passes them down; no byte goes through Python on its way in, and what was written
survives every process here. Layout: `logs/SHARD/TASK_ID.ATTEMPT.stdout` and `.stderr`, SHARD the last two hex digits
of the id (random in a UUIDv7, so that no directory grows large).

Files are opened without following links. A task holds descriptors that only append. It may also open them again by
/dev/stdout and /dev/stderr, as scripts do (`echo oops >/dev/stderr`), and so the files may be written, not read, by
everybody; the 0700 directories keep everybody else away. Opened so with `>`, what was written before is cut off, as
with any other file: `>>` keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STREAMS = ("stdout", "stderr")

#: Size of one chunk on the wire (design, section 7).
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """Descriptors for one attempt; the owner closes them once they are passed down."""

    stdout: int
    stderr: int

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)


class LogStore:
    """The log files of this host."""

    def __init__(self, root: Path) -> None:
        """Makes the directories; raises OSError."""
        self._root = root
        there = {entry.name for entry in os.scandir(root)}
        for shard in (f"{number:02x}" for number in range(256)):
            if shard not in there:
                (root / shard).mkdir(mode=0o700)

    def path(self, task_id: str, attempt: int, stream: str) -> Path:
        # One join: pathlib's own operators cost more than the rest of the opening.
        return Path(f"{self._root}/{task_id[-2:]}/{task_id}.{attempt}.{stream}")

    def create(self, task_id: str, attempt: int) -> OpenedLog:
        """Makes the files of an attempt, empty. Raises OSError (no space, no descriptors) and leaves nothing open."""
        stdout = self._open(self.path(task_id, attempt, "stdout"))
        try:
            return OpenedLog(stdout, self._open(self.path(task_id, attempt, "stderr")))
        except OSError:
            os.close(stdout)
            raise

    @staticmethod
    def _open(path: Path) -> int:
        # An attempt that is adopted after an unknown claim may find its own files; it has written nothing yet.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        os.fchmod(fd, 0o602)
        return fd

    def find(self, task_id: str, attempt: int, stream: str) -> LogReader | None:
        """A reader of one stream, or None where this host has no such file."""
        try:
            fd = os.open(self.path(task_id, attempt, stream), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return LogReader(fd)

    def remove(self, task_id: str) -> None:
        """Removes every attempt's files of a task; quiet where there are none."""
        for path in self._of(task_id):
            path.unlink(missing_ok=True)

    def _of(self, task_id: str) -> Iterator[Path]:
        return self._root.joinpath(task_id[-2:]).glob(f"{task_id}.*")

    def task_ids(self) -> set[str]:
        """Every task that has files here: the slow comparison against the records."""
        found: set[str] = set()
        for shard in os.scandir(self._root):
            found.update(entry.name.partition(".")[0] for entry in os.scandir(shard.path))
        return found


class LogReader:
    """Reads one file forward; at its end `read` gives b"" and may give more later."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        data = os.pread(self._fd, size, self._offset)
        if not data and os.fstat(self._fd).st_size < self._offset:
            self._offset = 0  # the task cut its own output off: what it wrote since is new
            data = os.pread(self._fd, size, 0)
        self._offset += len(data)
        return data

    def seek_to_last_lines(self, lines: int) -> None:
        """Moves to the start of the last `lines` lines; a last line without newline counts as one."""
        end = os.fstat(self._fd).st_size
        self._offset = self._start_of_last(end, lines) if lines > 0 else end

    def _start_of_last(self, end: int, lines: int) -> int:
        position, wanted = end, lines
        if end and os.pread(self._fd, 1, end - 1) == b"\n":
            wanted += 1  # the newline that ends the last line does not begin another one
        while position > 0:
            size = min(CHUNK_BYTES, position)
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
        return 0

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
