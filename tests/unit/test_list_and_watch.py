"""Listing, then watching, on a fake etcd: nothing missed, nothing from the past, whatever happens in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from etcd.errors import StoreUnavailable
from etcd.port import Delete, KeyRange, Put, Range, RangeResult, Txn, WatchBatch
from etcd.watch import FIRST_LIST_TIMEOUT_S, LAST_LIST_TIMEOUT_S, Listing, list_and_watch
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

ALL = KeyRange(b"/", b"0")


class View:
    """What a consumer believes: the whole of each listing, and each event upon it."""

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.listings = 0
        self.revision = 0

    def take(self, news: Listing | WatchBatch) -> None:
        assert news.revision >= self.revision, "the past came back"
        self.revision = news.revision
        if isinstance(news, Listing):
            self.listings += 1
            self.keys = {kv.key: kv.mod_revision for kv in news.kvs}
            return
        assert news.events, "an empty batch tells nothing"
        for event in news.events:
            if event.is_delete:
                self.keys.pop(event.kv.key, None)
            else:
                assert event.kv.mod_revision > self.keys.get(event.kv.key, 0)
                self.keys[event.kv.key] = event.kv.mod_revision


@asynccontextmanager
async def following(etcd: FakeEtcd, view: View) -> AsyncIterator[asyncio.Task[None]]:
    async def follow() -> None:
        async with aclosing(list_and_watch(etcd, ALL, rng=random.Random(1))) as news:
            async for new in news:
                view.take(new)

    task = asyncio.create_task(follow())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@virtual_time
async def test_lists_and_follows() -> None:
    view = View()
    async with FakeEtcd() as etcd:
        await etcd.txn(Txn((), (Put(b"/a"), Put(b"/b"))))
        async with following(etcd, view):
            await wait_until(lambda: view.keys == {b"/a": 2, b"/b": 2}, what="the listing")
            await etcd.txn(Txn((), (Put(b"/c"), Delete(b"/a"))))
            await wait_until(lambda: view.keys == {b"/b": 2, b"/c": 3}, what="the change")
        assert view.listings == 1
        assert not etcd.watches


@virtual_time
async def test_what_happens_between_listing_and_watching_is_seen() -> None:
    store, view = FakeStore(), View()
    async with FakeEtcd(store) as etcd, FakeEtcd(store) as other:
        wrote = False

        def write_in_between(method: str, _argument: object) -> Fault | None:
            nonlocal wrote
            if method == "watch" and not wrote:
                wrote = True
                store.transact(Txn((), (Put(b"/between"),)), other.now())
            return None

        etcd.faults = write_in_between
        async with following(etcd, view):
            await wait_until(lambda: b"/between" in view.keys, what="the write in between")


@virtual_time
async def test_outages_while_listing_are_waited_out() -> None:
    view = View()
    async with FakeEtcd() as etcd:
        failures = 0

        def faults(method: str, _argument: object) -> Fault | None:
            nonlocal failures
            if method == "range" and failures < 2:
                failures += 1
                return LOST_BEFORE
            return None

        etcd.faults = faults
        async with following(etcd, view) as task:
            await wait_until(lambda: view.listings == 1, what="it lists in the end")
            assert not task.done()
        assert failures == 2


@virtual_time
async def test_a_listing_whose_answer_is_lost_is_asked_for_again_soon_and_a_slow_one_gets_its_time() -> None:
    """Found by the simulation: a node that started at the wrong moment was not ready for half a minute."""
    view = View()
    async with FakeEtcd() as etcd:
        lost = [LOST_BEFORE]
        etcd.faults = lambda method, _argument: lost.pop() if method == "range" and lost else None
        began = asyncio.get_running_loop().time()
        async with following(etcd, view):
            await wait_until(lambda: view.listings == 1, what="it lists again")
        assert asyncio.get_running_loop().time() - began < FIRST_LIST_TIMEOUT_S + 1.0

    given: list[float] = []

    class Slow(FakeEtcd):
        async def range(self, op: Range, *, timeout_s: float = 3.0) -> RangeResult:
            given.append(timeout_s)
            if len(given) > 3 and timeout_s < LAST_LIST_TIMEOUT_S:
                await asyncio.sleep(timeout_s)
            if len(given) <= 3 or timeout_s < LAST_LIST_TIMEOUT_S:
                raise StoreUnavailable("no answer")
            return await super().range(op, timeout_s=timeout_s)

    async with Slow() as slow, following(slow, view):
        await wait_until(lambda: view.listings == 2, 120.0, what="the slow listing")
    refused, slow_ones = given[:3], given[3:]
    assert refused == [5.0] * 3, "a refusal at once says nothing of how long a listing takes"
    assert slow_ones == [5.0, 10.0, 20.0, 40.0]


@virtual_time
async def test_canceling_ends_it() -> None:
    async with FakeEtcd() as etcd:
        view = View()
        async with following(etcd, view) as task:
            await wait_until(lambda: view.listings == 1, what="the listing")
        assert task.cancelled()


@pytest.mark.parametrize("seed", range(20))
@virtual_time
async def test_a_follower_ends_in_the_right_state_whatever_happened(seed: int) -> None:
    """Writes, cuts and compactions in random order; then quiet, and the view must be the truth."""
    rng = random.Random(seed)
    store, view = FakeStore(), View()
    async with FakeEtcd(store) as etcd, FakeEtcd(store) as other, following(etcd, view):
        for _ in range(150):
            match rng.randrange(6):
                case 0 | 1 | 2:
                    await other.txn(Txn((), (Put(b"/%d" % rng.randrange(10)),)))
                case 3:
                    await other.txn(Txn((), (Delete(b"/%d" % rng.randrange(10)),)))
                case 4:
                    etcd.is_cut = not etcd.is_cut
                case _:
                    await other.compact(rng.randint(max(1, store.compacted), store.revision))
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        etcd.is_cut = False
        await other.txn(Txn((), (Put(b"/last"),)))

        def truth() -> dict[bytes, int]:
            return {kv.key: kv.mod_revision for kv in store.read_all()}

        await wait_until(lambda: view.keys == truth(), what="the view is the truth")
