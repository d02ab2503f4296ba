"""What etcd says this node runs, compared with what it does run.

Watches `/task/status/running/ITSELF/` for touches (a cancel touches the running key) and compares the whole listing on
a slow tick, so that a lost event or an unknown claim costs time and never correctness.
"""

from __future__ import annotations

import asyncio
import logging

from etcd import keys
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.port import Etcd
from etcd.store import Claim, TaskStore
from etcd.watch import Listing, list_and_watch
from node.core import reconcile
from node.outcomes import StopWhy
from node.runner import Runner

log = logging.getLogger(__name__)

TICK_S = 5.0


class OwnKeys:
    """Follows the running keys of this incarnation and keeps the runner in step with them."""

    def __init__(self, etcd: Etcd, store: TaskStore, runner: Runner, identity: Identity) -> None:
        self._etcd = etcd
        self._store = store
        self._runner = runner
        self._identity = identity
        #: Claims sent and not yet answered, by task id: the claimer's. Theirs is not for adoption.
        self.claiming: set[str] = set()
        #: Keys touched before we held their task: the cancel came before the claim's own answer.
        self._touched: set[str] = set()

    async def run(self) -> None:
        """Ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="own keys")
            group.create_task(self._tick(), name="reconcile")

    async def _follow(self) -> None:
        async for news in list_and_watch(self._etcd, keys.running_of(self._identity.node_id), keys_only=True):
            if isinstance(news, Listing):
                await self._reconcile_quietly()
                continue
            for event in news.events:
                _, task_id = keys.parse_running(event.kv.key)
                if event.is_delete:
                    self._touched.discard(task_id)
                elif event.kv.version > 1:
                    await self._touch(task_id)

    async def _touch(self, task_id: str) -> None:
        """The running key was written again: somebody asked for a cancel."""
        if task_id in self._runner.runs:
            log.info("task=%s cancel requested", task_id)
            self._runner.cancel(task_id)
        else:
            self._touched.add(task_id)

    def claimed(self, claim: Claim) -> None:
        """A claim was won: its task starts, unless its cancel is there already."""
        self._runner.adopt(claim)
        if claim.task.id in self._touched:
            self._touched.discard(claim.task.id)
            log.info("task=%s cancel was requested before its claim was answered", claim.task.id)
            self._runner.cancel(claim.task.id)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._reconcile_quietly()

    async def _reconcile_quietly(self) -> None:
        try:
            await self.reconcile()
        except StoreError as error:
            log.warning("own running keys could not be compared, trying again: %s", error)

    async def reconcile(self) -> None:
        """Compares once and acts: adopts own unknown claims, honours missed cancels, ends what is no longer ours."""
        before = {task_id: run.claim.fence_revision for task_id, run in self._runner.runs.items()}
        claiming = frozenset(self.claiming)
        shown = await self._store.running_of(self._identity.node_id)
        listed = [reconcile.RunningKey(task_id, kv.create_revision, kv.version) for task_id, kv in shown]
        for action in reconcile.compare(listed, before, claiming | self.claiming):
            await self._act(action)

    async def _act(self, action: reconcile.Action) -> None:
        match action:
            case reconcile.Adopt(task_id=task_id, create_revision=revision):
                (seen,) = await self._store.read([task_id])
                if seen is not None and seen.task.owner == self._identity.node_id:
                    log.info("task=%s adopting a claim whose answer was lost", task_id)
                    self.claimed(Claim(seen.task, seen.mod_revision, revision, self._identity))
            case reconcile.CheckCancel(task_id=task_id):
                (seen,) = await self._store.read([task_id])
                if seen is not None and seen.task.cancel_requested:
                    self._runner.cancel(task_id)
            case reconcile.Forget(task_id=task_id, create_revision=revision):
                run = self._runner.runs.get(task_id)
                if run is not None and run.claim.fence_revision == revision:
                    log.error("task=%s runs here and is not ours any more: ending it", task_id)
                    # Its write will be refused by the guard. A give back, so that nothing is lost if it is not.
                    run.ask_stop(StopWhy.GIVE_BACK)
