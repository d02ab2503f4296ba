"""etcd in the model: one transaction, all guards, all writes, under the rules that are switched on."""

from __future__ import annotations

from typing import Any

from tests.model.guards import is_admitted
from tests.model.state import (
    CANCELED,
    FAILED,
    QUEUED,
    RUNNING,
    TERMINAL,
    Host,
    IndexKey,
    Message,
    NodeId,
    Record,
    Rules,
    State,
    check,
)

#: What the sender is told: ok, lost or mine, and of a claim the attempt.
Answer = tuple[str, int]


def with_host(state: State, number: int, **changes: Any) -> State:
    host: Host = state.hosts[number]._replace(**changes)
    return state._replace(hosts=(*state.hosts[:number], host, *state.hosts[number + 1 :]))


def after_running(rules: Rules, record: Record) -> str:
    """Where a requeue or a give back leads."""
    if record.cancel and rules.requeue_cancel:
        return CANCELED
    may = rules.restart and record.attempt < rules.max_attempts
    return QUEUED if may or not rules.requeue_restart else FAILED


def rewritten(state: State, before: IndexKey, record: Record) -> State:
    """The writes of a move: the index key of what was seen goes, the new one comes, and the record."""
    after: IndexKey = (RUNNING, record.node) if record.status == RUNNING else (record.status,)
    return state._replace(record=record, keys=state.keys - {before} | {after})


def apply(rules: Rules, state: State, message: Message) -> tuple[State, Answer]:
    """The next state and the answer; a failed guard changes nothing."""
    if not is_admitted(rules, state, message):
        is_mine = message.kind == "claim" and (RUNNING, message.by) in state.keys and state.record is not None
        return state, ("mine", state.record.attempt) if is_mine and state.record else ("lost", 0)
    if message.kind == "submit":
        return _submit(state)
    assert message.seen is not None  # only a submit knows of no record
    if message.kind == "claim":
        return _claim(state, message, message.seen)
    if message.kind == "end":
        return _end(rules, state, message, message.seen)
    if message.kind == "cancel":
        return _cancel(rules, state, message.seen)
    is_forget = message.kind == "forget"
    return _forget(state, message.seen) if is_forget else _requeue(rules, state, message.seen)


def _submit(state: State) -> tuple[State, Answer]:
    check(state.record is None, "1: a second submit of the same id overwrote the task")
    check(not state.made, "1: a late submit made the same task a second time")
    record = Record(QUEUED, 0, None, False, state.life)
    return state._replace(record=record, keys=state.keys | {(QUEUED,)}, made=True, ran=0), ("ok", 0)


def _claim(state: State, message: Message, seen: Record) -> tuple[State, Answer]:
    node = message.by
    assert isinstance(node, tuple)
    check(any(node == owner for owner, _ in state.leases), "10: claim by a node whose lease is gone")
    is_canceled = (state.record is not None and state.record.cancel) or state.cancel == "ack"
    check(not is_canceled, "5: a canceled task was claimed again")
    new = seen._replace(status=RUNNING, attempt=seen.attempt + 1, node=node)
    return rewritten(state, (QUEUED,), new), ("ok", new.attempt)


def _moved(rules: Rules, state: State, node: NodeId | None, seen: Record, outcome: str) -> tuple[State, Answer]:
    """Running to something else: record and index together."""
    status = outcome if outcome != "giveback" else after_running(rules, seen)
    new = seen._replace(status=status, node=None if status == QUEUED else seen.node)
    return rewritten(state, (RUNNING, node), new), ("ok", 0)


def _end(rules: Rules, state: State, message: Message, seen: Record) -> tuple[State, Answer]:
    node = message.by
    assert isinstance(node, tuple)
    record = state.record
    check(record is not None and record.attempt == seen.attempt, "3: a write of an older attempt was accepted")
    check(any(node == owner for owner, _ in state.leases), "10: an end by a node whose lease is gone")
    check(message.outcome != "fenced", "2: a run that the fence killed was recorded as complete")
    return _moved(rules, state, node, seen, message.outcome)


def _cancel(rules: Rules, state: State, seen: Record) -> tuple[State, Answer]:
    if seen.status == QUEUED:
        return rewritten(state, (QUEUED,), seen._replace(status=CANCELED, cancel=True)), ("ok", 0)
    if not rules.cancel_two_step:
        return _moved(rules, state, seen.node, seen._replace(cancel=True), CANCELED)
    assert seen.node is not None
    number, incarnation = seen.node
    if state.hosts[number].incarnation == incarnation:
        state = with_host(state, number, event=True)
    return rewritten(state, (RUNNING, seen.node), seen._replace(cancel=True)), ("ok", 0)


def _requeue(rules: Rules, state: State, seen: Record) -> tuple[State, Answer]:
    return _moved(rules, state, seen.node, seen, "giveback")


def _forget(state: State, seen: Record) -> tuple[State, Answer]:
    """Retention. Its owner may submit the same id again, as a new task."""
    check(state.record is None or state.record.status in TERMINAL, "1: retention deleted a task that had not ended")
    keys = state.keys - {(seen.status,)}
    return state._replace(record=None, keys=keys, submit="new", cancel="no", made=False, life=seen.life + 1), ("ok", 0)
