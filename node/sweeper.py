"""Requeues what nodes that are gone have left: watches `/node/` and, since a watch can be missed, looks on a slow tick.

No leader is needed: the guard of a requeue (node key absent, record unchanged) makes repeating it harmless, and the
order of a hash keeps all peers from doing it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from etcd import keys
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.port import Etcd
from etcd.store import TaskStore
from etcd.watch import Listing, list_and_watch
from node.core import sweep

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
        #: Node ids whose keys are there, as the watch last told. Our own is there as long as we are.
        self.live: frozenset[str] = frozenset({identity.node_id})
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Ends when cancelled. Errors of the store cost a tick, not the node."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_nodes(), name="nodes")
            group.create_task(self._sweep_on_demand(), name="sweep")

    async def _follow_nodes(self) -> None:
        live: set[str] = set()
        async for news in list_and_watch(self._etcd, keys.all_nodes(), keys_only=True):
            if isinstance(news, Listing):
                live = {keys.parse_node(kv.key) for kv in news.kvs}
                self._look.set()
            else:
                for event in news.events:
                    node_id = keys.parse_node(event.kv.key)
                    if event.is_delete:
                        log.info("node=%s is gone", node_id)
                        live.discard(node_id)
                        self._look.set()
                    else:
                        live.add(node_id)
            self.live = frozenset(live)

    async def _sweep_on_demand(self) -> None:
        while True:
            try:
                again_s = await self.sweep()
            except StoreError as error:
                log.warning("sweep did not get through, trying again: %s", error)
                again_s = 1.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), min(again_s, TICK_S))
            self._look.clear()

    async def sweep(self) -> float:
        """Requeues the orphans that are ours to requeue now; gives the seconds until it should look again."""
        running = await self._store.running_at_one_revision()
        plan = sweep.plan(running.nodes, running.tasks, self._identity.node_id)
        limit = asyncio.Semaphore(AT_ONCE)

        async def requeue(task_id: str, node_id: str) -> None:
            async with limit:
                after = await self._store.requeue(
                    task_id, node_id, now=time.time(), timeout_s=REQUEUE_TIMEOUT_S
                )
                if after is not None:
                    log.info("task=%s requeued from node=%s, now %s", task_id, node_id, after.status.value)

        await asyncio.gather(*(requeue(task_id, node_id) for node_id, task_id in plan.now))
        return plan.look_again_s
