"""The life of a task: one table of legal transitions, and the functions that make the next record.

Every function takes the record as it was read and gives the record to be written; it raises IllegalTransition and
changes nothing where the table has no such transition. Whether the write is accepted is decided by its guards in
etcd (`etcd/transitions.py`).

Invariants of every record made here (`flaws` tells which one is broken):
* the newest attempt is in the history exactly when there was a claim, and has the record's number;
* it is open (without an end) exactly while the task is running; all older ones are closed;
* a queued task has no cancel request and has attempts left; only a terminal task has an outcome and an end;
* attempts_used never exceeds the number of attempts, nor max_attempts.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from node.core.errors import IllegalTransition
from node.core.model import ATTEMPTS_KEPT, Attempt, Outcome, Reason, Status, Task, TaskSpec


class Cause(StrEnum):
    """What makes a task move."""

    SUBMIT = "submit"
    CLAIM = "claim"
    #: The command ran and ended.
    EXIT = "exit"
    #: It could not be run at all.
    SETUP_FAILED = "setup_failed"
    GIVE_BACK = "give_back"
    #: Canceled while queued, or confirmed by its node.
    CANCEL = "cancel"
    CANCEL_REQUEST = "cancel_request"
    #: Its node is gone.
    REQUEUE = "requeue"


#: (from, cause) -> where it may go. None: no record yet. All else is illegal.
TABLE: dict[tuple[Status | None, Cause], frozenset[Status]] = {
    (None, Cause.SUBMIT): frozenset({Status.QUEUED}),
    (Status.QUEUED, Cause.CLAIM): frozenset({Status.RUNNING}),
    (Status.QUEUED, Cause.CANCEL): frozenset({Status.CANCELED}),
    (Status.RUNNING, Cause.EXIT): frozenset({Status.COMPLETE}),
    (Status.RUNNING, Cause.SETUP_FAILED): frozenset({Status.FAILED}),
    (Status.RUNNING, Cause.GIVE_BACK): frozenset({Status.QUEUED, Status.CANCELED, Status.FAILED}),
    (Status.RUNNING, Cause.CANCEL_REQUEST): frozenset({Status.RUNNING}),
    (Status.RUNNING, Cause.CANCEL): frozenset({Status.CANCELED}),
    (Status.RUNNING, Cause.REQUEUE): frozenset({Status.QUEUED, Status.CANCELED, Status.FAILED}),
}


#: So often in a row a host may fail to set a task up for want of something (memory, pids, disk), and the task is given
#: back for nothing. From then on each time uses up an attempt: what the host lacks is what the task asks for.
FREE_SETUP_TROUBLES = 5
#: Steps whose failure never says anything about the task.
STEPS_OF_THE_NODE = frozenset({"fence", "closing", "logs"})

#: How a command that ran may have ended. A run that the fence killed, or that was lost, has not ended: it is given
#: back or requeued, and never recorded as complete.
ENDED_REASONS = frozenset(
    {Reason.EXITED, Reason.SIGNALED, Reason.TIMED_OUT, Reason.OUT_OF_MEMORY, Reason.OUT_OF_SCRATCH}
)


def story(task: Task) -> str:
    """One line for people: what became of the task so far."""
    parts = [f"submitted, attempt {task.attempt}, {task.attempts_used} used, now {task.status}"]
    parts += [
        f"attempt {a.number} on node {a.node_id}: {a.outcome.reason if a.outcome else 'open'}" for a in task.attempts
    ]
    if task.cancel_requested:
        parts.append("cancel requested")
    return "; ".join(parts)


def flaws(task: Task) -> list[str]:
    """Which of the invariants above the record breaks, in words; empty for every record made here."""
    found = []
    newest = task.attempts[-1] if task.attempts else None
    if (newest.number if newest else 0) != task.attempt:
        found.append(f"attempt {task.attempt} is not the newest in its history")
    closed = task.attempts
    if task.status is Status.RUNNING:
        if newest is None or newest.outcome is not None:
            found.append("it is running without an open attempt")
        closed = closed[:-1]
    if any(attempt.outcome is None for attempt in closed):
        found.append("an attempt that is over has no outcome")
    if (task.outcome is not None) is not task.status.is_terminal:
        found.append(f"it is {task.status} {'with' if task.outcome else 'without'} an outcome")
    if not 0 <= task.attempts_used <= task.attempt:
        found.append(f"{task.attempts_used} attempts are used of {task.attempt}")
    if task.status is Status.QUEUED and task.cancel_requested:
        found.append("it is queued although its cancel is requested")
    if task.status is Status.QUEUED and task.attempts_used >= task.spec.max_attempts:
        found.append("it is queued although its attempts are used up")
    return found


def _check(task: Task, cause: Cause, to: Status) -> None:
    if to not in TABLE.get((task.status, cause), frozenset()):
        raise IllegalTransition(task.id, cause, f"{task.status} to {to}; {story(task)}")
    wrong = flaws(task)
    if wrong:
        raise IllegalTransition(task.id, cause, f"the record is not sound: {', '.join(wrong)}; {story(task)}")


def submit(task_id: str, spec: TaskSpec, *, now: float) -> Task:
    """The first record. now: Unix seconds, here as everywhere below."""
    return Task(id=task_id, spec=spec, submitted_at=now)


def claim(task: Task, *, node_id: str, host_id: str, now: float) -> Task:
    """Attempt + 1, on this node. It counts against max_attempts unless it is given back before it starts."""
    _check(task, Cause.CLAIM, Status.RUNNING)
    attempt = Attempt(number=task.attempt + 1, node_id=node_id, host_id=host_id, claimed_at=now)
    return replace(
        task,
        status=Status.RUNNING,
        attempt=attempt.number,
        attempts_used=task.attempts_used + 1,
        attempts=(*task.attempts, attempt)[-ATTEMPTS_KEPT:],
    )


def finish(task: Task, outcome: Outcome, *, started_at: float | None, now: float) -> Task:
    """The command ended by itself or by its limits (complete), or could not be run (failed).

    A command that ends by itself after a cancel was requested, and before the kill, is complete.
    """
    failed = outcome.reason is Reason.SETUP_FAILED
    to = Status.FAILED if failed else Status.COMPLETE
    cause = Cause.SETUP_FAILED if failed else Cause.EXIT
    _check(task, cause, to)
    if not failed and outcome.reason not in ENDED_REASONS:
        raise IllegalTransition(task.id, cause, f"{outcome.reason} is not the end of a command; {story(task)}")
    return _end(_close(task, outcome, started_at, now), to, outcome, now)


def give_back(task: Task, outcome: Outcome, *, started_at: float | None, now: float) -> Task:
    """Its node does not go on with it: queued again, unless it must not be.

    A claim that never started (started_at is None) uses up no attempt and may always run again, unless this host could
    not set it up for the FREE_SETUP_TROUBLES times before, too.
    """
    if started_at is not None or task.status is not Status.RUNNING:
        return _again(task, Cause.GIVE_BACK, outcome, started_at, now, may_run=may_run_again(task, started=True))
    if _is_setup_trouble(outcome) and _setup_troubles_in_a_row(task) >= FREE_SETUP_TROUBLES:
        failed = replace(outcome, reason=Reason.SETUP_FAILED)
        may_run = task.attempts_used < task.spec.max_attempts
        return _again(task, Cause.GIVE_BACK, outcome if may_run else failed, None, now, may_run=may_run)
    task = replace(task, attempts_used=task.attempts_used - 1)
    return _again(task, Cause.GIVE_BACK, outcome, None, now, may_run=True)


def _is_setup_trouble(outcome: Outcome | None) -> bool:
    """The start failed for want of something that there may be later."""
    if outcome is None or outcome.reason is not Reason.GIVEN_BACK:
        return False
    return bool(outcome.step) and outcome.step not in STEPS_OF_THE_NODE


def _setup_troubles_in_a_row(task: Task) -> int:
    """How many attempts just before the newest failed so, on the host of the newest."""
    count = 0
    for attempt in reversed(task.attempts[:-1]):
        if attempt.host_id != task.attempts[-1].host_id or not _is_setup_trouble(attempt.outcome):
            break
        count += 1
    return count


def requeue(task: Task, *, now: float) -> Task:
    """Its node is gone; whether the attempt had started is not known, so it counts."""
    detail = f"node {task.owner} is gone"
    return _again(
        task,
        Cause.REQUEUE,
        Outcome(Reason.NODE_LOST, detail=detail),
        None,
        now,
        may_run=may_run_again(task, started=True),
    )


def cancel(task: Task, *, now: float, outcome: Outcome | None = None, started_at: float | None = None) -> Task:
    """Canceled: at once while queued; for a running task its node writes this when the processes are gone.

    outcome: how the attempt ended, for a running task; the task's own outcome says canceled, whatever the attempt's.
    """
    _check(task, Cause.CANCEL, Status.CANCELED)
    if task.status is Status.RUNNING:
        outcome = outcome or Outcome(Reason.CANCELED)
        task = _close(task, outcome, started_at, now)
        final = replace(outcome, reason=Reason.CANCELED)
    else:
        final = Outcome(Reason.CANCELED, detail="canceled while it was queued")
    return _end(replace(task, cancel_requested=True), Status.CANCELED, final, now)


def request_cancel(task: Task) -> Task:
    """Marks a running task; its node confirms with `cancel` when the processes are gone. Twice is as good as once."""
    _check(task, Cause.CANCEL_REQUEST, Status.RUNNING)
    return replace(task, cancel_requested=True)


def may_run_again(task: Task, *, started: bool) -> bool:
    """Whether a running task may be queued once more."""
    if not started:
        return True
    return task.spec.restart_on_node_loss and task.attempts_used < task.spec.max_attempts


def _again(task: Task, cause: Cause, outcome: Outcome, started_at: float | None, now: float, *, may_run: bool) -> Task:
    if task.cancel_requested:
        _check(task, cause, Status.CANCELED)
        canceled = replace(outcome, reason=Reason.CANCELED)
        return _end(_close(task, outcome, started_at, now), Status.CANCELED, canceled, now)
    if may_run:
        _check(task, cause, Status.QUEUED)
        return replace(_close(task, outcome, started_at, now), status=Status.QUEUED)
    _check(task, cause, Status.FAILED)
    why = (
        f"and its {task.spec.max_attempts} attempts are used up"
        if task.attempts_used >= task.spec.max_attempts
        else "and it must not be restarted"
    )
    final = replace(outcome, detail=f"{outcome.detail} {why}".strip())
    return _end(_close(task, outcome, started_at, now), Status.FAILED, final, now)


def _close(task: Task, outcome: Outcome, started_at: float | None, now: float) -> Task:
    """Writes the end of the newest attempt into the history."""
    last = replace(task.attempts[-1], started_at=started_at, finished_at=now, outcome=outcome)
    return replace(task, attempts=(*task.attempts[:-1], last))


def _end(task: Task, status: Status, outcome: Outcome, now: float) -> Task:
    return replace(task, status=status, outcome=outcome, finished_at=now)
