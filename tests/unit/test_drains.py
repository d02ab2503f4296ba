"""Following the drains: from the fake etcd, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from etcd import cluster_codec, keys
from etcd.port import Delete, Put, Txn
from node.cluster.drains import Drains
from node.core.model import Drain
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

A = "aaaaaaaa-0000-4000-8000-00000000000a"
B = "bbbbbbbb-0000-4000-8000-00000000000b"
C = "cccccccc-0000-4000-8000-00000000000c"


async def drain(etcd: FakeEtcd, host_id: str, *, let_finish: bool = False) -> None:
    value = cluster_codec.encode_drain(Drain(1.0, let_finish))
    await etcd.txn(Txn(success=(Put(keys.drained_key(host_id), value),)))


async def undo(etcd: FakeEtcd, host_id: str) -> None:
    await etcd.txn(Txn(success=(Delete(keys.drained_key(host_id)),)))


@asynccontextmanager
async def following(etcd: FakeEtcd, on_change: Callable[[], None] = lambda: None) -> AsyncIterator[Drains]:
    drains = Drains(etcd)
    drains.on_change = on_change
    run = asyncio.create_task(drains.run())
    try:
        yield drains
    finally:
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run


@virtual_time
async def test_drains_come_and_go() -> None:
    async with FakeEtcd() as etcd:
        await drain(etcd, A)
        changes: list[set[str]] = []
        async with following(etcd, lambda: changes.append({*drains.drained})) as drains:
            await drains.wait_known()
            assert drains.drained == {A: Drain(1.0)}
            await drain(etcd, B, let_finish=True)
            await wait_until(lambda: drains.find(B) == Drain(1.0, let_finish=True))
            await undo(etcd, A)
            await wait_until(lambda: drains.find(A) is None)
        assert changes == [{A}, {A, B}, {B}]


@virtual_time
async def test_that_nobody_is_drained_is_news_once() -> None:
    async with FakeEtcd() as etcd:
        changes: list[int] = []
        async with following(etcd, lambda: changes.append(1)) as drains:
            await drains.wait_known()
            await undo(etcd, A)  # changes nothing
            await drain(etcd, A)
            await wait_until(lambda: drains.find(A) is not None)
        assert changes == [1, 1]


@virtual_time
async def test_a_drain_that_gives_back_after_all() -> None:
    async with FakeEtcd() as etcd:
        await drain(etcd, A, let_finish=True)
        async with following(etcd) as drains:
            await drains.wait_known()
            await drain(etcd, A)
            await wait_until(lambda: drains.find(A) == Drain(1.0, let_finish=False))


@virtual_time
async def test_nothing_is_known_until_etcd_has_answered() -> None:
    async with FakeEtcd() as etcd, FakeEtcd(etcd.store) as cut:
        await drain(etcd, A)
        cut.is_cut = True
        async with following(cut) as drains:
            waiting = asyncio.create_task(drains.wait_known())
            await asyncio.sleep(60.0)
            assert not waiting.done(), "who claims now would not know that it is drained"
            cut.is_cut = False
            await waiting
            assert drains.find(A) is not None


@virtual_time
async def test_what_changed_during_an_outage_and_a_compaction(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="node.cluster.drains")
    async with FakeEtcd() as etcd, FakeEtcd(etcd.store) as own:
        await drain(etcd, A)
        await drain(etcd, C)
        async with following(own) as drains:
            await drains.wait_known()
            own.is_cut = True
            await undo(etcd, A)
            await drain(etcd, B)
            await etcd.compact(etcd.store.revision)
            await asyncio.sleep(30.0)
            assert drains.find(A) is not None, "what is known stays while etcd does not answer"
            own.is_cut = False
            own.break_streams()
            await wait_until(lambda: {*drains.drained} == {B, C}, 60.0)
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == sorted(
        [*(f"host={host} is drained, gives back" for host in (A, B, C)), f"host={A} is drained no more"]
    ), "each change once, and nothing again"


@virtual_time
async def test_a_strangers_key_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeEtcd() as etcd:
        await etcd.txn(Txn(success=(Put(b"/cluster/drained/nobody", b"?"), Put(keys.drained_key(B), b"\xff"))))
        async with following(etcd) as drains:
            with caplog.at_level(logging.ERROR):
                await drains.wait_known()
            assert drains.drained == {}
            assert len(caplog.records) == 2
            await drain(etcd, A)
            await wait_until(lambda: drains.find(A) is not None)
