"""The tests' fake etcd, made fast enough for a hundred thousand tasks: the same answers at a fraction of the cost."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from math import inf

from etcd.port import Delete, Event, Lease, Put, Range, RangeResult
from tests.support.fake_store import FakeStore


class ScaleStore(FakeStore):
    """As FakeStore, for readers of the newest revision: what is deleted costs a listing nothing, and leases are looked
    at when the first may have run out."""

    def __init__(self) -> None:
        super().__init__(quota_bytes=1 << 50)
        #: Keys that are there, in order. (`_keys` of the base class stays empty: it has deleted ones too.)
        self._live: list[bytes] = []
        self._look_at = inf

    def _keys_in(self, op: Range | Delete) -> Iterator[bytes]:
        if not op.range_end:
            if op.key in self._versions:
                yield op.key
            return
        for index in range(*self._places(op)):
            yield self._live[index]

    def _places(self, op: Range | Delete) -> tuple[int, int]:
        first = bisect_left(self._live, op.key)
        if op.range_end == b"\0":
            return first, len(self._live)
        return first, bisect_left(self._live, op.range_end, lo=first)

    def _range(self, op: Range, revision: int) -> RangeResult:
        if not op.range_end or not (op.count_only or op.limit) or op.descending or op.keys_only:
            return super()._range(op, revision)
        first, end = self._places(op)
        count = end - first
        brought = [] if op.count_only else self._live[first : min(end, first + op.limit)]
        found = [self._versions[key][-1] for key in brought]
        return RangeResult(tuple(found), count, more=len(found) < count and not op.count_only, revision=self.revision)

    def _put(self, op: Put, events: list[Event]) -> None:
        versions = self._versions.get(op.key)
        if versions is None or not versions[-1].version:
            insort(self._live, op.key)
        if versions is None:
            self._versions[op.key] = []
        super()._put(op, events)

    def _delete(self, keys: Sequence[bytes], events: list[Event]) -> int:
        deleted = super()._delete(keys, events)
        for event in events[len(events) - deleted :]:
            del self._live[bisect_left(self._live, event.kv.key)]
            if event.kv.key.startswith(b"/task/status/"):
                del self._versions[event.kv.key]  # nobody asks for what was
        return deleted

    def grant(self, ttl_s: float, now: float) -> Lease:
        lease = super().grant(ttl_s, now)
        self._look_at = min(self._look_at, now + lease.ttl_s)
        return lease

    def expire(self, now: float) -> None:
        if now >= self._look_at:
            super().expire(now)
            self._look_at = self.next_expiry()
