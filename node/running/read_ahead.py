"""Records of the tasks at the head of the queue, read before they are claimed.

A claim needs its record. Read when a slot comes free, it would cost every task of a backlog a round trip; read ahead,
dozens share one. Each record is read ahead by the one node that is to claim its task first: were it the oldest for all,
a thousand nodes would each read all of them.

What was read may be outdated when it is used: the claim's guard refuses it then, and whatever made it outdated (a
cancel, a requeue) shows in the queue's watch as well, which drops it here and decides whether the task is offered
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from itertools import islice

from etcd.errors import StoreError
from etcd.store import TaskStore, Versioned
from node.core.queue_view import QueueView

log = logging.getLogger(__name__)

#: Records held, and how few are left when the next are read. A record may have 1 MiB, most have some hundred bytes.
HELD_MAX = 64
LOW = 24
#: Offers looked at for those that are this node's, and how many of these are worth a read. Among so many nodes that
#: fewer are found, or that those held are not enough, a claim reads for itself.
LOOKED_AT_MAX = 1024
WORTH_READING = 4
#: Held in all, with those submitted through this node.
ALL_MAX = 256


class ReadAhead:
    """A small store of records, by task id."""

    def __init__(self, store: TaskStore, view: QueueView) -> None:
        self._store = store
        self._view = view
        self._held: dict[str, Versioned] = {}
        #: Of each read under way the ids whose record may be held when it comes: those that were not dropped since.
        self._reads: list[set[str]] = []

    def take(self, task_id: str) -> Versioned | None:
        """The record, if it is here; it is not any more then."""
        return self._held.pop(task_id, None)

    def hold(self, seen: Versioned) -> None:
        """A record that is known without reading it."""
        if len(self._held) < ALL_MAX:
            self._held[seen.task.id] = seen

    def drop(self, task_id: str) -> None:
        """It is not as it was."""
        self._held.pop(task_id, None)
        for reading in self._reads:
            reading.discard(task_id)

    def clear(self) -> None:
        """Events may have been missed."""
        self._held.clear()
        for reading in self._reads:
            reading.clear()

    def wanted(self) -> Sequence[str]:
        """What to read next, oldest first; empty while enough is here, or the queue is short."""
        if self._reads or len(self._held) > LOW or len(self._view) < 2:
            return ()
        oldest = self._view.oldest_first(list(self._view.kinds()))
        if self._view.peers.count == 1:
            return [offer.task_id for offer in islice(oldest, HELD_MAX) if offer.task_id not in self._held]
        mine = (offer.task_id for offer in islice(oldest, LOOKED_AT_MAX) if offer.steps() == 0)
        wanted = [task_id for task_id in islice(mine, HELD_MAX) if task_id not in self._held]
        return wanted if len(wanted) >= WORTH_READING else ()

    def read(self, task_ids: Sequence[str]) -> Coroutine[None, None, None]:
        """Reads and holds these. Errors cost nothing but the advantage. They are under way from this call on."""
        reading = set(task_ids)
        self._reads.append(reading)
        return self._read(task_ids, reading)

    async def _read(self, task_ids: Sequence[str], reading: set[str]) -> None:
        try:
            for seen in await self._store.read_each(task_ids):
                # One that cannot be read is told when it is to be claimed.
                if isinstance(seen, Versioned) and seen.task.id in reading and seen.task.id in self._view:
                    self._held[seen.task.id] = seen
        except StoreError as error:
            log.debug("nothing was read ahead: %s", error)
            await asyncio.sleep(0.5)
        finally:
            self._reads = [one for one in self._reads if one is not reading]
