"""Watches, for a thousand nodes: what is news of a range is found once, and told to all who watch it.

Theory. A change is found by its keys' prefixes and noted in the log of each feed that it belongs to. Each voter pushes
what is new to its own watchers in rounds: a round takes as long as its messages cost, its watchers hear of it one
after another meanwhile, and what happens until its end is the next round's. That is etcd's way too: a watcher that is
up to date gets a message for each revision, one that is far behind gets all in one. Events of one round come to a node
as one batch here; the messages are counted as etcd sends them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict
from typing import Self

from etcd.port import Event, KeyRange, WatchBatch
from tests.simulation.scale.speed import Speed
from tests.simulation.scale.voters import Voter
from tests.support.fake_store import Change

#: Watchers that hear at the same moment, to spare timers.
GROUP = 16
#: Of an event beside key and value, and of a message.
EVENT_BYTES, MESSAGE_BYTES = 24, 40


class Feed:
    """News of one range."""

    def __init__(self, key_range: KeyRange, speed: Speed) -> None:
        self.key_range = key_range
        self._speed = speed
        self._loop = asyncio.get_running_loop()
        self._log: list[WatchBatch] = []
        #: Events and bytes up to each entry of the log.
        self._sums: list[tuple[int, int]] = [(0, 0)]
        self._of_voter: dict[Voter, _Pushed] = {}
        self._merged: tuple[int, int, WatchBatch] | None = None

    @property
    def end(self) -> int:
        return len(self._log)

    def add(self, revision: int, events: list[Event]) -> None:
        if self.key_range.puts_only:
            events = [event for event in events if not event.is_delete]
            if not events:
                return
        self._log.append(WatchBatch(revision, tuple(events)))
        count, size = self._sums[-1]
        size += sum(EVENT_BYTES + len(event.kv.key) + len(event.kv.value) for event in events)
        self._sums.append((count + len(events), size + MESSAGE_BYTES))
        for voter, pushed in self._of_voter.items():
            if not pushed.is_busy and pushed.watches:
                self._push(voter, pushed)

    def join(self, watch: FeedWatch, start_revision: int) -> int:
        """The place in the log from which it is to be told."""
        pushed = self._of_voter.setdefault(watch.voter, _Pushed(self.end))
        pushed.watches.append(watch)
        return bisect_left(self._log, start_revision, key=lambda batch: batch.revision)

    def leave(self, watch: FeedWatch) -> None:
        self._of_voter[watch.voter].watches.remove(watch)

    def news(self, start: int, end: int) -> WatchBatch:
        """Entries start to end as one."""
        if end - start == 1:
            return self._log[start]
        if self._merged is None or self._merged[:2] != (start, end):
            entries = self._log[start:end]
            whole = WatchBatch(entries[-1].revision, tuple([event for entry in entries for event in entry.events]))
            self._merged = (start, end, whole)
        return self._merged[2]

    def cost(self, start: int, end: int) -> tuple[int, int, int]:
        """Messages, events and bytes of these entries, for one watcher."""
        messages = end - start if end - start <= self._speed.behind_max else 1
        return messages, self._sums[end][0] - self._sums[start][0], self._sums[end][1] - self._sums[start][1]

    def _push(self, voter: Voter, pushed: _Pushed) -> None:
        pushed.is_busy = True
        start, pushed.end = pushed.end, self.end
        messages, events, _ = self.cost(start, pushed.end)
        each_s = messages * self._speed.push_message_s + events * self._speed.push_event_s
        began = self._loop.time()
        done = max(began, voter.work(each_s * len(pushed.watches)))
        pushed.first = (pushed.first + GROUP) % max(1, len(pushed.watches))
        order = pushed.watches[pushed.first :] + pushed.watches[: pushed.first]
        for place in range(0, len(order), GROUP):
            group = order[place : place + GROUP]
            at = began + (done - began) * min(1.0, (place + GROUP) / len(order)) + voter.half_trip_s()
            self._loop.call_at(at, _tell, group, pushed.end)
        self._loop.call_at(done, self._pushed, voter, pushed)

    def _pushed(self, voter: Voter, pushed: _Pushed) -> None:
        pushed.is_busy = False
        if pushed.end < self.end and pushed.watches:
            self._push(voter, pushed)


class _Pushed:
    """How far one voter has told its watchers."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.watches: list[FeedWatch] = []
        self.is_busy = False
        #: Who hears first this time.
        self.first = 0


def _tell(watches: list[FeedWatch], end: int) -> None:
    for watch in watches:
        watch.tell(end)


class FeedWatch:
    """One node's watch of a range; as `etcd.port.Etcd.watch` gives it."""

    def __init__(self, feeds: Feeds, key_range: KeyRange, start_revision: int | None, voter: Voter) -> None:
        self.voter = voter
        self._feeds = feeds
        self._feed = feeds.of(key_range)
        self._start = start_revision
        self._next = self._told = 0
        self._waiter: asyncio.Future[None] | None = None
        #: What etcd has sent here.
        self.messages = self.events = self.bytes = 0

    async def __aenter__(self) -> Self:
        await asyncio.sleep(2 * self.voter.half_trip_s())
        self._next = self._feed.join(self, self._start or self._feeds.revision + 1)
        self._told = self._feed.end
        self._feeds.open[self] = None
        return self

    async def __aexit__(self, *_: object) -> None:
        self._feed.leave(self)
        self._feeds.close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        while self._next >= self._told:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        start, self._next = self._next, self._told
        messages, events, size = self._feed.cost(start, self._told)
        self.messages += messages
        self.events += events
        self.bytes += size
        return self._feed.news(start, self._told)

    def tell(self, end: int) -> None:
        self._told = max(self._told, end)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feeds:
    """All of them; the listener of the store."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._by_range: dict[KeyRange, Feed] = {}
        #: By where their range begins: a whole key, or a prefix that ends with a slash.
        self._by_key: dict[bytes, list[Feed]] = {}
        self.revision = 1
        self.open: dict[FeedWatch, None] = {}
        #: Of watches that are closed.
        self.messages = self.events = self.bytes = 0

    def of(self, key_range: KeyRange) -> Feed:
        feed = self._by_range.get(key_range)
        if feed is None:
            feed = self._by_range[key_range] = Feed(key_range, self._speed)
            self._by_key.setdefault(key_range.key, []).append(feed)
        return feed

    def close(self, watch: FeedWatch) -> None:
        self.open.pop(watch, None)
        self.messages += watch.messages
        self.events += watch.events
        self.bytes += watch.bytes

    def sums(self) -> tuple[int, int, int]:
        """Messages, events and bytes that were sent to all."""
        return (
            self.messages + sum(watch.messages for watch in self.open),
            self.events + sum(watch.events for watch in self.open),
            self.bytes + sum(watch.bytes for watch in self.open),
        )

    def changed(self, change: Change) -> None:
        self.revision = change.revision
        found: defaultdict[Feed, list[Event]] = defaultdict(list)
        for event in change.events:
            for feed in self._find(event.kv.key):
                found[feed].append(event)
        for feed, events in found.items():
            feed.add(change.revision, events)

    def _find(self, key: bytes) -> list[Feed]:
        found = list(self._by_key.get(key, ()))
        slash = key.find(b"/", 1)
        while slash > 0:
            found += self._by_key.get(key[: slash + 1], ())
            slash = key.find(b"/", slash + 1)
        return found
