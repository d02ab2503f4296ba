"""What etcd says this node runs, compared with what it does run.

Watches `/task/status/running/ITSELF/` for touches (a cancel touches the running key; the ends of its tasks it writes
itself and is not told of: a third of all watch messages under load) and compares the whole listing
with what it believes on a slow tick, so that a lost event or an unknown claim costs time and never correctness.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from etcd import keys
from etcd.errors import RecordCorrupt, StoreError
from etcd.identity import Identity
from etcd.port import Etcd, Event
from etcd.store import Claim, TaskStore
from etcd.watch import Listing, list_and_watch
from node.core.errors import IllegalTransition
from node.core.model import Outcome, Reason
from node.core.reconcile import Action, Adopt, Belief, CheckCancel, Forget, GiveBack, Phase, RunningKey, reconcile
from node.running.outcomes import StopWhy
from node.running.runner import Runner

log = logging.getLogger(__name__)

TICK_S = 5.0
WRITE_TIMEOUT_S = 5.0


class OwnKeys:
    """Follows the running keys of this incarnation and keeps the runner in step with them."""

    def __init__(self, etcd: Etcd, store: TaskStore, runner: Runner, identity: Identity) -> None:
        self._etcd = etcd
        self._store = store
        self._runner = runner
        self._identity = identity
        #: Tasks whose claim was sent and is not answered: the claimer's to settle.
        self.claiming: set[str] = set()
        #: Keys touched before we held their task, with their version: the cancel came before the claim's own answer.
        #: Only of tasks in `claiming`.
        self._touched: dict[str, int] = {}
        #: Owns looks at records; None: not running.
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._follow(), name="own keys")
            group.create_task(self._tick(), name="reconcile")

    async def _follow(self) -> None:
        own = replace(keys.running_of(self._identity.node_id), puts_only=True)
        async for news in list_and_watch(self._etcd, own, keys_only=True):
            if isinstance(news, Listing):
                self._touched.clear()
                await self._reconcile_quietly()
                continue
            for event in news.events:
                self._take_in(event)

    def _take_in(self, event: Event) -> None:
        index = keys.find_index_key(event.kv.key)
        if index is None or event.kv.version == 1:
            return  # a stranger's key, or a claim: its own answer tells
        if index.task_id in self._runner.runs:
            self._look_at(index.task_id, event.kv.version)
        elif index.task_id in self.claiming:
            self._touched[index.task_id] = event.kv.version

    def claimed(self, claim: Claim) -> None:
        """A claim was won: its task starts, and is ended again if its cancel is there already."""
        self._runner.adopt(claim)
        version = self._touched.pop(claim.task.id, None)
        if version is not None:
            self._look_at(claim.task.id, version)

    def not_claimed(self, task_id: str) -> None:
        """A claim was lost, and whatever came of its key with it."""
        self._touched.pop(task_id, None)

    def _look_at(self, task_id: str, version: int) -> None:
        """The running key was written again, which is how a cancel request shows. The record tells."""
        if self._group is not None:
            self._group.create_task(self._check_cancel_quietly(task_id, version), name="look at a cancel")

    async def _check_cancel_quietly(self, task_id: str, version: int) -> None:
        try:
            await self._check_cancel(task_id, version)
        except StoreError as error:
            log.warning("task=%s was touched and cannot be read, left to the next comparison: %s", task_id, error)

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
        """Compares once and acts: gives back claims nobody here knows of, honours missed cancels, ends what is no
        longer ours."""
        shown, revision = await self._store.running_of(self._identity.node_id)
        listed = [RunningKey(task_id, kv.create_revision, kv.version) for task_id, kv in shown]
        for action in reconcile(listed, self._beliefs(), revision=revision):
            try:
                await self._act(action)
            except (RecordCorrupt, IllegalTransition) as error:
                log.error("%s: %s", action, error)  # noqa: TRY400  (told, and tried again at the next tick)

    def _beliefs(self) -> dict[str, Belief]:
        beliefs = {task_id: Belief(Phase.CLAIMING) for task_id in self.claiming}
        for task_id, run in self._runner.runs.items():
            beliefs[task_id] = Belief(run.phase, run.claim.fence_revision, run.version_checked)
        return beliefs

    async def _act(self, action: Action) -> None:
        match action:
            case CheckCancel(task_id, version):
                await self._check_cancel(task_id, version)
            case Forget(task_id, fence_revision):
                run = self._runner.runs.get(task_id)
                if run is not None and run.claim.fence_revision == fence_revision:
                    log.error("task=%s runs here and is not ours any more: ending it", task_id)
                    # A give back: the guard refuses it where the claim is gone, and nothing is lost where it is not.
                    run.ask_stop(StopWhy.GIVE_BACK)
            case Adopt(task_id, fence_revision) | GiveBack(task_id, fence_revision):
                await self._give_back(task_id, fence_revision)

    async def _check_cancel(self, task_id: str, version: int) -> None:
        (seen,) = await self._store.read([task_id])
        run = self._runner.runs.get(task_id)
        if run is None or seen is None or seen.task.attempt != run.task.attempt:
            return
        run.version_checked = version
        if seen.task.cancel_requested:
            log.info("task=%s attempt=%d cancel requested", task_id, run.task.attempt)
            run.ask_stop(StopWhy.CANCEL)

    async def _give_back(self, task_id: str, fence_revision: int) -> None:
        """Ours in etcd and without a process here: a claim whose answer was lost with its sender."""
        claim = await self._store.adopt(task_id, self._identity, timeout_s=WRITE_TIMEOUT_S)
        if claim is None or claim.fence_revision != fence_revision:
            return
        if task_id in self.claiming or task_id in self._runner.runs:
            return  # known by now
        log.warning("task=%s is ours in etcd and unknown here: giving it back", task_id)
        outcome = Outcome(Reason.GIVEN_BACK, detail="the answer of its claim was lost")
        await self._store.give_back(claim, outcome, started_at=None, now=time.time(), timeout_s=WRITE_TIMEOUT_S)
