"""What the checker must catch: the rules with one thing wrong each, the scenario that shows it, and what it breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from etcd.transitions import Guard, Name
from tests.model.state import MARGIN, Rules

R = Rules()


class Flaw(NamedTuple):
    """One of them."""

    rules: Rules
    scenario: str
    #: The number of the invariant that it breaks (design, section 8).
    breaks: int


def without(*dropped: tuple[Name, Guard]) -> Rules:
    """The rules but for these guards."""
    return replace(R, dropped=frozenset(dropped))


def both(name: Name, guard: Guard) -> Rules:
    """The rules but for this guard and the compare of the record, which covers it."""
    return without((name, guard), (name, Guard.RECORD_UNCHANGED))


#: Guards that alone may be missing: a record that is unchanged has the index key that it says (invariant 2), and a
#: claim that is there has an unchanged record but for a request to cancel. They are kept for a record that was damaged:
#: a guard is a few bytes, and the index is what nodes act on. `python -m tests.model --deep` shows that alone no harm
#: comes of them.
SECOND_LINES: dict[tuple[Name, Guard], str] = {
    (Name.CLAIM, Guard.QUEUED_PRESENT): "claim without record and index",
    (Name.FINISH, Guard.RECORD_UNCHANGED): "finish without record and claim",
    (Name.FINISH, Guard.CLAIM_MINE): "finish without record and claim",
    (Name.GIVE_BACK, Guard.CLAIM_MINE): "give back without record and claim",
    (Name.CONFIRM_CANCEL, Guard.RECORD_UNCHANGED): "confirmed cancel without record and claim",
    (Name.CONFIRM_CANCEL, Guard.CLAIM_MINE): "confirmed cancel without record and claim",
    (Name.CANCEL_QUEUED, Guard.QUEUED_PRESENT): "cancel (queued) without record and index",
    (Name.REQUEST_CANCEL, Guard.RUNNING_PRESENT): "cancel (running) without record and index",
    # Here the compare of the record is needed by itself as well.
    (Name.REQUEUE, Guard.RUNNING_PRESENT): "requeue without record compare",
}

FLAWS: dict[str, Flaw] = {
    # What a first reading of the design left open.
    "requeue without record compare": Flaw(without((Name.REQUEUE, Guard.RECORD_UNCHANGED)), "crash, cancel", 5),
    "cancel (queued) without record compare": Flaw(
        without((Name.CANCEL_QUEUED, Guard.RECORD_UNCHANGED)), "drain, cancel", 3
    ),
    "cancel (running) without record compare": Flaw(
        without((Name.REQUEST_CANCEL, Guard.RECORD_UNCHANGED)), "drain, cancel", 3
    ),
    "give back without record compare": Flaw(without((Name.GIVE_BACK, Guard.RECORD_UNCHANGED)), "drain, cancel", 5),
    "unknown settled by one read, no sweep": Flaw(replace(R, unknown="read", own_sweep=False), "submit", 7),
    "no sweep of own running keys": Flaw(replace(R, own_sweep=False), "endless, cancel", 7),
    "start after the deadline": Flaw(replace(R, start_deadline=False), "partition", 4),
    "fence kill reported as an exit": Flaw(replace(R, fence_report=False), "partition", 2),
    "spawner stopped, no second fence": Flaw(replace(R, backup_fence=False), "spawner stop, partition", 4),
    "etcd expires a lease early": Flaw(replace(R, etcd_early=True), "crash", 4),
    "cloned data directory": Flaw(replace(R, cloned=True), "crash", 4),
    "retention forgets ids": Flaw(replace(R, retention=True), "submit", 1),
    # Deliberate defects.
    "claim without record compare": Flaw(without((Name.CLAIM, Guard.RECORD_UNCHANGED)), "drain, unknown", 3),
    "claim without node-key compare": Flaw(without((Name.CLAIM, Guard.NODE_MINE)), "crash, unknown", 10),
    "submit without absence compare": Flaw(without((Name.SUBMIT, Guard.RECORD_ABSENT)), "submit", 1),
    "requeue without node-key-absent": Flaw(without((Name.REQUEUE, Guard.OWNER_GONE)), "crash", 4),
    "requeue forgets cancel": Flaw(replace(R, requeue_cancel=False), "crash, cancel", 5),
    "requeue ignores no-restart": Flaw(replace(R, requeue_restart=False, restart=False), "crash", 2),
    "requeue ignores attempts limit": Flaw(replace(R, requeue_restart=False, max_attempts=1), "crash", 2),
    "cancel written terminal at once": Flaw(replace(R, cancel_two_step=False), "cancel, unknown", 5),
    "unknown treated as failed": Flaw(replace(R, unknown="failed"), "submit", 3),
    "unknown as failed, no sweep": Flaw(replace(R, unknown="failed", own_sweep=False), "submit", 7),
    "unknown treated as applied": Flaw(replace(R, unknown="applied"), "submit", 4),
    # Guards of an owner's end, and of retention.
    "finish without node-key compare": Flaw(without((Name.FINISH, Guard.NODE_MINE)), "crash", 10),
    "give back without node-key compare": Flaw(without((Name.GIVE_BACK, Guard.NODE_MINE)), "pause", 10),
    "confirmed cancel without node-key compare": Flaw(
        without((Name.CONFIRM_CANCEL, Guard.NODE_MINE)), "crash, cancel", 10
    ),
    "forget without compare": Flaw(without((Name.FORGET, Guard.ENDED_SAME)), "retention", 1),
    # Guards that imply each other by invariant 2; see SECOND_LINES.
    "claim without record and index": Flaw(both(Name.CLAIM, Guard.QUEUED_PRESENT), "submit", 2),
    "finish without record and claim": Flaw(both(Name.FINISH, Guard.CLAIM_MINE), "cancel, unknown", 2),
    "give back without record and claim": Flaw(both(Name.GIVE_BACK, Guard.CLAIM_MINE), "partition, unknown", 3),
    "confirmed cancel without record and claim": Flaw(
        both(Name.CONFIRM_CANCEL, Guard.CLAIM_MINE), "cancel, unknown", 2
    ),
    "cancel (queued) without record and index": Flaw(
        both(Name.CANCEL_QUEUED, Guard.QUEUED_PRESENT), "cancel, unknown", 2
    ),
    "cancel (running) without record and index": Flaw(
        both(Name.REQUEST_CANCEL, Guard.RUNNING_PRESENT), "cancel, unknown", 2
    ),
    "fence after expiry": Flaw(replace(R, fence_late=MARGIN + 1), "partition", 4),
    "deadline from the ping's answer": Flaw(replace(R, fence_from_answer=True), "slow ping, partition", 4),
    "lease revoked before the kill": Flaw(replace(R, revoke_after_kill=False), "crash", 4),
    "give back before the kill": Flaw(replace(R, giveback_after_kill=False), "drain, unknown", 4),
    "same id after a lost lease": Flaw(replace(R, new_id=False), "partition", 4),
}
