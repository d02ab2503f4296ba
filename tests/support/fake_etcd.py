"""`FakeEtcd`: the port `etcd.port.Etcd` in memory, with faults to order.

Several fakes on one `FakeStore` are several clients (nodes) of one etcd. Time is the running loop's, so that a loop
with virtual time makes leases run out in virtual time; or a clock that is passed in (then call `tick()` after moving
it). Every call gives the loop one turn, as a real one would.

Faults are decided per call by `faults`, a function of the method's name and its argument; `is_cut` cuts the whole
client off, as a broken network would: calls hang until their deadline, watches and lease streams fall silent, and go
on where they were when it is healed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from etcd.errors import Compacted, InvalidRequest, MembershipRefused, OutcomeUnknown, StoreUnavailable
from etcd.port import (
    Alarm,
    Event,
    KeepAliveAnswer,
    KeepAliveStream,
    KeyRange,
    Lease,
    Member,
    MemberStatus,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    WatchBatch,
)
from tests.support.fake_membership import MEMBER_ID
from tests.support.fake_store import Change, FakeStore, contains

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one call. The caller of a write sees OutcomeUnknown, of a read StoreUnavailable, in every case."""

    #: None: the request is never applied; otherwise it is applied after so many seconds.
    applied_after_s: float | None = None
    #: The caller's error comes after so many seconds.
    error_after_s: float = 0.0


#: The request did not reach etcd.
LOST_BEFORE = Fault()
#: The request was applied, the answer was lost.
LOST_AFTER = Fault(applied_after_s=0.0)


def applied_later(seconds: float) -> Fault:
    """The caller gives up at once; the request is applied later."""
    return Fault(applied_after_s=seconds)


def no_faults(_method: str, _argument: object) -> Fault | None:
    return None


class FakeEtcd:
    """One client of a FakeStore."""

    def __init__(
        self,
        store: FakeStore | None = None,
        *,
        clock: Callable[[], float] | None = None,
        member_id: int = MEMBER_ID,
    ) -> None:
        """member_id: the member that is asked first; while it does not run, another one answers."""
        self.store = store or FakeStore()
        self.member_id = member_id
        #: Called with method name and argument before each call; a Fault makes it fail.
        self.faults: Callable[[str, object], Fault | None] = no_faults
        self._healed = asyncio.Event()
        self._healed.set()
        #: How long each call takes, in seconds.
        self.latency: Callable[[], float] = lambda: 0.0
        #: Names of the methods called, in order.
        self.calls: list[str] = []
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        #: Those open now.
        self.watches: set[FakeWatch] = set()
        self.lease_streams: set[FakeKeepAlive] = set()
        self._later: set[asyncio.TimerHandle] = set()

    @property
    def is_cut(self) -> bool:
        """Whether this client is cut off; to be set by the test."""
        return not self._healed.is_set()

    @is_cut.setter
    def is_cut(self, is_cut: bool) -> None:
        if is_cut:
            self._healed.clear()
            return
        self._healed.set()
        for watch in self.watches:
            watch.wake()
        for stream in self.lease_streams:
            stream.deliver()

    def now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def tick(self) -> None:
        """Lets leases run out whose time has come."""
        self.store.expire(self.now())
        self._set_timer()

    async def close(self) -> None:
        """Ends timers, watches and lease streams of this client; what was to be applied later is not applied."""
        for timer in (*self._later, *([self._timer] if self._timer else [])):
            timer.cancel()
        self.break_streams()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def use_next_endpoint(self) -> None:
        """There is only one."""

    def break_streams(self) -> None:
        """As a broken connection: watches resume by themselves, lease streams raise."""
        for stream in list(self.lease_streams):
            stream.break_()

    # The port

    async def range(self, op: Range, *, timeout_s: float = 3.0) -> RangeResult:
        return await self._call("range", op, lambda: self.store.read(op), timeout_s, is_write=False)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        return await self._call("txn", txn, lambda: self.store.transact(txn, self.now()), timeout_s, is_write=True)

    def watch(
        self, ranges: Sequence[KeyRange], *, start_revision: int | None = None, timeout_s: float = 10.0
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        return FakeWatch(self, ranges, start_revision, timeout_s)

    async def lease_grant(self, ttl_s: float, *, timeout_s: float = 3.0) -> Lease:
        lease = await self._call(
            "lease_grant", ttl_s, lambda: self.store.grant(ttl_s, self.now()), timeout_s, is_write=True
        )
        self._set_timer()
        return lease

    async def lease_revoke(self, lease_id: int, *, timeout_s: float = 3.0) -> None:
        await self._call("lease_revoke", lease_id, lambda: self.store.revoke(lease_id), timeout_s, is_write=True)

    def keep_alive(self, lease_id: int) -> AbstractAsyncContextManager[KeepAliveStream]:
        return FakeKeepAlive(self, lease_id)

    async def compact(self, revision: int, *, physical: bool = False, timeout_s: float = 30.0) -> None:
        await self._call("compact", revision, lambda: self.store.compact(revision), timeout_s, is_write=True)

    async def status(self, *, timeout_s: float = 3.0) -> MemberStatus:
        return await self._call("status", None, self._status, timeout_s, is_write=False)

    async def defragment(self, *, timeout_s: float = 60.0) -> None:
        await self._call("defragment", None, lambda: self.store.defragment(self._asked), timeout_s, is_write=True)

    async def alarms(self, *, timeout_s: float = 3.0) -> tuple[Alarm, ...]:
        def look() -> tuple[Alarm, ...]:
            return tuple(Alarm(member_id, "NOSPACE") for member_id in sorted(self.store.no_space_alarms))

        return await self._call("alarms", None, look, timeout_s, is_write=False)

    async def disarm(self, alarm: Alarm, *, timeout_s: float = 3.0) -> None:
        def disarm() -> None:
            if alarm.kind == "NOSPACE":  # of a member that raised none it is answered with OK and does nothing
                self.store.disarm(alarm.member_id)

        await self._call("disarm", alarm, disarm, timeout_s, is_write=True)

    async def snapshot(self, file: Path, *, timeout_s: float = 600.0) -> int:
        """The keys and values, one per line, for people."""

        def write() -> int:
            return file.write_bytes(b"".join(b"%r %r\n" % (kv.key, kv.value) for kv in self.store.read_all()))

        return await self._call("snapshot", file, write, timeout_s, is_write=False)

    async def members(self, *, timeout_s: float = 3.0, linearizable: bool = True) -> tuple[Member, ...]:
        def look() -> tuple[Member, ...]:
            return tuple(self.store.membership.members.values())

        return await self._call("members", linearizable, look, timeout_s, is_write=False)

    async def add_learner(self, peer_urls: Sequence[str], *, timeout_s: float = 5.0) -> Member:
        urls = tuple(peer_urls)

        def add() -> Member:
            return self.store.membership.add_learner(urls, self.now())

        return await self._call("add_learner", urls, add, timeout_s, is_write=True)

    async def promote(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        def promote() -> None:
            self.store.membership.promote(member_id, self.now())

        await self._call("promote", member_id, promote, timeout_s, is_write=True)

    async def remove_member(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        def remove() -> None:
            self.store.membership.remove(member_id, self.now())

        await self._call("remove_member", member_id, remove, timeout_s, is_write=True)

    async def update_member(self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float = 5.0) -> None:
        def update() -> None:
            self.store.membership.update(member_id, peer_urls)

        await self._call("update_member", (member_id, tuple(peer_urls)), update, timeout_s, is_write=True)

    async def move_leader(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        def move() -> None:
            self.store.membership.move_leader(member_id, asked=self._asked)

        await self._call("move_leader", member_id, move, timeout_s, is_write=True)

    # Behind it

    @property
    def _asked(self) -> int:
        membership = self.store.membership
        return self.member_id if membership.is_running(self.member_id) else membership.leader_id

    def _status(self) -> MemberStatus:
        membership = self.store.membership
        asked = membership.members.get(self._asked)
        return MemberStatus(
            version="3.5.30",
            db_size_bytes=self.store.file_bytes(self._asked),
            db_in_use_bytes=self.store.in_use_bytes(),
            leader_id=membership.leader_id if membership.has_quorum else 0,
            member_id=self._asked,
            revision=self.store.revision,
            is_learner=asked is not None and asked.is_learner,
        )

    async def _call(
        self, method: str, argument: object, act: Callable[[], _Answer], timeout_s: float, *, is_write: bool
    ) -> _Answer:
        self.calls.append(method)
        error = OutcomeUnknown if is_write else StoreUnavailable
        fault = self.faults(method, argument)
        if fault is not None:
            if fault.applied_after_s is not None:
                self._apply_later(act, fault.applied_after_s)
            await asyncio.sleep(fault.error_after_s)
            raise error(f"fake: {method}: {fault}")
        await asyncio.sleep(self.latency())
        if not await self.arrives(timeout_s):
            raise error(f"fake: {method}: no answer within {timeout_s} s")
        # What a member knows by itself: how it is, and not linearizable who the members are.
        is_alone = method == "status" or (method, argument) == ("members", False)
        if not self.store.membership.has_quorum and not is_alone:
            await asyncio.sleep(timeout_s)
            raise error(f"fake: {method}: no quorum")
        self.tick()
        return act()

    async def arrives(self, timeout_s: float) -> bool:
        """Waits while the client is cut off; False when that takes too long. What is sent meanwhile arrives later."""
        if self._healed.is_set():
            return True
        try:
            # Not wait_for, which swallows a cancellation that comes together with the healing (Python 3.11).
            async with asyncio.timeout(timeout_s):
                await self._healed.wait()
        except TimeoutError:
            return False
        return True

    def _apply_later(self, act: Callable[[], object], seconds: float) -> None:
        def apply() -> None:
            try:
                act()
            except (InvalidRequest, MembershipRefused, Compacted):
                return  # refused, and nobody is listening any more

        if seconds <= 0:
            apply()
        else:
            self._later.add(asyncio.get_running_loop().call_later(seconds, apply))

    def _set_timer(self) -> None:
        """With the loop's own clock, leases run out by themselves."""
        if self._clock is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        expiry = self.store.next_expiry()
        if expiry < float("inf"):
            self._timer = asyncio.get_running_loop().call_at(expiry, self.tick)


class FakeWatch:
    """A watch: what is missing is read from the store's history when the consumer asks, so that being cut off, late
    or compacted away behaves as with the real one."""

    def __init__(
        self, etcd: FakeEtcd, ranges: Sequence[KeyRange], start_revision: int | None, timeout_s: float
    ) -> None:
        self._etcd = etcd
        self._ranges = tuple(ranges)
        self._next = start_revision or 0
        self._timeout_s = timeout_s
        self._ready: deque[WatchBatch] = deque()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        store = self._etcd.store
        await asyncio.sleep(self._etcd.latency())
        if self._etcd.faults("watch", self._ranges) is not None:
            await asyncio.sleep(self._timeout_s)
            raise StoreUnavailable("fake: the watch did not stand: a fault")
        if not await self._etcd.arrives(self._timeout_s):
            raise StoreUnavailable(f"fake: the watch did not stand within {self._timeout_s} s")
        if self._next == 0:
            self._next = store.revision + 1
        store.history(self._next)
        store.listeners.append(self.wake)
        self._etcd.watches.add(self)
        self._changed.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._etcd.store.listeners.remove(self.wake)
        self._etcd.watches.discard(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        await asyncio.sleep(0)  # where a cancellation may strike, as in the real one
        while True:
            if not self._etcd.is_cut:
                self._fill()
                if self._ready:
                    return self._ready.popleft()
            self._changed.clear()
            await self._changed.wait()
            await asyncio.sleep(self._etcd.latency())

    def wake(self, _change: Change | None = None) -> None:
        """There may be something new: a change, or the client is no longer cut off."""
        self._changed.set()

    def _fill(self) -> None:
        for change in self._etcd.store.history(self._next):
            self._next = change.revision + 1
            found: tuple[Event, ...] = tuple(
                e
                for e in change.events
                if any(contains(range_, e.kv.key) and not (range_.puts_only and e.is_delete) for range_ in self._ranges)
            )
            if found:
                self._ready.append(WatchBatch(change.revision, found))


class FakeKeepAlive:
    """A lease stream."""

    def __init__(self, etcd: FakeEtcd, lease_id: int) -> None:
        self._etcd = etcd
        self._lease_id = lease_id
        self._answers: asyncio.Queue[KeepAliveAnswer | None] = asyncio.Queue()
        self._is_broken = False
        self._on_the_way = 0

    async def __aenter__(self) -> Self:
        self._etcd.lease_streams.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._etcd.lease_streams.discard(self)

    async def ping(self) -> None:
        if self._is_broken:
            raise StoreUnavailable("fake: the lease stream is broken")
        self._on_the_way += 1
        if not self._etcd.is_cut and self._etcd.faults("ping", self._lease_id) is None:
            await asyncio.sleep(self._etcd.latency())
            self.deliver()

    def deliver(self) -> None:
        """All pings on the way arrive. None is ever lost on a stream that lives: TCP sends it again."""
        while self._on_the_way and not self._is_broken:
            self._on_the_way -= 1
            ttl_s = self._etcd.store.renew(self._lease_id, self._etcd.now())
            self._etcd.tick()
            self._answers.put_nowait(KeepAliveAnswer(ttl_s))

    async def answer(self) -> KeepAliveAnswer:
        answer = None if self._is_broken else await self._answers.get()
        if answer is None:
            raise StoreUnavailable("fake: the lease stream is broken")
        return answer

    def break_(self) -> None:
        self._is_broken = True
        self._answers.put_nowait(None)
