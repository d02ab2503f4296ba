"""A random crowd around a few tasks: clients, nodes that come and go, losses; and the checkers of what it leaves.

One seed draws everything. The checkers read etcd's whole history, revision by revision.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from random import Random
from typing import cast

from etcd import keys
from etcd.errors import OutcomeUnknown
from etcd.identity import Identity
from etcd.port import Etcd, Range
from etcd.store import AlreadyExists, CancelStep, Claim, TaskStore
from node.core.lifecycle import TABLE
from node.core.model import Outcome, Reason, Status, Task, TaskSpec
from tests.support.tasks import (
    CANCELED,
    DONE,
    GIVEN_BACK,
    LOSSES,
    NOW,
    Loss,
    LossyEtcd,
    join,
    leave,
    new_task,
    open_store,
    snapshot,
    status_agrees_with_record,
)

#: Long enough that losses alone never reach it.
PATIENCE_S = 60.0
SETUP_FAILED = Outcome(Reason.SETUP_FAILED, step="mount")


@dataclass
class Turmoil:
    """What the crowd did and was told."""

    seed: int
    etcd: Etcd
    task_count: int = 8
    #: Share of writes whose sender hears nothing.
    loss_share: float = 0.15
    random: Random = field(init=False)
    tasks: list[Task] = field(init=False)
    #: Incarnations whose keys are there, by the place of their node.
    living: dict[int, Identity] = field(default_factory=dict)
    #: As told by the store, in no order.
    won: list[Claim] = field(default_factory=list)
    written: list[Task] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    start_revision: int = 0
    _clock: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        specs = [
            TaskSpec("/bin/true"),
            TaskSpec("/bin/true", restart_on_node_loss=False),
            TaskSpec("/bin/true", max_attempts=2),
        ]
        self.tasks = [new_task(specs[n % 3], id=keys.new_task_id(NOW + n, self.random)) for n in range(self.task_count)]

    def now(self) -> float:
        return NOW + next(self._clock)

    async def run(self, *, steps: int, nodes: int = 3, clients: int = 2) -> None:
        self.start_revision = (await self.etcd.range(Range(b"/"))).revision
        async with asyncio.TaskGroup() as crowd:
            for place in range(nodes):
                crowd.create_task(self._node(place, steps))
                crowd.create_task(self._death(place, steps))
            for _ in range(clients):
                crowd.create_task(self._client(steps))

    # -- the crowd ----------------------------------------------------------------------------------------------

    def _lossy(self) -> LossyEtcd:
        lossy = LossyEtcd(self.etcd)
        lossy.loss = self._loss
        return lossy

    def _loss(self) -> Loss | None:
        return self.random.choice(LOSSES) if self.random.random() < self.loss_share else None

    async def _pause(self) -> None:
        await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.02]))

    async def _client(self, steps: int) -> None:
        lossy = self._lossy()
        async with open_store(cast("Etcd", lossy)) as store:
            for _ in range(steps):
                await self._pause()
                task = self.random.choice(self.tasks)
                if self.random.random() < 0.6:
                    await self._submit(store, task)
                elif self.random.random() < 0.5:
                    canceled = await store.cancel(task.id, now=self.now(), timeout_s=PATIENCE_S)
                    if canceled.task is not None and canceled.step is not CancelStep.ALREADY_ENDED:
                        self.written.append(canceled.task)
                else:
                    # Also of living nodes: the guard is what tells them from dead ones.
                    for node_id, task_id in (await store.running_at_one_revision()).tasks:
                        after = await store.requeue(task_id, node_id, now=self.now(), timeout_s=PATIENCE_S)
                        self.written += [after] if after else []
            await lossy.settled()

    async def _submit(self, store: TaskStore, task: Task) -> None:
        other = TaskSpec("/bin/false")
        is_wrong = self.random.random() < 0.1 and task.id in self.acknowledged
        try:
            result = await store.submit(
                new_task(other if is_wrong else task.spec, id=task.id, now=self.now()), timeout_s=PATIENCE_S
            )
        except AlreadyExists:
            assert is_wrong
            return
        assert not is_wrong
        self.acknowledged.add(task.id)
        self.written += [result.task] if result.created else []

    async def _node(self, place: int, steps: int) -> None:
        """Several incarnations. One whose key is gone goes on for a while: its guards must stop it, not its manners."""
        lossy = self._lossy()
        async with open_store(cast("Etcd", lossy)) as store:
            self.living[place] = me = await self._incarnate()
            held: list[Claim] = []
            for _ in range(steps):
                await self._pause()
                choice = self.random.random()
                if choice < 0.45:
                    held += await self._claim(store, me)
                elif choice < 0.9 and held:
                    await self._end(store, held.pop(self.random.randrange(len(held))))
                elif place not in self.living:
                    self.living[place] = me = await self._incarnate()
            await lossy.settled()

    async def _death(self, place: int, steps: int) -> None:
        """Its lease runs out, at any moment."""
        for _ in range(steps):
            await self._pause()
            if self.random.random() < 0.1 and place in self.living:
                await leave(self.etcd, self.living.pop(place).node_id)

    async def _incarnate(self) -> Identity:
        return await join(self.etcd, keys.new_task_id(NOW, self.random))

    async def _claim(self, store: TaskStore, me: Identity) -> list[Claim]:
        (seen,) = await store.read([self.random.choice(self.tasks).id], timeout_s=PATIENCE_S)
        if seen is None or seen.task.status is not Status.QUEUED:
            return []
        await self._pause()
        claim = await store.claim(seen, me, now=self.now(), timeout_s=PATIENCE_S)
        if claim is None:
            return []
        self.won.append(claim)
        return [claim]

    async def _end(self, store: TaskStore, claim: Claim) -> None:
        now, started_at = self.now(), self.random.choice([None, None, NOW])
        choice = self.random.random()
        if choice < 0.1:
            after = await store.finish(claim, DONE, started_at=NOW, now=now, timeout_s=PATIENCE_S)
        elif choice < 0.2:
            after = await store.finish(claim, SETUP_FAILED, started_at=None, now=now, timeout_s=PATIENCE_S)
        elif choice < 0.6:
            after = await store.give_back(claim, GIVEN_BACK, started_at=started_at, now=now, timeout_s=PATIENCE_S)
        else:
            # As a node does that has been told: only what was asked for is confirmed.
            (seen,) = await store.read([claim.task.id], timeout_s=PATIENCE_S)
            if seen is None or not seen.task.cancel_requested:
                return
            await self._pause()
            after = await store.confirm_cancel(claim, CANCELED, started_at=started_at, now=now, timeout_s=PATIENCE_S)
        self.written += [after] if after else []

    # -- the checkers ---------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Walks all revisions. Each failure names its property, and the seed that repeats it."""
        try:
            await self._check_history()
        except (AssertionError, OutcomeUnknown) as error:
            raise AssertionError(f"SEED={self.seed}: {error}") from error

    async def _check_history(self) -> None:
        end = (await self.etcd.range(Range(b"/"))).revision
        before = await snapshot(self.etcd, self.start_revision) if self.start_revision > 1 else {}
        tasks_before = status_agrees_with_record(before)
        everything_written: list[Task] = []
        claims: set[tuple[str, int]] = set()
        for revision in range(self.start_revision + 1, end + 1):
            shown = await snapshot(self.etcd, revision)
            tasks = status_agrees_with_record(shown)
            assert tasks_before.keys() <= tasks.keys(), "NothingLost"
            for task in tasks.values():
                was = tasks_before.get(task.id)
                if was == task:
                    continue
                everything_written.append(task)
                _check_move(was, task, before, shown)
                if was is not None and was.status is Status.QUEUED and task.status is Status.RUNNING:
                    claims.add((task.id, revision))
            before, tasks_before = shown, tasks
        assert self.acknowledged <= tasks_before.keys(), "NothingLost"
        told = {(claim.task.id, claim.fence_revision) for claim in self.won}
        assert len(told) == len(self.won), "a claim was told twice"
        assert told <= claims, f"told, and never applied: {told - claims}"
        for task in self.written:
            assert task in everything_written, f"told, and never written: {task}"
        # Nobody gave up, so what was applied last was told, but for a request, which is told by what came of it.
        # Earlier ones may be untold: an answer was lost, and others moved on before the next try.
        told_records = [*self.written, *(claim.task for claim in self.won)]
        for task in tasks_before.values():
            is_request = task.status is Status.RUNNING and task.cancel_requested
            assert is_request or task in told_records, f"written last, and told to nobody: {task}"


def _check_move(was: Task | None, task: Task, before: dict[bytes, bytes], shown: dict[bytes, bytes]) -> None:
    was_status = was.status if was else None
    assert any(task.status in to for (status, _), to in TABLE.items() if status is was_status), (
        f"LegalMoves: {was_status} to {task.status}"
    )
    assert was is None or not was.status.is_terminal, "TerminalIsFinal"
    attempts_before = was.attempt if was else 0
    assert was is None or not was.cancel_requested or task.cancel_requested, "CancelIsNeverForgotten"
    is_claim = was_status is Status.QUEUED and task.status is Status.RUNNING
    assert task.attempt == attempts_before + is_claim, "AttemptsCount"
    assert task.attempts_used <= task.spec.max_attempts, "AttemptsBounded"
    if is_claim:
        assert keys.node(task.owner or "") in shown, "ClaimNeedsLiveLease"
    if was is not None and was.owner is not None and task.owner is None:
        is_lost = task.attempts[-1].outcome is not None and task.attempts[-1].outcome.reason is Reason.NODE_LOST
        assert (keys.node(was.owner) in before) is not is_lost, "OnlyTheDeadAreRequeued"
        if was.cancel_requested:
            assert task.status is not Status.QUEUED, "CancelIsNeverForgotten"
