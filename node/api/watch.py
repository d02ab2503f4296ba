"""TaskService.Watch: transitions as they happen, from etcd's own watch, in its order and with its revisions.

A call goes from source to source, and `floor` says where it is: everything up to that revision has been told or was
left out for good.
  from now on    -> the watch that all calls of this node share (`node/api/shared_watch.py`); what the records say is
                    read once that stands, so that nothing between the two is missed; what is no newer is left out
  from a revision, or where the shared watch has ended or is not for this call
                 -> a watch of its own: a few ids one by one, many, or all, as the one range of all records; once that
                    has caught up with the shared one, it goes on there
Slow clients hold no memory: etcd keeps what they have not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from etcd import keys
from etcd.port import Etcd, Range, Txn
from node.api.errors import invalid, not_found, streams
from node.api.shared_watch import Follower, SharedWatch
from node.api.watch_answers import GROUP_MAX, Pace, Wanted, has_ended, messages, of_record, responses_of
from node.core import ids
from node.core.validate import Violation
from pilfer.v1 import tasks_pb2

#: Reads in one transaction (etcd's default limit of operations is 128).
READS_AT_ONCE = 100


class WatchCall:
    """The streaming call of TaskService that follows records."""

    def __init__(self, etcd: Etcd, shared: SharedWatch | None = None) -> None:
        """shared: None, or one that does not run: each call has a watch of its own."""
        self._etcd = etcd
        self._shared = shared or SharedWatch(etcd)

    @streams
    async def Watch(  # noqa: N802  (gRPC's name)
        self, request: tasks_pb2.WatchRequest, _context: Any
    ) -> AsyncGenerator[tasks_pb2.WatchResponse, None]:
        for task_id in request.ids:
            if not ids.is_task_id(task_id):
                raise invalid([Violation("ids", f"{task_id!r} is no full task id")])
        if request.HasField("from_revision") and request.from_revision < 1:
            raise invalid([Violation("from_revision", "must be 1 or more")])
        async with contextlib.aclosing(_Course(self._etcd, self._shared, request).responses()) as told:
            async for some in told:
                for message in messages(some, are_grouped=request.grouped):
                    yield message


class _Course:
    """One call's way through its sources."""

    def __init__(self, etcd: Etcd, shared: SharedWatch, request: tasks_pb2.WatchRequest) -> None:
        self._etcd = etcd
        self._shared = shared
        #: As given: the present states come in that order.
        self._ids = list(request.ids)
        self._wanted = Wanted(frozenset(request.ids), dict(request.labels), request.ended_only)
        self._pace = Pace() if request.grouped else None
        #: Where the next watch of its own begins; None: now.
        self._start: int | None = request.from_revision if request.HasField("from_revision") else None
        self._has_begun = False
        self._follower: Follower | None = None
        #: Everything up to this revision has been told, or is not to be.
        self._floor = 0
        #: Of each id that is asked for: the newest revision that was told or read. Watches of several ids may overtake
        #: one another, and so `floor` may be behind what was told.
        self._newest: dict[str, int] = {}

    async def responses(self) -> AsyncGenerator[list[tasks_pb2.WatchResponse], None]:
        """All that the call tells, in order, in lists that are never empty. Raises StoreError and ApiError."""
        if self._start is None:
            self._follower = await self._shared.follow(self._wanted)
        try:
            while True:
                source = self._own() if self._follower is None else self._common(self._follower)
                async with contextlib.aclosing(source) as found:
                    async for some in found:
                        if some:
                            yield some
        finally:
            if self._follower is not None:
                self._shared.leave(self._follower)

    async def _common(self, follower: Follower) -> AsyncGenerator[list[tasks_pb2.WatchResponse], None]:
        """What the shared watch brings, until it has ended."""
        yield await self._begin()
        while await follower.wait():
            if self._pace is not None and (delay_s := self._pace.delay_s(asyncio.get_running_loop().time())):
                await asyncio.sleep(delay_s)
            yield self._new(follower.take())
        self._floor = max(self._floor, follower.resume_after)
        self._start = self._floor + 1
        self._follower = None

    async def _own(self) -> AsyncGenerator[list[tasks_pb2.WatchResponse], None]:
        """What a watch of its own brings, until the shared one has nothing that is newer."""
        async with self._etcd.watch(self._wanted.ranges(), start_revision=self._start) as batches:
            yield await self._begin()
            async for batch in batches:
                # One etcd batch of a replay has 100,000 events.
                for start in range(0, len(batch.events), GROUP_MAX):
                    yield self._new(responses_of(batch.events[start : start + GROUP_MAX], self._wanted))
                self._floor = max(self._floor, batch.revision)
                self._follower = self._shared.join(self._wanted, self._floor)
                if self._follower is not None:
                    return

    async def _begin(self) -> list[tasks_pb2.WatchResponse]:
        """What comes first, once the first watch stands; nothing after that. It is read no earlier: what happens
        between the two is told by the watch; and a watch from a revision that has passed would be served only every
        100 ms (etcd's unsynced watchers), which a short task would wait for."""
        if self._has_begun:
            return []
        self._has_begun = True
        present: list[tasks_pb2.WatchResponse] = []
        if self._start is not None:
            self._floor = self._start - 1
        elif self._ids:
            present, self._floor = await self._present()
            self._newest = {response.task.id: response.revision for response in present}
        else:
            self._floor = await self._revision()
        ready = tasks_pb2.WatchResponse(ready=True, revision=self._floor + 1)
        if self._wanted.ended_only:
            return [*filter(has_ended, present), ready]
        return [ready, *present]

    def _new(self, responses: Sequence[tasks_pb2.WatchResponse]) -> list[tasks_pb2.WatchResponse]:
        """Those that were not told yet, which are taken as told."""
        found = []
        for response in responses:
            if response.revision <= self._floor:
                continue
            if self._ids:
                if response.revision <= self._newest.get(response.task.id, 0):
                    continue
                self._newest[response.task.id] = response.revision
            found.append(response)
        return found

    async def _revision(self) -> int:
        """etcd's newest; by a read of a key that is never there."""
        return (await self._etcd.range(Range(keys.all_tasks().key, keys_only=True))).revision

    async def _present(self) -> tuple[list[tasks_pb2.WatchResponse], int]:
        """The state of each id, in their order, and the oldest revision at which one was read."""
        found: list[tasks_pb2.WatchResponse] = []
        oldest: int | None = None
        for start in range(0, len(self._ids), READS_AT_ONCE):
            some = self._ids[start : start + READS_AT_ONCE]
            result = await self._etcd.txn(Txn(success=tuple(Range(keys.task(task_id)) for task_id in some)))
            oldest = result.revision if oldest is None else oldest
            for task_id, read in zip(some, result.results, strict=True):
                kvs = getattr(read, "kvs", ())
                if not kvs:
                    raise not_found(task_id)
                found.append(of_record(kvs[0].value, kvs[0].mod_revision))
        return found, oldest or 0
