"""One watch of all records for all the watch calls of a node.

A watch of its own costs a call a stream to etcd and a round trip before anything is known; most calls wait for one
task and are over in milliseconds. So the node holds one watch, from the first call on until a while after the last,
and each call follows that.

Invariant, per follower: from the moment of `follow` (or `join`) on, every transition that etcd tells and that it wants
is put into its queue once, in order, until it is ended. Then `resume_after` says up to which revision that holds, and
whoever follows goes on from there by a watch of its own: after the loss of this watch, whatever the reason (so errors,
compaction among them, are met and told there), and when its queue is full (etcd keeps the rest for it then).
`follow` says nothing of what was before: read the records after it, and leave out what is no newer.

All records is more than a few ids need. Where far more is told than anybody wants, the watch is given up for a time,
and calls for few ids watch these alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from etcd import keys
from etcd.errors import StoreError, StoreUnavailable
from etcd.port import Etcd, Event, WatchBatch
from node.api.watch_answers import Wanted, id_of, response_of
from pilfer.v1 import tasks_pb2

log = logging.getLogger(__name__)

#: The watch stays for so long after its last follower.
LINGER_S = 60.0
#: A follower's queue.
QUEUE_MAX = 10_000
QUEUE_MAX_BYTES = 16 * 1024 * 1024
#: Events that nobody wants, in so long: about a hundredth of a core.
WASTE_WINDOW_S = 10.0
WASTE_MAX = 5_000
#: A watch of its own costs a call about as much as so many of them.
CALL_WORTH = 50
#: How long calls for few ids watch these alone after that.
REST_S = 60.0
#: Events looked at between two turns of the loop.
SLICE = 500


class Follower:
    """What one call gets of the shared watch."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._queue: list[tasks_pb2.WatchResponse] = []
        self._bytes = 0
        self._changed = asyncio.Event()
        self._resume_after: int | None = None

    @property
    def resume_after(self) -> int:
        """Once it has ended: everything up to here was queued since it began to follow. 0: nothing has come."""
        return self._resume_after or 0

    async def wait(self) -> bool:
        """Until there is something to take: True; False when it has ended and all is taken."""
        while not self._queue:
            if self._resume_after is not None:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def take(self) -> list[tasks_pb2.WatchResponse]:
        """All that is queued, in order."""
        taken, self._queue, self._bytes = self._queue, [], 0
        return taken

    def has_room(self, responses: int, size: int) -> bool:
        """Whether so much more may be queued; an empty queue takes anything."""
        return not self._queue or (len(self._queue) + responses <= QUEUE_MAX and self._bytes + size <= QUEUE_MAX_BYTES)

    def put(self, responses: list[tasks_pb2.WatchResponse], size: int) -> None:
        self._queue += responses
        self._bytes += size
        self._changed.set()

    def end(self, resume_after: int) -> None:
        self._resume_after = resume_after
        self._changed.set()


class SharedWatch:
    """The watch and its followers. `run` is the duty that holds it; while that does not run, nobody is served."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._is_running = False
        #: Somebody waits for the watch.
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[StoreError | None]] = []
        #: Not None while the watch stands. Expires when it is given up for want of followers.
        self._linger: asyncio.Timeout | None = None
        #: Followers of few ids by each of them; the others.
        self._narrow: dict[str, set[Follower]] = {}
        self._wide: set[Follower] = set()
        self._narrow_count = 0
        #: Everything up to this revision has been put into the queues; None: nothing has come yet.
        self._delivered: int | None = None
        self._is_delivering = False
        self._waste = 0
        self._window_ends = 0.0
        self._rests_until = 0.0

    # For the calls

    async def follow(self, wanted: Wanted) -> Follower | None:
        """From now on, once the watch stands; None: use a watch of your own. Raises StoreUnavailable when it does not
        stand in time. `leave` must be called for each."""
        while self._is_running and (self._stands or not self._spares(wanted)):
            if self._stands:
                self._waste -= CALL_WORTH
                return self._attach(wanted)
            waiting: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            self._asked.set()
            error = await waiting
            if error is not None:
                # One of its own for each call: the traceback of a shared one would grow with them.
                raise StoreUnavailable(str(error)) from error
        return None

    def join(self, wanted: Wanted, position: int) -> Follower | None:
        """For a call that has had everything up to a revision from a watch of its own: it goes on here. None: not now.
        `leave` must be called."""
        if not self._stands or self._is_delivering or self._delivered is None or self._delivered > position:
            return None
        return None if self._spares(wanted) else self._attach(wanted)

    def leave(self, follower: Follower) -> None:
        """Nothing more is queued for it. May be repeated."""
        if follower.wanted.is_narrow:
            for task_id in follower.wanted.ids:
                others = self._narrow.get(task_id)
                if others is None or follower not in others:
                    return
                others.remove(follower)
                if not others:
                    del self._narrow[task_id]
            self._narrow_count -= 1
        else:
            self._wide.discard(follower)
        self._rest()

    # The duty

    async def run(self) -> None:
        """Until it is canceled."""
        self._is_running = True
        try:
            while True:
                await self._asked.wait()
                await self._hold()
        finally:
            self._is_running = False
            self._answer(self._waiting, StoreUnavailable("the node stops"))

    async def _hold(self) -> None:
        """One watch, from its begin to its end."""
        first = self._waiting[:]
        try:
            async with self._etcd.watch([keys.all_tasks()]) as batches:
                await self._deliver(batches)
        except StoreError as error:
            log.warning("the shared watch of the records ended: %s", error)
            self._answer(first, error)
            if not self._waiting:
                self._asked.clear()
        finally:
            self._linger = None
            for follower in self._followers():
                follower.end(self._delivered or 0)
            self._narrow.clear()
            self._wide.clear()
            self._narrow_count = 0

    async def _deliver(self, batches: AsyncIterator[WatchBatch]) -> None:
        """Until there is no follower for a while, or too much that nobody wants."""
        self._delivered, self._is_delivering, self._waste = None, False, 0
        self._window_ends = asyncio.get_running_loop().time() + WASTE_WINDOW_S
        try:
            async with asyncio.timeout(None) as self._linger:
                self._rest()
                self._asked.clear()
                self._answer(self._waiting, None)
                async for batch in batches:
                    await self._tell(batch)
                    if self._is_wasteful():
                        log.info("far more is told of tasks than anybody here waits for: few ids are watched alone")
                        self._rests_until = asyncio.get_running_loop().time() + REST_S
                        return
        except TimeoutError:
            if self._linger is None or not self._linger.expired():
                raise

    async def _tell(self, batch: WatchBatch) -> None:
        """Puts a batch into the queues, whole or, where one is full, not at all; to each follower in one step, so that
        its `resume_after` is never within what it has got."""
        found: dict[Follower, tuple[list[tasks_pb2.WatchResponse], int]] = {}
        self._is_delivering = True
        for number, event in enumerate(batch.events, start=1):
            self._sort(event, found)
            if number % SLICE == 0:
                await asyncio.sleep(0)
        for follower, (responses, size) in found.items():
            if follower.has_room(len(responses), size):
                follower.put(responses, size)
            else:
                log.info("a watch call is too slow for the shared watch: it goes on by one of its own")
                self.leave(follower)
                follower.end(self._delivered or 0)
        self._delivered = max(self._delivered or 0, batch.revision)
        self._is_delivering = False

    def _sort(self, event: Event, found: dict[Follower, tuple[list[tasks_pb2.WatchResponse], int]]) -> None:
        """Adds an event to what each follower gets that wants it; it is read once for all."""
        task_id = id_of(event)
        if task_id is None:
            return
        asking = [*self._narrow.get(task_id, ()), *(one for one in self._wide if one.wanted.has_id(task_id))]
        if not asking:
            self._waste += 1
            return
        response = response_of(event, task_id)
        if response is None:
            return
        for follower in asking:
            if follower.wanted.has(response):
                responses, size = found.get(follower, ([], 0))
                responses.append(response)
                found[follower] = (responses, size + len(event.kv.value))

    # Smaller steps

    @property
    def _stands(self) -> bool:
        return self._linger is not None and not self._linger.expired()

    def _spares(self, wanted: Wanted) -> bool:
        """Whether this call had better watch its few ids alone."""
        return wanted.is_narrow and asyncio.get_running_loop().time() < self._rests_until

    def _is_wasteful(self) -> bool:
        """Whether the watch costs more than it saves. Calls that need all records anyway justify it."""
        now = asyncio.get_running_loop().time()
        if self._wide or now >= self._window_ends:
            self._waste, self._window_ends = 0, now + WASTE_WINDOW_S
        return self._waste > WASTE_MAX

    def _attach(self, wanted: Wanted) -> Follower:
        follower = Follower(wanted)
        if wanted.is_narrow:
            for task_id in wanted.ids:
                self._narrow.setdefault(task_id, set()).add(follower)
            self._narrow_count += 1
        else:
            self._wide.add(follower)
        self._rest()
        return follower

    def _rest(self) -> None:
        """The time to linger begins or ends."""
        if self._linger is not None and not self._linger.expired():
            is_followed = self._narrow_count or self._wide
            self._linger.reschedule(None if is_followed else asyncio.get_running_loop().time() + LINGER_S)

    def _followers(self) -> set[Follower]:
        return self._wide.union(*self._narrow.values())

    def _answer(self, waiting: list[asyncio.Future[StoreError | None]], error: StoreError | None) -> None:
        for one in waiting:
            if not one.done():
                one.set_result(error)
        self._waiting = [one for one in self._waiting if not one.done()]
