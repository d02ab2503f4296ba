"""Knows which nodes live, and sees to what those that are gone have left: requeues their tasks, and notes in their
host's record when they were last seen.

Watches `/node/` and, since a watch can be missed, looks at start and on a slow tick. No leader is needed: the guard
of a requeue (node key absent, record unchanged) makes repeating it harmless, and the order of a hash keeps all peers
from doing it at once. A peer whose turn comes later asks first whether anything is left, which costs etcd a count of
one node's keys; the listing of all running keys is for who finds something, and for two nodes at each tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from etcd import codec, keys
from etcd.errors import RecordCorrupt, StoreError
from etcd.identity import Identity
from etcd.port import Etcd, KeyValue, Range, WatchBatch
from etcd.store import TaskStore
from etcd.watch import Listing, list_and_watch
from node.cluster import host_record
from node.core.errors import IllegalTransition
from node.core.model import Host, Node
from node.core.sweep import Orphan, is_tick_mine, plan_sweep, turn_after_s

log = logging.getLogger(__name__)

#: The slow tick. A missed watch costs at most this much.
TICK_S = 10.0
#: Between two looks, unless there is news.
LOOK_MIN_S = 0.001
#: After an error of the store.
RETRY_S = 1.0
REQUEUE_TIMEOUT_S = 10.0
#: Requeues under way at once; the batcher makes few calls of them.
AT_ONCE = 200


@dataclass
class _Gone:
    """A node whose key is gone, until nothing of it is left."""

    #: When it was first missed (monotonic).
    since: float
    #: Its host's record, last seen when its key went, and the revision at which both were written; None where this
    #: node never saw the key, or where that is done.
    end: tuple[Host, int] | None = None
    #: Something was left the last time: not to be looked at before.
    not_before: float = 0.0


class Sweeper:
    """Of one incarnation. `nodes` is as the watch last told."""

    def __init__(self, etcd: Etcd, store: TaskStore, identity: Identity) -> None:
        self._etcd = etcd
        self._store = store
        self._identity = identity
        #: Live nodes by id.
        self.nodes: dict[str, Node] = {}
        #: Called when they have changed.
        self.on_nodes: Callable[[Mapping[str, Node]], None] = lambda _: None
        #: create_revision of the key of each.
        self._key_revisions: dict[str, int] = {}
        self._gone: dict[str, _Gone] = {}
        self._news = asyncio.Event()
        self._is_swept = False
        self._tick_at = 0.0

    async def run(self) -> None:
        """Ends when cancelled. Errors of the store cost a tick, not the node."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_nodes(), name="nodes")
            group.create_task(self._look_on_demand(), name="sweep")

    # Who lives

    async def _follow_nodes(self) -> None:
        async for news in list_and_watch(self._etcd, keys.all_nodes()):
            if isinstance(news, Listing):
                there = {kv.key for kv in news.kvs}
                for node_id in [node_id for node_id in self.nodes if keys.node(node_id) not in there]:
                    self._take_out(node_id)
                for kv in news.kvs:
                    self._take_in(kv)
                self._news.set()
            for event in news.events if isinstance(news, WatchBatch) else ():
                if not event.is_delete:
                    self._take_in(event.kv)
                elif (gone := keys.find_node(event.kv.key)) is not None:
                    self._take_out(gone)
            self.on_nodes(self.nodes)

    def _take_in(self, kv: KeyValue) -> None:
        try:
            node = codec.decode_node(kv.key, kv.value)
        except RecordCorrupt as error:
            log.error("ignored: %s", error)  # noqa: TRY400  (a stranger's key, no defect of ours)
        else:
            self.nodes[node.id] = node
            self._gone.pop(node.id, None)
            self._key_revisions[node.id] = kv.create_revision

    def _take_out(self, node_id: str) -> None:
        log.info("node=%s is gone", node_id)
        node, revision = self.nodes.pop(node_id, None), self._key_revisions.pop(node_id, 0)
        gone = self._gone.setdefault(node_id, _Gone(time.monotonic()))
        if node is not None:
            gone.end = (host_record.host_of(node, last_seen=time.time()), revision)
        self._news.set()

    # What they have left

    async def _look_on_demand(self) -> None:
        while True:
            self._news.clear()
            try:
                again_s = await self._look()
            except StoreError as error:
                log.warning("looking for orphans did not get through, trying again: %s", error)
                again_s = RETRY_S
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await self._news.wait()

    async def _look(self) -> float:
        """Sees to what is due; gives the seconds until something is due again."""
        now = time.monotonic()
        due = {node_id: gone for node_id, gone in self._gone.items() if self._due_at(node_id, gone) <= now}
        left = [node_id for node_id in due if await self._has_left(node_id)]
        is_tick = now >= self._tick_at
        if left or not self._is_swept or (is_tick and is_tick_mine(self._live, self._identity.node_id)):
            await self.sweep()
            self._is_swept = True
        if is_tick:
            self._tick_at = now + TICK_S
        for node_id, gone in due.items():
            await self._note_end(gone)
            if node_id in left:
                gone.not_before = now + TICK_S
            else:
                self._gone.pop(node_id, None)
        due_at = [self._tick_at, *(self._due_at(node_id, gone) for node_id, gone in self._gone.items())]
        # A timer may go off a moment early (asyncio's clock resolution): not to be set for what is left of it.
        return max(min(due_at) - time.monotonic(), LOOK_MIN_S)

    @property
    def _live(self) -> set[str]:
        """As far as known; this node too, whose own key may not have been seen yet."""
        return {*self.nodes, self._identity.node_id}

    def _due_at(self, node_id: str, gone: _Gone) -> float:
        return max(gone.since + turn_after_s(node_id, self._live, self._identity.node_id), gone.not_before)

    async def _has_left(self, node_id: str) -> bool:
        of_node = keys.running_of(node_id)
        found = await self._etcd.range(Range(of_node.key, of_node.range_end, count_only=True))
        return found.count > 0

    async def _note_end(self, gone: _Gone) -> None:
        if gone.end is not None:
            host, revision = gone.end
            await self._etcd.txn(host_record.end_noted(host, revision, last_seen=host.last_seen))
            gone.end = None

    async def sweep(self) -> float:
        """Lists everything and requeues the orphans that are this node's to requeue now; gives the seconds until its
        turn comes for others, or until the next tick."""
        seen = await self._store.running_at_one_revision()
        # A turn that has come must not be a rounding error away.
        now = time.monotonic() + LOOK_MIN_S
        plan = plan_sweep(
            seen.nodes,
            seen.tasks,
            self._identity.node_id,
            known_gone_for_s={node_id: now - gone.since for node_id, gone in self._gone.items()},
        )
        for node_id in plan.gone:
            self._gone.setdefault(node_id, _Gone(now))
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
