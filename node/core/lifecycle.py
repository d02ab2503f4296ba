"""The life of a task: one table of legal transitions, and the functions that make the next record.

Every function takes the record as it was read and gives the record to be written; it raises IllegalTransition and
changes nothing where the table has no such transition. Whether the write is accepted is decided by its guards in
etcd (`etcd/transitions.py`).
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


def story(task: Task) -> str:
    """One line for people: what became of the task so far."""
    parts = [f"submitted, attempt {task.attempt}, {task.attempts_used} used, now {task.status}"]
    parts += [
        f"attempt {a.number} on node {a.node_id}: {a.outcome.reason if a.outcome else 'open'}" for a in task.attempts
    ]
    if task.cancel_requested:
        parts.append("cancel requested")
    return "; ".join(parts)


def _check(task: Task, cause: Cause, to: Status) -> None:
    if to not in TABLE.get((task.status, cause), frozenset()):
        raise IllegalTransition(task.id, cause, f"{task.status} to {to}; {story(task)}")


def submit(task_id: str, spec: TaskSpec, *, now: float) -> Task:
    return Task(id=task_id, spec=spec, submitted_at=now)


def claim(task: Task, *, node_id: str, host_id: str, now: float) -> Task:
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
    """The command ended by itself or by its limits (complete), or could not be run (failed)."""
    failed = outcome.reason is Reason.SETUP_FAILED
    to = Status.FAILED if failed else Status.COMPLETE
    _check(task, Cause.SETUP_FAILED if failed else Cause.EXIT, to)
    return _end(_close(task, outcome, started_at, now), to, outcome, now)


def give_back(task: Task, outcome: Outcome, *, started_at: float | None, now: float) -> Task:
    """Its node does not go on with it: queued again, unless it must not be.

    A claim that never started (started_at is None) uses up no attempt and may always run again.
    """
    if started_at is None:
        task = replace(task, attempts_used=task.attempts_used - 1)
    return _again(task, Cause.GIVE_BACK, outcome, started_at, now, started=started_at is not None)


def requeue(task: Task, *, now: float) -> Task:
    """Its node is gone; whether the attempt had started is not known, so it counts."""
    detail = f"node {task.owner} is gone"
    return _again(task, Cause.REQUEUE, Outcome(Reason.NODE_LOST, detail=detail), None, now, started=True)


def cancel(task: Task, *, now: float, outcome: Outcome | None = None, started_at: float | None = None) -> Task:
    """Canceled: at once while queued; for a running task its node writes this when the processes are gone."""
    _check(task, Cause.CANCEL, Status.CANCELED)
    outcome = outcome or Outcome(Reason.CANCELED, detail="canceled before it ran")
    if task.status is Status.RUNNING:
        task = _close(task, outcome, started_at, now)
    return _end(replace(task, cancel_requested=True), Status.CANCELED, outcome, now)


def request_cancel(task: Task) -> Task:
    _check(task, Cause.CANCEL_REQUEST, Status.RUNNING)
    return replace(task, cancel_requested=True)


def may_run_again(task: Task, *, started: bool) -> bool:
    """Whether a running task may be queued once more."""
    if not started:
        return True
    return task.spec.restart_on_node_loss and task.attempts_used < task.spec.max_attempts


def _again(task: Task, cause: Cause, outcome: Outcome, started_at: float | None, now: float, *, started: bool) -> Task:
    if task.cancel_requested:
        _check(task, cause, Status.CANCELED)
        canceled = replace(outcome, reason=Reason.CANCELED)
        return _end(_close(task, outcome, started_at, now), Status.CANCELED, canceled, now)
    if may_run_again(task, started=started):
        _check(task, cause, Status.QUEUED)
        return replace(_close(task, outcome, started_at, now), status=Status.QUEUED)
    _check(task, cause, Status.FAILED)
    why = (
        "and it must not be restarted"
        if not task.spec.restart_on_node_loss
        else f"and its {task.spec.max_attempts} attempts are used up"
    )
    final = replace(outcome, detail=f"{outcome.detail} {why}".strip())
    return _end(_close(task, outcome, started_at, now), Status.FAILED, final, now)


def _close(task: Task, outcome: Outcome, started_at: float | None, now: float) -> Task:
    """Writes the end of the newest attempt into the history."""
    last = replace(task.attempts[-1], started_at=started_at, finished_at=now, outcome=outcome)
    return replace(task, attempts=(*task.attempts[:-1], last))


def _end(task: Task, status: Status, outcome: Outcome, now: float) -> Task:
    return replace(task, status=status, outcome=outcome, finished_at=now)
