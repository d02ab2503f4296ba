"""What the tasks of a chaos run must come to, and that their program does nothing outside of a task."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from pilfer import CancelStep, Outcome, Reason, Status, Stream, Task, TaskSpec
from tests.chaos.acts import NO_ROOM, NOTHING_ASKED, Act, Acts, Asked, judge
from tests.chaos.forgetting import RETENTION_AGE_S, RETENTION_COUNT, Mark, may_be_forgotten
from tests.chaos.gate import Gate
from tests.chaos.ledger import Ledger
from tests.support.beats import Witness

ID = "01890000-0000-7000-8000-000000000001"
OTHER = "01890000-0000-7000-8000-000000000002"
ACT = Act("short", TaskSpec("beat"), beats=True)
HOG = Act("hog", TaskSpec("acts"), reason=Reason.OUT_OF_MEMORY, exit_code=None)
ONCE = Act("once", TaskSpec("beat", restart_on_node_loss=False), runs_max=1)
CANCELED = Asked(cancel_sent=True)


def task(status: Status, reason: Reason | None, code: int | None = None, *, used: int = 1) -> Task:
    return Task(ID, ACT.spec, status, attempt=used, attempts_used=used, outcome=Outcome(reason, exit_code=code))


EXITED = task(Status.COMPLETE, Reason.EXITED, 0)


@pytest.mark.parametrize(
    ("act", "end", "asked"),
    [
        (ACT, EXITED, NOTHING_ASKED),
        (ACT, EXITED, CANCELED),
        (ACT, task(Status.CANCELED, Reason.CANCELED), CANCELED),
        (HOG, task(Status.COMPLETE, Reason.OUT_OF_MEMORY), NOTHING_ASKED),
        (ONCE, task(Status.FAILED, Reason.NODE_LOST), NOTHING_ASKED),
    ],
)
def test_right_ends_pass(act: Act, end: Task, asked: Asked) -> None:
    assert judge(act, end, asked, disk_was_full=False) is None


@pytest.mark.parametrize(
    ("act", "end", "asked", "words"),
    [
        (ACT, task(Status.RUNNING, None), NOTHING_ASKED, "no end"),
        (ACT, task(Status.COMPLETE, Reason.EXITED, 1), NOTHING_ASKED, "should have ended as exited"),
        (ACT, task(Status.COMPLETE, Reason.SIGNALED), NOTHING_ASKED, "should have ended as exited"),
        (ACT, task(Status.COMPLETE, Reason.EXITED, NO_ROOM), NOTHING_ASKED, "should have ended as exited"),
        (HOG, EXITED, NOTHING_ASKED, "should have ended as out_of_memory"),
        (ACT, task(Status.CANCELED, Reason.CANCELED), NOTHING_ASKED, "nobody asked"),
        (ACT, EXITED, Asked(cancel_sent=True, canceled_in_queue=True), "while it was queued"),
        (ACT, task(Status.FAILED, Reason.NODE_LOST), NOTHING_ASKED, "run again"),
        (ONCE, task(Status.FAILED, Reason.EXITED), NOTHING_ASKED, "run again"),
        (ONCE, task(Status.COMPLETE, Reason.EXITED, 0, used=2), NOTHING_ASKED, "may use 1"),
    ],
)
def test_wrong_ends_are_told(act: Act, end: Task, asked: Asked, words: str) -> None:
    found = judge(act, end, asked, disk_was_full=False)
    assert found is not None
    assert words in found


def test_who_found_no_room_is_excused_where_a_disk_was_full() -> None:
    end = task(Status.COMPLETE, Reason.EXITED, NO_ROOM)
    writing = Act("big", TaskSpec("acts"), written=((Stream.STDOUT, 64),))
    assert judge(writing, end, NOTHING_ASKED, disk_was_full=True) is None
    assert judge(writing, end, NOTHING_ASKED, disk_was_full=False)
    assert judge(ACT, end, NOTHING_ASKED, disk_was_full=True)


def test_acts_are_drawn_from_the_seed_and_the_program_acts_in_tasks_alone(tmp_path: Path) -> None:
    acts = Acts(Witness(tmp_path))
    drawn = [[acts.draw(rng) for _ in range(200)] for rng in (random.Random(1), random.Random(1))]
    assert drawn[0] == drawn[1]
    assert len({act.kind for act in drawn[0]}) > 8
    acts.build()
    for args in (("hog", "1"), ("fork", "1", "1", "0"), ("write", "1", "0", "1", "0", "0")):
        done = subprocess.run([acts.program, *args], env={"PILFER_TASK_ID": ""}, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (99, b"")


class TestLedger:
    def test_what_is_acknowledged_is_open_until_its_end_is_seen(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        assert (ledger.all_acknowledged(), set(ledger.doubtful())) == (set(), {ID})
        ledger.acknowledged([ID])
        assert set(ledger.open()) == {ID}
        entry = ledger.ended(EXITED)
        assert entry is not None
        assert entry.act is ACT
        assert ledger.ended(EXITED) is None
        assert (ledger.open(), ledger.all_acknowledged(), ledger.beating_complete) == ({}, {ID}, [(ID, 1)])
        assert ledger.flaws == []

    def test_what_was_answered_comes_into_no_doubt_again(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        ledger.acknowledged([ID])
        ledger.cancel_sent(ID)
        ledger.tried([(ID, ACT)])
        assert (ledger.doubtful(), ledger.open()[ID].asked) == ({}, CANCELED)

    def test_a_wrong_end_is_a_flaw(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        ledger.acknowledged([ID])
        ledger.ended(task(Status.FAILED, Reason.NODE_LOST))
        assert any("SubmittedIsEnded" in flaw for flaw in ledger.flaws)

    def test_an_acknowledged_task_that_a_cancel_does_not_find_is_lost(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        ledger.cancel_answered(ID, CancelStep.NOT_FOUND)
        assert ledger.flaws == []
        ledger.acknowledged([ID])
        ledger.cancel_answered(ID, CancelStep.NOT_FOUND)
        assert any("NothingLost" in flaw for flaw in ledger.flaws)

    def test_a_cancel_in_the_queue_is_remembered_against_its_end(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        ledger.acknowledged([ID])
        ledger.cancel_sent(ID)
        ledger.cancel_answered(ID, CancelStep.CANCELED)
        ledger.ended(EXITED)
        assert any("while it was queued" in flaw for flaw in ledger.flaws)

    def test_what_is_not_found_is_lost_unless_retention_may_have_forgotten_it(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT), (OTHER, ACT)])
        ledger.acknowledged([ID, OTHER])
        now = ledger.mark()
        ledger.not_found(ID, Mark(now.at - RETENTION_AGE_S, 0), "not found")
        assert (ledger.flaws, ledger.forgotten_unseen_count, set(ledger.open())) == ([], 1, {OTHER})
        ledger.not_found(OTHER, now, "not found")
        assert any("NothingLost" in flaw for flaw in ledger.flaws)
        ledger.not_found(OTHER, now, "not found")
        assert (ledger.forgotten_unseen_count, ledger.flaws_in_all) == (2, 1)
        assert (ledger.acknowledged_count, ledger.lost()) == (2, set())

    def test_an_acknowledged_task_of_which_nothing_is_known_is_lost(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        ledger.refused([ID])
        ledger.acknowledged([ID])
        assert ledger.lost() == {ID}

    def test_a_repeated_submit_is_tried_once_and_its_end_may_lie_before_the_repetition(self) -> None:
        ledger = Ledger()
        ledger.tried([(ID, ACT)])
        first = ledger.doubtful()[ID].tried
        ledger.tried([(ID, ACT)])
        assert ledger.doubtful()[ID].tried == first
        assert ledger.doubtful()[ID].tried_again.at >= first.at
        assert not ledger.may_be_forgotten(first)


def test_retention_forgets_what_is_old_and_what_has_many_newer_ones() -> None:
    mark = Mark(100.0, 50)
    assert not may_be_forgotten(mark, now=99.0 + RETENTION_AGE_S, tried=50 + RETENTION_COUNT)
    assert may_be_forgotten(mark, now=100.0 + RETENTION_AGE_S, tried=50)
    assert may_be_forgotten(mark, now=100.0, tried=51 + RETENTION_COUNT)


def test_a_gate_that_is_shut_lets_nobody_in_and_one_that_is_closed_stays_so() -> None:
    gate = Gate()
    with gate.turn() as is_open:
        assert is_open
    gate.shut()
    with gate.turn() as is_open:
        assert not is_open
    gate.open()
    with gate.turn() as is_open:
        assert is_open
    gate.close()
    gate.open()
    with gate.turn() as is_open:
        assert not is_open
