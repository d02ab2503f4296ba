"""The model's own table of guards, and what each of them means in a state of the model.

It is written down a second time on purpose: `test_protocol_model.py` compares it with the table that the code sends to
etcd, so that a guard changed in one place alone fails, and shows for every single guard what it is there for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from etcd.transitions import Guard, Name
from tests.model.state import QUEUED, RUNNING, TERMINAL, Message, Record, Rules, State

_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)

GUARDS: Mapping[Name, tuple[Guard, ...]] = {
    Name.SUBMIT: (Guard.RECORD_ABSENT,),
    Name.CLAIM: (Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT, Guard.NODE_MINE),
    Name.FINISH: _OWNER,
    Name.GIVE_BACK: _OWNER,
    Name.CONFIRM_CANCEL: _OWNER,
    Name.CANCEL_QUEUED: (Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT),
    Name.REQUEST_CANCEL: (Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT),
    Name.REQUEUE: (Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),
    Name.FORGET: (Guard.ENDED_SAME,),
}


class _Sent(NamedTuple):
    """A transaction as it arrives."""

    state: State
    message: Message

    @property
    def seen(self) -> Record:
        assert self.message.seen is not None
        return self.message.seen

    def is_alive(self, node: object) -> bool:
        """Its node key is there; each incarnation has a key of its own, so that nothing tells it from an older one."""
        return any(node == owner for owner, _ in self.state.leases)


def _claim_is_mine(sent: _Sent) -> bool:
    """A running key is made by its claim, so that its create_revision is told by the attempt."""
    record = sent.state.record
    is_there = (RUNNING, sent.message.by) in sent.state.keys
    return is_there and record is not None and record.attempt == sent.seen.attempt


def _ended_is_same(sent: _Sent) -> bool:
    record = sent.state.record
    return record is not None and record.status in TERMINAL and record == sent.seen


_HOLDS: Mapping[Guard, Callable[[_Sent], bool]] = {
    Guard.RECORD_ABSENT: lambda sent: sent.state.record is None,
    Guard.RECORD_UNCHANGED: lambda sent: sent.state.record == sent.seen,
    Guard.QUEUED_PRESENT: lambda sent: (QUEUED,) in sent.state.keys,
    Guard.RUNNING_PRESENT: lambda sent: (RUNNING, sent.seen.node) in sent.state.keys,
    Guard.CLAIM_MINE: _claim_is_mine,
    Guard.NODE_MINE: lambda sent: sent.is_alive(sent.message.by),
    Guard.OWNER_GONE: lambda sent: not sent.is_alive(sent.seen.node),
    Guard.ENDED_SAME: _ended_is_same,
}

#: Once they do not hold they never will: attempts ascend, and a record never comes again.
LASTING = frozenset({Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.ENDED_SAME})

_NAMES = {"submit": Name.SUBMIT, "claim": Name.CLAIM, "requeue": Name.REQUEUE, "forget": Name.FORGET}
_ENDS = {"giveback": Name.GIVE_BACK, "canceled": Name.CONFIRM_CANCEL}


def name_of(message: Message) -> Name:
    """The transition that it asks for."""
    if message.kind == "end":
        return _ENDS.get(message.outcome, Name.FINISH)
    if message.kind == "cancel":
        assert message.seen is not None
        return Name.CANCEL_QUEUED if message.seen.status == QUEUED else Name.REQUEST_CANCEL
    return _NAMES[message.kind]


def is_admitted(rules: Rules, state: State, message: Message, *, only: Collection[Guard] = tuple(Guard)) -> bool:
    """Whether all guards hold that the rules have not dropped; `only`: of these."""
    name, sent = name_of(message), _Sent(state, message)
    in_force = [guard for guard in GUARDS[name] if guard in only and (name, guard) not in rules.dropped]
    return all(_HOLDS[guard](sent) for guard in in_force)
