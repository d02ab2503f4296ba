"""The life of a task: every legal and illegal pair, the data that must be carried, and random walks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.core import lifecycle
from node.core.errors import IllegalTransition
from node.core.lifecycle import TABLE, Cause
from node.core.model import ATTEMPTS_KEPT, Outcome, Reason, Status, Task, TaskSpec

ID = "01900000-0000-7000-8000-000000000001"
EXITED = Outcome(Reason.EXITED, exit_code=0)
GIVEN_BACK = Outcome(Reason.GIVEN_BACK, detail="the node stops")
SETUP_FAILED = Outcome(Reason.SETUP_FAILED, step="exec", errno=2, detail="no such command")


def queued(**spec: object) -> Task:
    return lifecycle.submit(ID, TaskSpec("true", **spec), now=1.0)  # type: ignore[arg-type]  # a spec's fields by name


def running(**spec: object) -> Task:
    return lifecycle.claim(queued(**spec), node_id="n1", host_id="h1", now=2.0)


#: A task in each status, and a way to apply each cause to it.
TASKS: dict[Status, Task] = {
    Status.QUEUED: queued(),
    Status.RUNNING: running(),
    Status.COMPLETE: lifecycle.finish(running(), EXITED, started_at=2.5, now=3.0),
    Status.CANCELED: lifecycle.cancel(queued(), now=2.0),
    Status.FAILED: lifecycle.finish(running(), SETUP_FAILED, started_at=None, now=3.0),
}
CAUSES: dict[Cause, Callable[[Task], Task]] = {
    Cause.CLAIM: lambda task: lifecycle.claim(task, node_id="n2", host_id="h2", now=5.0),
    Cause.EXIT: lambda task: lifecycle.finish(task, EXITED, started_at=4.0, now=5.0),
    Cause.SETUP_FAILED: lambda task: lifecycle.finish(task, SETUP_FAILED, started_at=None, now=5.0),
    Cause.GIVE_BACK: lambda task: lifecycle.give_back(task, GIVEN_BACK, started_at=4.0, now=5.0),
    Cause.CANCEL: lambda task: lifecycle.cancel(task, now=5.0),
    Cause.CANCEL_REQUEST: lifecycle.request_cancel,
    Cause.REQUEUE: lambda task: lifecycle.requeue(task, now=5.0),
}


def test_table_covers_every_cause_and_leaves_terminal_states_alone() -> None:
    assert {cause for _, cause in TABLE} == set(Cause)
    assert not [status for status, _ in TABLE if status is not None and status.is_terminal]
    assert set(CAUSES) == set(Cause) - {Cause.SUBMIT}


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("cause", list(CAUSES))
def test_every_pair(status: Status, cause: Cause) -> None:
    task = TASKS[status]
    before = replace(task)
    allowed = TABLE.get((status, cause))
    if allowed is None:
        with pytest.raises(IllegalTransition) as caught:
            CAUSES[cause](task)
        assert ID in str(caught.value)
        assert cause in str(caught.value)
        assert f"now {status}" in str(caught.value)  # the story is told
    else:
        assert CAUSES[cause](task).status in allowed
    assert task == before  # nothing was changed


def test_submit() -> None:
    task = queued()
    assert (task.status, task.attempt, task.attempts_used, task.submitted_at) == (Status.QUEUED, 0, 0, 1.0)
    assert task.owner is None
    assert lifecycle.flaws(task) == []


def test_claim_is_one_more_attempt_of_that_node() -> None:
    task = running()
    assert (task.attempt, task.attempts_used, task.owner) == (1, 1, "n1")
    again = CAUSES[Cause.CLAIM](CAUSES[Cause.REQUEUE](task))
    assert (again.attempt, again.attempts_used, again.owner) == (2, 2, "n2")
    newest = again.attempts[-1]
    assert (newest.number, newest.host_id, newest.claimed_at, newest.outcome) == (2, "h2", 5.0, None)


@pytest.mark.parametrize("reason", sorted(lifecycle.ENDED_REASONS))
def test_finish_records_the_attempt_and_the_outcome(reason: Reason) -> None:
    outcome = Outcome(reason, exit_code=3)
    task = lifecycle.finish(running(), outcome, started_at=2.5, now=9.0)
    assert (task.status, task.outcome, task.finished_at) == (Status.COMPLETE, outcome, 9.0)
    attempt = task.attempts[-1]
    assert (attempt.started_at, attempt.finished_at, attempt.outcome) == (2.5, 9.0, outcome)


@pytest.mark.parametrize("reason", sorted(set(Reason) - lifecycle.ENDED_REASONS - {Reason.SETUP_FAILED}))
def test_a_run_that_did_not_end_by_itself_is_never_complete(reason: Reason) -> None:
    with pytest.raises(IllegalTransition, match="not the end of a command"):
        lifecycle.finish(running(), Outcome(reason), started_at=2.5, now=9.0)


def test_setup_failure_is_failed() -> None:
    task = TASKS[Status.FAILED]
    assert task.outcome == SETUP_FAILED
    assert task.attempts[-1].outcome == SETUP_FAILED


def test_given_back_before_it_started_uses_no_attempt_and_always_runs_again() -> None:
    task = running(restart_on_node_loss=False, max_attempts=1)
    for number in range(2, 30):
        task = lifecycle.give_back(task, GIVEN_BACK, started_at=None, now=3.0)
        assert (task.status, task.attempts_used) == (Status.QUEUED, 0)
        task = lifecycle.claim(task, node_id="n1", host_id="h1", now=4.0)
        assert task.attempt == number


NO_MEMORY = Outcome(Reason.GIVEN_BACK, step="clone", errno=12, detail="clone: Cannot allocate memory")
NO_LOG_FILE = Outcome(Reason.GIVEN_BACK, step="logs", errno=28, detail="cannot open log files")


def given_back(task: Task, *outcomes: Outcome, host_id: str = "h1") -> Task:
    """Given back so one after the other, and claimed on that host in between."""
    for outcome in outcomes:
        if task.status is Status.QUEUED:
            task = lifecycle.claim(task, node_id="n1", host_id=host_id, now=4.0)
        task = lifecycle.give_back(task, outcome, started_at=None, now=5.0)
    return task


@pytest.mark.parametrize("restart", [True, False])
def test_a_task_that_a_host_can_never_set_up_ends(restart: bool) -> None:
    """Nothing starts, so it may be tried again even if it must not be restarted; but not for ever."""
    free = lifecycle.FREE_SETUP_TROUBLES
    task = given_back(running(restart_on_node_loss=restart, max_attempts=3), *[NO_MEMORY] * free)
    assert (task.status, task.attempts_used) == (Status.QUEUED, 0)
    for used in (1, 2):
        task = given_back(task, NO_MEMORY)
        assert (task.status, task.attempts_used) == (Status.QUEUED, used)
    task = given_back(task, NO_MEMORY)
    assert (task.status, task.attempts_used) == (Status.FAILED, 3)
    assert task.outcome is not None
    assert (task.outcome.reason, task.outcome.step, task.outcome.errno) == (Reason.SETUP_FAILED, "clone", 12)
    assert "3 attempts are used up" in task.outcome.detail


@pytest.mark.parametrize(
    "other",
    [GIVEN_BACK, NO_LOG_FILE, replace(NO_MEMORY, step="fence"), replace(NO_MEMORY, step="closing")],
    ids=["stopped in order", "logs", "fence", "closing"],
)
def test_what_the_node_lacks_uses_no_attempt_and_begins_the_count_anew(other: Outcome) -> None:
    free = lifecycle.FREE_SETUP_TROUBLES
    task = given_back(running(), *[other] * 3 * free, *[NO_MEMORY] * free, other, *[NO_MEMORY] * free)
    assert (task.status, task.attempts_used) == (Status.QUEUED, 0)


def test_troubles_of_another_host_do_not_count_here() -> None:
    free = lifecycle.FREE_SETUP_TROUBLES
    task = given_back(running(), *[NO_MEMORY] * free)
    task = given_back(task, *[NO_MEMORY] * free, host_id="h2")
    assert (task.status, task.attempts_used) == (Status.QUEUED, 0)
    assert given_back(task, NO_MEMORY, host_id="h2").attempts_used == 1


def test_a_cancel_outranks_the_trouble() -> None:
    task = given_back(running(max_attempts=1), *[NO_MEMORY] * lifecycle.FREE_SETUP_TROUBLES)
    claimed = lifecycle.request_cancel(lifecycle.claim(task, node_id="n1", host_id="h1", now=4.0))
    assert lifecycle.give_back(claimed, NO_MEMORY, started_at=None, now=5.0).status is Status.CANCELED


@pytest.mark.parametrize(
    ("spec", "cause", "status", "words"),
    [
        ({}, Cause.GIVE_BACK, Status.QUEUED, ""),
        ({}, Cause.REQUEUE, Status.QUEUED, ""),
        ({"restart_on_node_loss": False}, Cause.GIVE_BACK, Status.FAILED, "must not be restarted"),
        ({"restart_on_node_loss": False}, Cause.REQUEUE, Status.FAILED, "n1 is gone and it must not be restarted"),
        ({"max_attempts": 1}, Cause.GIVE_BACK, Status.FAILED, "its 1 attempts are used up"),
        ({"max_attempts": 1}, Cause.REQUEUE, Status.FAILED, "its 1 attempts are used up"),
    ],
)
def test_after_it_started(spec: dict[str, object], cause: Cause, status: Status, words: str) -> None:
    task = CAUSES[cause](running(**spec))
    assert task.status is status
    assert task.attempts_used == 1
    assert task.attempts[-1].finished_at == 5.0
    if status is Status.FAILED:
        assert task.outcome is not None
        assert words in task.outcome.detail
        assert task.outcome.reason is (Reason.NODE_LOST if cause is Cause.REQUEUE else Reason.GIVEN_BACK)
    else:
        assert (task.outcome, task.finished_at) == (None, None)


@pytest.mark.parametrize("cause", [Cause.GIVE_BACK, Cause.REQUEUE])
@pytest.mark.parametrize("spec", [{}, {"restart_on_node_loss": False}, {"max_attempts": 1}])
def test_a_requested_cancel_wins(cause: Cause, spec: dict[str, object]) -> None:
    task = CAUSES[cause](lifecycle.request_cancel(running(**spec)))
    assert task.status is Status.CANCELED
    assert task.outcome is not None
    assert task.outcome.reason is Reason.CANCELED
    # How the attempt itself ended is kept.
    attempt = task.attempts[-1].outcome
    assert attempt is not None
    assert attempt.reason in (Reason.NODE_LOST, Reason.GIVEN_BACK)


def test_a_command_that_ends_before_the_kill_is_complete() -> None:
    task = CAUSES[Cause.EXIT](lifecycle.request_cancel(running()))
    assert (task.status, task.cancel_requested) == (Status.COMPLETE, True)


def test_cancel_of_a_queued_task_adds_no_attempt() -> None:
    task = TASKS[Status.CANCELED]
    assert task.attempts == ()
    assert task.outcome is not None
    assert "queued" in task.outcome.detail


def test_confirmed_cancel_keeps_how_the_process_ended() -> None:
    killed = Outcome(Reason.SIGNALED, signal=15)
    task = lifecycle.cancel(lifecycle.request_cancel(running()), now=9.0, outcome=killed, started_at=2.5)
    assert task.outcome == replace(killed, reason=Reason.CANCELED)
    assert (task.attempts[-1].outcome, task.attempts[-1].started_at) == (killed, 2.5)


def test_requesting_twice_is_as_good_as_once() -> None:
    once = lifecycle.request_cancel(running())
    assert lifecycle.request_cancel(once) == once


def test_history_is_bounded_and_keeps_the_newest() -> None:
    task = queued(max_attempts=1000)
    for number in range(ATTEMPTS_KEPT + 5):
        task = lifecycle.claim(task, node_id=f"n{number}", host_id="h", now=2.0)
        task = lifecycle.requeue(task, now=3.0)
    assert task.attempt == ATTEMPTS_KEPT + 5
    assert [a.number for a in task.attempts] == list(range(6, ATTEMPTS_KEPT + 6))


UNSOUND = {
    "running without an attempt": replace(running(), attempts=()),
    "running with a closed attempt": replace(running(), attempts=TASKS[Status.COMPLETE].attempts),
    "number disagrees": replace(running(), attempt=7),
    "older attempt left open": replace(queued(), attempt=1, attempts=running().attempts),
    "queued with an outcome": replace(queued(), outcome=EXITED),
    "terminal without an outcome": replace(TASKS[Status.COMPLETE], outcome=None),
    "more used than made": replace(queued(), attempts_used=1),
    "queued and canceled": replace(queued(), cancel_requested=True),
    "queued without attempts left": replace(CAUSES[Cause.REQUEUE](running()), spec=TaskSpec("true", max_attempts=1)),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_record_is_told_and_goes_nowhere(name: str) -> None:
    task = UNSOUND[name]
    assert len(lifecycle.flaws(task)) >= 1
    for apply in CAUSES.values():
        with pytest.raises(IllegalTransition):
            apply(task)


class Walk(RuleBasedStateMachine):
    """Random legal walks: invariants 2 and 3 of the design hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.task = queued()
        self.now = 1.0
        self.claims = 0
        self.started_claims = 0

    @initialize(restart=st.booleans(), attempts=st.integers(1, 4))
    def submit(self, restart: bool, attempts: int) -> None:
        self.task = queued(restart_on_node_loss=restart, max_attempts=attempts)

    def move(self, after: Task, cause: Cause) -> None:
        before = self.task
        assert after.status in TABLE[(before.status, cause)]
        assert not before.status.is_terminal
        assert after.attempt == before.attempt + (cause is Cause.CLAIM)
        assert after.cancel_requested >= before.cancel_requested
        assert (after.id, after.spec, after.submitted_at) == (before.id, before.spec, before.submitted_at)
        self.task = after
        self.now += 1.0

    @precondition(lambda self: self.task.status is Status.QUEUED)
    @rule(node=st.sampled_from(["n1", "n2", "n3"]))
    def claim(self, node: str) -> None:
        self.claims += 1
        self.move(lifecycle.claim(self.task, node_id=node, host_id="h", now=self.now), Cause.CLAIM)

    @precondition(lambda self: self.task.status is Status.RUNNING)
    @rule(reason=st.sampled_from(sorted(lifecycle.ENDED_REASONS)))
    def exit(self, reason: Reason) -> None:
        self.started_claims += 1
        self.move(lifecycle.finish(self.task, Outcome(reason), started_at=self.now, now=self.now), Cause.EXIT)

    @precondition(lambda self: self.task.status is Status.RUNNING)
    @rule()
    def fail(self) -> None:
        self.started_claims += 1
        self.move(lifecycle.finish(self.task, SETUP_FAILED, started_at=None, now=self.now), Cause.SETUP_FAILED)

    @precondition(lambda self: self.task.status is Status.RUNNING)
    @rule(started=st.booleans())
    def give_back(self, started: bool) -> None:
        self.started_claims += started
        at = self.now if started else None
        self.move(lifecycle.give_back(self.task, GIVEN_BACK, started_at=at, now=self.now), Cause.GIVE_BACK)

    @precondition(lambda self: self.task.status is Status.RUNNING)
    @rule()
    def requeue(self) -> None:
        self.started_claims += 1
        self.move(lifecycle.requeue(self.task, now=self.now), Cause.REQUEUE)

    @precondition(lambda self: self.task.status is Status.RUNNING)
    @rule()
    def request_cancel(self) -> None:
        self.move(lifecycle.request_cancel(self.task), Cause.CANCEL_REQUEST)

    @rule()
    def cancel(self) -> None:
        assume(not self.task.status.is_terminal)
        self.started_claims += self.task.status is Status.RUNNING
        self.move(lifecycle.cancel(self.task, now=self.now), Cause.CANCEL)

    @precondition(lambda self: self.task.status.is_terminal)
    @rule(cause=st.sampled_from(sorted(CAUSES)))
    def terminal_is_final(self, cause: Cause) -> None:
        with pytest.raises(IllegalTransition):
            CAUSES[cause](self.task)

    @invariant()
    def sound(self) -> None:
        task = self.task
        assert lifecycle.flaws(task) == []
        assert task.attempt == self.claims
        assert task.attempts_used == self.started_claims + (task.status is Status.RUNNING)
        assert task.attempts_used <= task.spec.max_attempts
        assert [a.number for a in task.attempts] == list(range(1, task.attempt + 1))[-ATTEMPTS_KEPT:]
        assert (task.finished_at is not None) is task.status.is_terminal
        if task.cancel_requested:
            assert task.status is not Status.QUEUED
            assert task.status is not Status.FAILED or task.outcome == SETUP_FAILED
        if not task.spec.restart_on_node_loss and task.status is Status.QUEUED:
            assert task.attempts_used == 0


Walk.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestWalk = Walk.TestCase
