"""What is counted in a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from etcd import keys
from etcd.errors import StoreError
from etcd.store import Claim
from node.core.model import Status
from tests.simulation.clock import monotonic
from tests.simulation.sandboxes import Command
from tests.support.fake_store import Change


@dataclass
class Claims:
    tried: int = 0
    won: int = 0
    #: Another's claim was applied after this one was sent, or before: then the news of it was on its way.
    raced: int = 0
    late: int = 0
    unanswered: int = 0


@dataclass
class Measures:
    """Of one run; the store's listener and the sandboxes' watcher."""

    tasks: int
    #: Told of each task that has ended how many that makes.
    tell: Callable[[int], None] = lambda _ended: None
    claims: Claims = field(default_factory=Claims)
    #: By task: when it was queued first, and when its newest claim was applied.
    queued_at: dict[str, float] = field(default_factory=dict)
    claimed_at: dict[str, float] = field(default_factory=dict)
    started_at: dict[str, float] = field(default_factory=dict)
    ended: int = 0
    all_ended: asyncio.Event = field(default_factory=asyncio.Event)
    given_back: int = 0
    last_end: float = 0.0
    #: CPU seconds by host.
    work_s: dict[str, float] = field(default_factory=dict)

    def claim_answered(self, task_id: str, answer: Claim | StoreError | None, sent_at: float) -> None:
        claims = self.claims
        claims.tried += 1
        if isinstance(answer, Claim):
            claims.won += 1
        elif answer is not None:
            claims.unanswered += 1
        elif self.claimed_at.get(task_id, 0.0) >= sent_at:
            claims.raced += 1
        else:
            claims.late += 1

    # As etcd's listener

    def changed(self, change: Change) -> None:
        now = monotonic()
        for event in change.events:
            if event.is_delete or (index := keys.find_index_key(event.kv.key)) is None:
                continue
            if index.status is Status.QUEUED:
                if index.task_id in self.queued_at:
                    self.given_back += 1
                else:
                    self.queued_at[index.task_id] = now
            elif index.status is Status.RUNNING:
                self.claimed_at[index.task_id] = now
            else:
                self.ended += 1
                self.last_end = now
                self.tell(self.ended)
                if self.ended == self.tasks:
                    self.all_ended.set()

    # As the sandboxes' watcher

    def moves(self, command: Command) -> None:
        self.started_at.setdefault(command.task_id, monotonic())

    def stops(self, command: Command) -> None:
        done_s = monotonic() - self.started_at[command.task_id]
        self.work_s[command.host_id] = self.work_s.get(command.host_id, 0.0) + done_s * command.cpu

    # The end

    def start_latencies(self) -> dict[str, float]:
        """By task."""
        return {task_id: at - self.queued_at[task_id] for task_id, at in self.started_at.items()}


def jain(values: list[float]) -> float:
    """Jain's index of fairness: 1 when all get the same, 1/n when one gets all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
