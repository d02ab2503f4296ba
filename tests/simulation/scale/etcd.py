"""A node's client of the simulated etcd: its requests take their time on the way, at the leader and at its voter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from etcd.errors import OutcomeUnknown, StoreError, StoreUnavailable
from etcd.port import KeepAliveAnswer, KeyRange, Range, Txn, WatchBatch
from tests.simulation.scale.feeds import Feeds, FeedWatch
from tests.simulation.scale.speed import Speed
from tests.simulation.scale.store import ScaleStore
from tests.simulation.scale.voters import Leader, Voter
from tests.support.fake_etcd import FakeEtcd, FakeKeepAlive

T = TypeVar("T")


@dataclass
class Counts:
    """Requests of all nodes."""

    reads: int = 0
    #: Records that they asked for.
    records: int = 0
    #: Listings of the queue, and keys that they brought; of those, what was counted and not brought.
    listings: int = 0
    listed: int = 0
    counted: int = 0
    pings: int = 0
    #: Not answered in time, by method.
    unanswered: dict[str, int] = field(default_factory=dict)


class Service:
    """etcd, as all clients share it."""

    def __init__(self, speed: Speed, voters: list[Voter]) -> None:
        self.speed = speed
        self.store = ScaleStore()
        self.leader = Leader(speed)
        self.voters = voters
        self.feeds = Feeds(speed)
        self.store.listeners.append(self.feeds.changed)
        self.counts = Counts()


class ScaleEtcd(FakeEtcd):
    """One client, at one voter."""

    def __init__(self, service: Service, voter: Voter) -> None:
        super().__init__(service.store)
        self.service = service
        self.voter = voter

    def _set_timer(self) -> None:
        """Leases run out when the next write looks."""

    def watch(
        self, ranges: Sequence[KeyRange], *, start_revision: int | None = None, timeout_s: float = 10.0
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        (key_range,) = ranges
        return FeedWatch(self.service.feeds, key_range, start_revision, self.voter)

    def keep_alive(self, lease_id: int) -> _KeepAlive:
        return _KeepAlive(self, lease_id)

    async def _call(
        self, method: str, argument: object, act: Callable[[], T], timeout_s: float, *, is_write: bool
    ) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        arrive = self._write if is_write and not _only_reads(argument) else self._read
        loop.call_later(self.voter.half_trip_s(), arrive, argument, act, answer)
        try:
            async with asyncio.timeout(timeout_s):
                result: T = await answer
                return result
        except TimeoutError:
            unanswered = self.service.counts.unanswered
            unanswered[method] = unanswered.get(method, 0) + 1
            error = OutcomeUnknown if is_write else StoreUnavailable
            raise error(f"simulated: {method}: no answer within {timeout_s:g} s") from None

    def _write(self, argument: object, act: Callable[[], object], answer: asyncio.Future[Any]) -> None:
        def apply() -> None:
            self._answer(act, answer)

        self.service.leader.write(_items(argument), apply)

    def _read(self, argument: object, act: Callable[[], object], answer: asyncio.Future[Any]) -> None:
        """Asks the leader whether it still is (a round trip among the voters), then reads what is there."""
        self.service.counts.reads += 1
        done_at = self.voter.work(self._read_cost_s(argument)) + 2 * self.voter.half_trip_s()
        asyncio.get_running_loop().call_at(done_at, self._answer, act, answer)

    def _answer(self, act: Callable[[], object], answer: asyncio.Future[Any]) -> None:
        try:
            result, error = act(), None
        except StoreError as refused:
            result, error = None, refused
        asyncio.get_running_loop().call_later(self.voter.half_trip_s(), _settle, answer, result, error)

    def _read_cost_s(self, argument: object) -> float:
        speed, counts = self.service.speed, self.service.counts
        if isinstance(argument, Range) and argument.range_end:
            count = self.store.read(Range(argument.key, argument.range_end, count_only=True)).count
            brought = 0 if argument.count_only else min(count, argument.limit or count)
            if argument.key == b"/task/status/queued/" or argument.limit:
                counts.listings += 1
                counts.listed += brought
                counts.counted += count
            return speed.read_rpc_s + brought * speed.listed_key_s + (count - brought) * speed.counted_key_s
        ranges = len(argument.success) if isinstance(argument, Txn) else 1
        counts.records += ranges
        return speed.read_rpc_s + ranges * speed.read_item_s


def _settle(answer: asyncio.Future[Any], result: object, error: StoreError | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


def _items(argument: object) -> int:
    if not isinstance(argument, Txn):
        return 1
    return max(1, sum(isinstance(op, Txn) for op in argument.success))


def _only_reads(argument: object) -> bool:
    return isinstance(argument, Txn) and all(isinstance(op, Range) for op in (*argument.success, *argument.failure))


class _KeepAlive(FakeKeepAlive):
    """A stream of pings: the leader answers."""

    def __init__(self, client: ScaleEtcd, lease_id: int) -> None:
        super().__init__(client, lease_id)
        self._client = client

    async def ping(self) -> None:
        loop, client = asyncio.get_running_loop(), self._client
        client.service.counts.pings += 1
        done_at = client.voter.work(client.service.speed.ping_s)
        loop.call_at(done_at + client.voter.half_trip_s(), self._arrive)

    def _arrive(self) -> None:
        ttl_s = self._client.store.renew(self._lease_id, self._client.now())
        delay_s = self._client.voter.half_trip_s()
        asyncio.get_running_loop().call_later(delay_s, self._answers.put_nowait, KeepAliveAnswer(ttl_s))

    def deliver(self) -> None:
        """They deliver themselves."""
