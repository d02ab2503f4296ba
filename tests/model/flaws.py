"""What the checker must catch: the rules with one thing wrong each, and the scenario that shows it."""

from __future__ import annotations

from dataclasses import replace

from etcd.transitions import Guard, Name
from tests.model.state import MARGIN, Rules

R = Rules()


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

FLAWS: dict[str, tuple[Rules, str]] = {
    # What a first reading of the design left open.
    "requeue without record compare": (without((Name.REQUEUE, Guard.RECORD_UNCHANGED)), "crash, cancel"),
    "cancel (queued) without record compare": (without((Name.CANCEL_QUEUED, Guard.RECORD_UNCHANGED)), "drain, cancel"),
    "cancel (running) without record compare": (
        without((Name.REQUEST_CANCEL, Guard.RECORD_UNCHANGED)),
        "drain, cancel",
    ),
    "give back without record compare": (without((Name.GIVE_BACK, Guard.RECORD_UNCHANGED)), "drain, cancel"),
    "unknown settled by one read, no sweep": (replace(R, unknown="read", own_sweep=False), "submit"),
    "no sweep of own running keys": (replace(R, own_sweep=False), "endless, cancel"),
    "start after the deadline": (replace(R, start_deadline=False), "partition"),
    "fence kill reported as an exit": (replace(R, fence_report=False), "partition"),
    "spawner stopped, no second fence": (replace(R, backup_fence=False), "spawner stop, partition"),
    "etcd expires a lease early": (replace(R, etcd_early=True), "crash"),
    "cloned data directory": (replace(R, cloned=True), "crash"),
    "retention forgets ids": (replace(R, retention=True), "submit"),
    # Deliberate defects.
    "claim without record compare": (without((Name.CLAIM, Guard.RECORD_UNCHANGED)), "drain, unknown"),
    "claim without node-key compare": (without((Name.CLAIM, Guard.NODE_MINE)), "crash, unknown"),
    "submit without absence compare": (without((Name.SUBMIT, Guard.RECORD_ABSENT)), "submit"),
    "requeue without node-key-absent": (without((Name.REQUEUE, Guard.OWNER_GONE)), "crash"),
    "requeue forgets cancel": (replace(R, requeue_cancel=False), "crash, cancel"),
    "requeue ignores no-restart": (replace(R, requeue_restart=False, restart=False), "crash"),
    "requeue ignores attempts limit": (replace(R, requeue_restart=False, max_attempts=1), "crash"),
    "cancel written terminal at once": (replace(R, cancel_two_step=False), "cancel, unknown"),
    "unknown treated as failed": (replace(R, unknown="failed"), "submit"),
    "unknown as failed, no sweep": (replace(R, unknown="failed", own_sweep=False), "submit"),
    "unknown treated as applied": (replace(R, unknown="applied"), "submit"),
    # Guards of an owner's end, and of retention.
    "finish without node-key compare": (without((Name.FINISH, Guard.NODE_MINE)), "crash"),
    "give back without node-key compare": (without((Name.GIVE_BACK, Guard.NODE_MINE)), "pause"),
    "confirmed cancel without node-key compare": (without((Name.CONFIRM_CANCEL, Guard.NODE_MINE)), "crash, cancel"),
    "forget without compare": (without((Name.FORGET, Guard.ENDED_SAME)), "retention"),
    # Guards that imply each other by invariant 2; see SECOND_LINES.
    "claim without record and index": (both(Name.CLAIM, Guard.QUEUED_PRESENT), "submit"),
    "finish without record and claim": (both(Name.FINISH, Guard.CLAIM_MINE), "cancel, unknown"),
    "give back without record and claim": (both(Name.GIVE_BACK, Guard.CLAIM_MINE), "partition, unknown"),
    "confirmed cancel without record and claim": (both(Name.CONFIRM_CANCEL, Guard.CLAIM_MINE), "cancel, unknown"),
    "cancel (queued) without record and index": (both(Name.CANCEL_QUEUED, Guard.QUEUED_PRESENT), "cancel, unknown"),
    "cancel (running) without record and index": (both(Name.REQUEST_CANCEL, Guard.RUNNING_PRESENT), "cancel, unknown"),
    "fence after expiry": (replace(R, fence_late=MARGIN + 1), "partition"),
    "deadline from the ping's answer": (replace(R, fence_from_answer=True), "slow ping, partition"),
    "lease revoked before the kill": (replace(R, revoke_after_kill=False), "crash"),
    "give back before the kill": (replace(R, giveback_after_kill=False), "drain, unknown"),
    "same id after a lost lease": (replace(R, new_id=False), "partition"),
}
