"""People who cancel what runs, and what a node has left that is gone, while its peers requeue it.

They are far from etcd: between the request that they write into the record, and the requeue that carries it out where
no node does, a peer's requeue may arrive that knows nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from etcd import keys
from etcd.batcher import Batcher
from etcd.errors import StoreError
from etcd.store import TaskStore
from node.core.model import Status
from tests.simulation import clock
from tests.simulation.checks import Checks
from tests.simulation.loop import of_nobody
from tests.simulation.network import Cluster, Link
from tests.simulation.themes import Theme
from tests.support.fake_store import Change

CALL_S = 20.0
#: Of etcd, as `Link.distance`.
DISTANCE = 50.0
#: From the end of a node until its peers have looked at all that it left, and a little longer.
WITHIN_S = 0.6
#: From its claim until somebody cancels what runs, at most.
RUNNING_S = 15.0


class Cancelers:
    """In worlds whose theme has them."""

    def __init__(
        self, cluster: Cluster, chance: Random, theme: Theme | None, checks: Checks, tell: Callable[[str], None]
    ) -> None:
        self._checks = checks
        self._chance = chance
        self._tell = tell
        self._of_orphans, self._of_running = (theme.canceled_orphans, theme.canceled_running) if theme else (0.0, 0.0)
        self._calls: list[asyncio.Task[None]] = []
        if self._of_orphans or self._of_running:
            self._link = Link(cluster, chance)
            self._link.distance = DISTANCE
            cluster.store.listeners.append(self._changed)

    def _changed(self, change: Change) -> None:
        for task_id, before in self._checks.written() if self._of_running else ():
            task = self._checks.history.find(task_id)
            is_claimed = before is not None and task is not None and before.status is not Status.RUNNING is task.status
            if is_claimed and self._chance.random() < self._of_running:
                of_nobody(self._begin, task_id, delay_s=self._chance.uniform(0.0, RUNNING_S))
        gone = {
            keys.parse_node(event.kv.key)
            for event in change.events
            if event.is_delete and event.kv.key.startswith(b"/node/")
        }
        for task in self._checks.history.tasks.values() if gone else ():
            if task.owner in gone and self._chance.random() < self._of_orphans:
                delay_s = self._chance.uniform(0.0, WITHIN_S)
                of_nobody(self._begin, task.id, delay_s=delay_s)

    def _begin(self, task_id: str) -> None:
        self._calls.append(asyncio.create_task(self._cancel(task_id)))

    async def _cancel(self, task_id: str) -> None:
        etcd = self._link.client()
        async with Batcher(etcd, random=Random(self._chance.getrandbits(64))) as batcher:
            try:
                canceled = await TaskStore(batcher, etcd).cancel(task_id, now=clock.wall(), timeout_s=CALL_S)
                self._tell(f"{task_id[-6:]} is canceled from far away: {canceled.step.value}")
            except StoreError as error:
                self._tell(f"a cancel of {task_id[-6:]} is not answered: {error}")
        await etcd.close()
