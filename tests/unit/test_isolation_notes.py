"""The board on which PID 1s write: which note is whose, and what one says."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence

import pytest

from isolation import _sandbox as sys_
from isolation import notes
from isolation.errors import StepFailed
from isolation.notes import FreeNotes, Kind, Notice

#: Descriptor of no file: these children ring nowhere.
NOWHERE = 999


@pytest.fixture(autouse=True)
def board() -> None:
    sys_.set_deadline(0)


def run(number: int, calls: Sequence[tuple[int, ...]], command: bytes = b"/bin/true") -> int:
    """The wait status of a PID 1 without any namespace."""
    pid = sys_.spawn(0, -1, [*calls], [command], [command], [], NOWHERE, number)
    return os.waitpid(pid, 0)[1]


def test_the_lowest_notes_go_first() -> None:
    free = FreeNotes()
    assert [free.take() for _ in range(3)] == [0, 1, 2]
    free.give_back(1)
    assert [free.take(), free.take()] == [1, 3]


def test_there_are_so_many_and_no_more() -> None:
    free = FreeNotes()
    taken = [free.take() for _ in range(sys_.NOTES)]
    assert len(set(taken)) == sys_.NOTES
    with pytest.raises(StepFailed) as failed:
        free.take()
    assert failed.value.step == "notes"
    free.give_back(taken[7])
    assert free.take() == taken[7]


@pytest.mark.parametrize("number", [sys_.NOTES, 2**32 - 1])
def test_a_note_that_is_not_on_the_board(number: int) -> None:
    with pytest.raises(ValueError, match="no note"):
        notes.read(number)
    with pytest.raises(ValueError, match="no note"):
        run(number, [])


def test_a_step_that_failed() -> None:
    bad_close = (0, sys_.SYS_close_range, 5, 4, 0)
    run(sys_.NOTES - 1, [(0, sys_.SYS_close_range, 1000, 1000, 0), bad_close])
    note = notes.read(sys_.NOTES - 1)
    assert note.started_at is None
    assert note.notice is not None
    assert (note.notice.kind, note.notice.a, os.strerror(note.notice.b)) == (Kind.STEP_FAILED, 1, "Invalid argument")


def test_a_command_that_is_not_there() -> None:
    run(3, [], b"/no/such/command")
    note = notes.read(3)
    assert note.started_at is None
    assert note.notice is not None
    assert (note.notice.kind, note.notice.a, os.strerror(note.notice.b)) == (
        Kind.EXEC_FAILED,
        0,
        "No such file or directory",
    )


def test_one_that_was_killed_says_nothing_on_a_note_that_was_used_before() -> None:
    run(3, [], b"/no/such/command")
    readable, writable = os.pipe2(os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.write(writable, bytes(65536)):
            pass
    os.set_blocking(writable, True)
    waits: list[tuple[int | bytes, ...]] = [(0, sys_.SYS_write, writable, b"x", 1)]
    pid = sys_.spawn(0, -1, [*waits], [b"x"], [b"x"], [], NOWHERE, 3)
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert notes.read(3) == notes.Note(None, None)
    os.close(readable)
    os.close(writable)


def test_notes_of_others_are_left_alone() -> None:
    run(3, [], b"/no/such/command")
    before = notes.read(3)
    run(4, [(0, sys_.SYS_close_range, 5, 4, 0)])
    assert notes.read(3) == before
    assert isinstance(notes.read(4).notice, Notice)
