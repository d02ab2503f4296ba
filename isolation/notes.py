"""What the PID 1s of the sandboxes write down for the spawner: one note each, on a board that all of them share.

A note says when the command was executed, and then how it ended or which step failed. The truth is on the board, in
memory that outlives PID 1, so that PID 1 can end at once: it waits for no room in a socket, and the spawner is not
woken for what it learns from the end of the process anyway. Only the start of a command rings, with the number of the
note, on the report socket; a ring that comes late, or for a note that another sandbox has by now, does no harm, since
whoever hears it looks at the board.

The board lies in `_sandbox.c`, in the pages that hold the fence deadline. What writes there is our own code before it
executes the command; a task cannot reach it (it is not inherited over exec, and PID 1 is not dumpable).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum

from isolation import _sandbox as sys_
from isolation.errors import StepFailed


class Kind(IntEnum):
    STEP_FAILED = 1
    EXEC_FAILED = 2
    ENDED = 3
    FENCED = 4


@dataclass(frozen=True, slots=True)
class Notice:
    """How it came to an end, as PID 1 saw it."""

    kind: int
    #: Index of the failed step or tried path; wait status.
    a: int
    #: errno; 1 if SIGTERM from outside was passed on before the command ended.
    b: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Note:
    #: Unix seconds; None: the command was not executed.
    started_at: float | None
    #: None: PID 1 has said nothing yet; of one that is gone: it was killed.
    notice: Notice | None


def read(number: int) -> Note:
    started_ns, kind, a, b, at_ns = sys_.read_note(number)
    return Note(started_ns / 1e9 if started_ns else None, Notice(kind, a, b, at_ns / 1e9) if kind else None)


class FreeNotes:
    """Numbers of notes that no sandbox has; the lowest go first, so that few pages are ever touched."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._used = 0

    def take(self) -> int:
        """Raises StepFailed."""
        if self._free:
            return self._free.pop()
        if self._used == sys_.NOTES:
            raise StepFailed("notes", errno.EAGAIN, "", f"{sys_.NOTES} sandboxes are running, and that is the most")
        self._used += 1
        return self._used - 1

    def give_back(self, number: int) -> None:
        self._free.append(number)
