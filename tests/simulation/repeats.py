"""One id, many calls: several people submit the same task at once, again later, some of them another task under its
id, and cancels come at any moment, while a cluster forgets what has ended.

Retention is scaled down with everything that it is measured by (`LIMITS`): a call is given up after `TRY_S`, nobody
repeats one for longer than `REPEAT_S`, and what has ended is kept for longer than that, whatever the clocks say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from random import Random

from etcd import keys
from etcd.batcher import Batcher
from etcd.errors import StoreError
from etcd.store import TaskStore
from etcd.store_values import AlreadyExists
from node.core import lifecycle
from node.core.model import Task, TaskSpec
from node.core.retention import Limits, is_too_old_to_submit
from tests.simulation import clock
from tests.simulation.network import Cluster, Link

#: For one call.
TRY_S = 2.0
#: From the first call until the last one of the same id begins.
REPEAT_S = 3.0
#: In place of a minute and a week. Longer than a call can be under way: `REPEAT_S`, `TRY_S`, and a cut of 3 s.
KEEP_S = 10.0
MAX_AGE_S = 30.0


def draw_limits(chance: Random) -> Limits | None:
    """None: nothing is forgotten, as in most worlds."""
    if chance.random() < 0.6:
        return None
    return Limits(max_age_s=MAX_AGE_S, max_count=chance.choice([0, 1, 5]), keep_s=KEEP_S)


class Repeats:
    """The people of such a world."""

    def __init__(
        self,
        cluster: Cluster,
        chance: Random,
        *,
        spec: Callable[[], TaskSpec],
        acknowledged: Callable[[str], None],
        add: Callable[[str, str, str], None],
        tell: Callable[[str], None],
    ) -> None:
        """acknowledged: is given the id of each task that was stored. add: is given each flaw (rule, what, words)."""
        self._chance = chance
        self._spec = spec
        self._acknowledged = acknowledged
        self._add = add
        self._tell = tell
        #: Theirs alone, so that it may be cut and lose answers.
        self._link = Link(cluster, chance)
        #: The spec that was acknowledged, by id.
        self._stored: dict[str, TaskSpec] = {}

    async def run(self, tasks: int, within_s: float) -> None:
        """Ends when all have given up or were answered."""
        self._link.loss = self._chance.choice([0.0, 0.3])
        async with asyncio.TaskGroup() as group:
            group.create_task(self._cut(self._chance.uniform(0.0, within_s)))
            for _ in range(tasks):
                group.create_task(self._task(self._chance.uniform(0.0, 0.8 * within_s)))
        self._link.loss = 0.0

    async def _cut(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        self._link.cut_one_way(is_deaf=True)
        await asyncio.sleep(self._chance.uniform(0.0, 3.0))
        self._link.heal_one_way()

    async def _task(self, at_s: float) -> None:
        await asyncio.sleep(at_s)
        spec = self._spec()
        task_id = keys.new_task_id(clock.wall(), Random(self._chance.getrandbits(64)))
        first = lifecycle.submit(task_id, spec, now=clock.wall())
        self._tell(f"{task_id[-6:]} is submitted by several: {' '.join(spec.args)}")
        async with asyncio.TaskGroup() as group:
            for person in range(self._chance.choice([1, 2, 3])):
                another = person > 0 and self._chance.random() < 0.3
                wanted = replace(first, spec=replace(spec, name="another")) if another else first
                group.create_task(self._submit(wanted, self._chance.choice([0.0, 0.002, 1.0, REPEAT_S])))
            if self._chance.random() < 0.5:
                group.create_task(self._cancel(task_id, self._chance.choice([0.002, 1.0, 5.0, 15.0])))

    async def _submit(self, task: Task, after_s: float) -> None:
        """As the API does: what is too old is refused before anything is asked."""
        await asyncio.sleep(after_s)
        if is_too_old_to_submit(task.id, now=clock.wall(), max_age_s=MAX_AGE_S):
            return
        etcd = self._link.client()
        async with Batcher(etcd, random=Random(self._chance.getrandbits(64))) as batcher:
            try:
                stored = await TaskStore(batcher, etcd).submit(
                    replace(task, submitted_at=clock.wall()), timeout_s=TRY_S
                )
            except (StoreError, AlreadyExists):
                return
            finally:
                await etcd.close()
        self._acknowledged(task.id)
        spec = self._stored.setdefault(task.id, stored.task.spec)
        if spec != task.spec or stored.task.spec != task.spec:
            self._add("OneIdOneTask", task.id, f"{spec.name} and {task.spec.name} were both acknowledged")

    async def _cancel(self, task_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s * self._chance.random())
        etcd = self._link.client()
        async with Batcher(etcd, random=Random(self._chance.getrandbits(64))) as batcher:
            with contextlib.suppress(StoreError):
                canceled = await TaskStore(batcher, etcd).cancel(task_id, now=clock.wall(), timeout_s=TRY_S)
                self._tell(f"{task_id[-6:]} is canceled: {canceled.step.value}")
        await etcd.close()
