"""Requeues what nodes that are gone have left: watches `/node/` and, since a watch can be missed, looks on a slow tick.

No leader is needed: the guard of a requeue (node key absent, record unchanged) makes repeating it harmless, and the
order of a hash keeps all peers from doing it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from etcd import codec, keys
from etcd.errors import RecordCorrupt, StoreError
from etcd.identity import Identity
from etcd.port import Etcd, KeyValue, WatchBatch
from etcd.store import TaskStore
from etcd.watch import Listing, list_and_watch
from node.core.errors import IllegalTransition
from node.core.model import Capacity
from node.core.sweep import Orphan, plan_sweep

log = logging.getLogger(__name__)

#: The slow tick. A missed watch costs at most this much.
TICK_S = 10.0
REQUEUE_TIMEOUT_S = 10.0
#: Requeues under way at once; the batcher makes few calls of them.
AT_ONCE = 200


class Sweeper:
    """Knows which nodes live, and requeues the tasks of those that do not."""

    def __init__(self, etcd: Etcd, store: TaskStore, identity: Identity) -> None:
        self._etcd = etcd
        self._store = store
        self._identity = identity
        #: Live nodes and their capacity, as the watch last told.
        self.nodes: dict[str, Capacity] = {}
        #: Called when they have changed.
        self.on_nodes: Callable[[Mapping[str, Capacity]], None] = lambda _: None
        #: When each node that is gone was first missed (monotonic).
        self._gone_since: dict[str, float] = {}
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Ends when cancelled. Errors of the store cost a tick, not the node."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_nodes(), name="nodes")
            group.create_task(self._sweep_on_demand(), name="sweep")

    async def _follow_nodes(self) -> None:
        async for news in list_and_watch(self._etcd, keys.all_nodes()):
            if isinstance(news, Listing):
                self.nodes = {}
                for kv in news.kvs:
                    self._take_in(kv)
                self._look.set()
            for event in news.events if isinstance(news, WatchBatch) else ():
                if event.is_delete:
                    self._take_out(event.kv.key)
                else:
                    self._take_in(event.kv)
            self.on_nodes(self.nodes)

    def _take_in(self, kv: KeyValue) -> None:
        try:
            node = codec.decode_node(kv.key, kv.value)
        except RecordCorrupt as error:
            log.error("ignored: %s", error)  # noqa: TRY400  (a stranger's key, no defect of ours)
        else:
            self.nodes[node.id] = node.capacity

    def _take_out(self, key: bytes) -> None:
        try:
            node_id = keys.parse_node(key)
        except RecordCorrupt:
            return  # never was a node
        log.info("node=%s is gone", node_id)
        self.nodes.pop(node_id, None)
        self._look.set()

    async def _sweep_on_demand(self) -> None:
        while True:
            try:
                again_s = await self.sweep()
            except StoreError as error:
                log.warning("sweep did not get through, trying again: %s", error)
                again_s = 1.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), again_s)
            self._look.clear()

    async def sweep(self) -> float:
        """Requeues the orphans that are ours to requeue now; gives the seconds until it should look again."""
        seen = await self._store.running_at_one_revision()
        now = time.monotonic()
        plan = plan_sweep(
            seen.nodes,
            seen.tasks,
            self._identity.node_id,
            known_gone_for_s={node_id: now - since for node_id, since in self._gone_since.items()},
        )
        self._gone_since = {node_id: self._gone_since.get(node_id, now) for node_id in plan.gone}
        for start in range(0, len(plan.requeue), AT_ONCE):
            await asyncio.gather(*map(self._requeue, plan.requeue[start : start + AT_ONCE]))
        return TICK_S if plan.look_again_after_s is None else min(TICK_S, plan.look_again_after_s)

    async def _requeue(self, orphan: Orphan) -> None:
        try:
            after = await self._store.requeue(
                orphan.task_id, orphan.node_id, now=time.time(), timeout_s=REQUEUE_TIMEOUT_S
            )
        except (RecordCorrupt, IllegalTransition) as error:
            log.error("task=%s cannot be requeued: %s", orphan.task_id, error)  # noqa: TRY400  (told, and tried again)
            return
        if after is not None:
            log.info("task=%s requeued from node=%s, now %s", orphan.task_id, orphan.node_id, after.status.value)
