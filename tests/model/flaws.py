"""What the checker must catch: the rules with one thing wrong each, and the scenario that shows it."""

from __future__ import annotations

from dataclasses import replace

from tests.model.state import MARGIN, Rules

R = Rules()
FLAWS: dict[str, tuple[Rules, str]] = {
    # What a first reading of the design left open.
    "requeue without record compare": (replace(R, requeue_record=False), "crash, cancel"),
    "cancel (queued) without record compare": (replace(R, cancel_queued_record=False), "drain, cancel"),
    "cancel (running) without record compare": (replace(R, cancel_running_record=False), "drain, cancel"),
    "give back without record compare": (replace(R, giveback_record=False), "drain, cancel"),
    "unknown settled by one read, no sweep": (replace(R, unknown="read", own_sweep=False), "submit"),
    "no sweep of own running keys": (replace(R, own_sweep=False), "endless, cancel"),
    "start after the deadline": (replace(R, start_deadline=False), "partition"),
    "fence kill reported as an exit": (replace(R, fence_report=False), "partition"),
    "spawner stopped, no second fence": (replace(R, backup_fence=False), "spawner stop, partition"),
    "etcd expires a lease early": (replace(R, etcd_early=True), "crash"),
    "cloned data directory": (replace(R, cloned=True), "crash"),
    "retention forgets ids": (replace(R, retention=True), "submit"),
    # Deliberate defects.
    "claim without record compare": (replace(R, claim_record=False), "drain, unknown"),
    "claim without node-key compare": (replace(R, claim_node=False), "crash, unknown"),
    "submit without absence compare": (replace(R, submit_absent=False), "submit"),
    "finish without running-key compare": (replace(R, finish_key=False), "crash"),
    "end without attempt check": (replace(R, finish_attempt=False, giveback_record=False), "drain, unknown"),
    "requeue without node-key-absent": (replace(R, requeue_node=False), "crash"),
    "requeue forgets cancel": (replace(R, requeue_cancel=False), "crash, cancel"),
    "requeue ignores no-restart": (replace(R, requeue_restart=False, restart=False), "crash"),
    "requeue ignores attempts limit": (replace(R, requeue_restart=False, max_attempts=1), "crash"),
    "cancel written terminal at once": (replace(R, cancel_two_step=False), "cancel, unknown"),
    "unknown treated as failed": (replace(R, unknown="failed"), "submit"),
    "unknown as failed, no sweep": (replace(R, unknown="failed", own_sweep=False), "submit"),
    "unknown treated as applied": (replace(R, unknown="applied"), "submit"),
    "fence after expiry": (replace(R, fence_late=MARGIN + 1), "partition"),
    "deadline from the ping's answer": (replace(R, fence_from_answer=True), "slow ping, partition"),
    "lease revoked before the kill": (replace(R, revoke_after_kill=False), "crash"),
    "give back before the kill": (replace(R, giveback_after_kill=False), "drain, unknown"),
    "same id after a lost lease": (replace(R, new_id=False), "partition"),
}
