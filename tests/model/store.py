"""etcd in the model: one transaction, all guards, all writes, under the rules that are switched on."""

from __future__ import annotations

from typing import Any

from tests.model.state import (
    CANCELED,
    FAILED,
    QUEUED,
    RUNNING,
    Host,
    Message,
    NodeId,
    Record,
    Rules,
    State,
    check,
)


def with_host(state: State, number: int, **changes: Any) -> State:
    host: Host = state.hosts[number]._replace(**changes)
    return state._replace(hosts=(*state.hosts[:number], host, *state.hosts[number + 1 :]))


def after_running(rules: Rules, record: Record) -> str:
    """Where a requeue or a give back leads."""
    if record.cancel and rules.requeue_cancel:
        return CANCELED
    may = rules.restart and record.attempt < rules.max_attempts
    return QUEUED if may or not rules.requeue_restart else FAILED


def moved(state: State, node: NodeId | None, seen: Record, status: str) -> State:
    """Running to something else: record and index together."""
    record = Record(status, seen.attempt, None if status == QUEUED else seen.node, seen.cancel)
    return state._replace(record=record, keys=state.keys - {(RUNNING, node)} | {(status,)})


def apply(rules: Rules, state: State, message: Message) -> tuple[State, tuple[str, int]]:
    """The next state and the answer; a failed guard changes nothing."""
    if message.kind == "submit":
        return _submit(rules, state)
    if state.record is None or message.seen is None:
        return state, ("lost", 0)
    if message.kind == "claim":
        return _claim(rules, state, message, state.record, message.seen)
    if message.kind == "end":
        return _end(rules, state, message, state.record, message.seen)
    if message.kind == "cancel":
        cancel = _cancel_queued if message.seen.status == QUEUED else _cancel_running
        return cancel(rules, state, state.record, message.seen)
    return _requeue(rules, state, state.record, message.seen)


def _submit(rules: Rules, state: State) -> tuple[State, tuple[str, int]]:
    if state.record is not None and rules.submit_absent:
        return state, ("lost", 0)
    check(state.record is None, "1: a second submit of the same id overwrote the task")
    check(not state.made, "1: a late submit made the same task a second time")
    record = Record(QUEUED, 0, None, False)
    return state._replace(record=record, keys=frozenset([(QUEUED,)]), made=True), ("ok", 0)


def _claim(rules: Rules, state: State, message: Message, record: Record, seen: Record) -> tuple[State, tuple[str, int]]:
    node = message.by
    assert isinstance(node, tuple)
    has_key = any(node == owner for owner, _ in state.leases)
    changed = rules.claim_record and record != seen
    if (QUEUED,) not in state.keys or changed or (rules.claim_node and not has_key):
        return state, (("mine", record.attempt) if (RUNNING, node) in state.keys else ("lost", 0))
    check(has_key, "10: claim by a node whose lease is gone")
    check(not (record.cancel or state.cancel == "ack"), "5: a canceled task was claimed again")
    new = Record(RUNNING, seen.attempt + 1, node, seen.cancel)
    keys = state.keys - {(QUEUED,)} | {(RUNNING, node)}
    return state._replace(record=new, keys=keys), ("ok", new.attempt)


def _end(rules: Rules, state: State, message: Message, record: Record, seen: Record) -> tuple[State, tuple[str, int]]:
    node = message.by
    assert isinstance(node, tuple)
    if rules.finish_key and (RUNNING, node) not in state.keys:
        return state, ("lost", 0)
    if rules.finish_attempt and record.attempt != seen.attempt:
        return state, ("lost", 0)
    if message.outcome == "giveback" and rules.giveback_record and record != seen:
        return state, ("lost", 0)
    check(record.attempt == seen.attempt, "3: a write of an older attempt was accepted")
    check(message.outcome != "fenced", "2: a run that the fence killed was recorded as complete")
    status = message.outcome if message.outcome != "giveback" else after_running(rules, seen)
    return moved(state, node, seen, status), ("ok", 0)


def _cancel_queued(rules: Rules, state: State, record: Record, seen: Record) -> tuple[State, tuple[str, int]]:
    if (QUEUED,) not in state.keys or (rules.cancel_queued_record and record != seen):
        return state, ("lost", 0)
    new = seen._replace(status=CANCELED, cancel=True)
    return state._replace(record=new, keys=state.keys - {(QUEUED,)} | {(CANCELED,)}), ("ok", 0)


def _cancel_running(rules: Rules, state: State, record: Record, seen: Record) -> tuple[State, tuple[str, int]]:
    if (RUNNING, seen.node) not in state.keys or (rules.cancel_running_record and record != seen):
        return state, ("lost", 0)
    if not rules.cancel_two_step:
        return moved(state, seen.node, seen._replace(cancel=True), CANCELED), ("ok", 0)
    assert seen.node is not None
    number, incarnation = seen.node
    if state.hosts[number].incarnation == incarnation:
        state = with_host(state, number, event=True)
    return state._replace(record=seen._replace(cancel=True)), ("ok", 0)


def _requeue(rules: Rules, state: State, record: Record, seen: Record) -> tuple[State, tuple[str, int]]:
    is_alive = any(seen.node == owner for owner, _ in state.leases)
    if (RUNNING, seen.node) not in state.keys:
        return state, ("lost", 0)
    if (rules.requeue_node and is_alive) or (rules.requeue_record and record != seen):
        return state, ("lost", 0)
    return moved(state, seen.node, seen, after_running(rules, seen)), ("ok", 0)
