"""Group commit under load, in virtual time: who waits for company, how long, and who does not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

from etcd import transitions
from etcd.batcher import Applied, Batcher
from etcd.port import Etcd, Txn, TxnResult
from tests.support.fake_etcd import FakeEtcd
from tests.support.tasks import TIMEOUT_S, new_task
from tests.support.virtual_time import virtual_time

PACE_S = 0.02


class Clocked:
    """Another etcd: notes when transactions leave, and of how many transitions."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.left: list[tuple[float, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        size = sum(isinstance(op, Txn) for op in txn.success) or 1
        self.left.append((asyncio.get_running_loop().time(), size))
        return await self._etcd.txn(txn, timeout_s=timeout_s)

    def since(self, start_s: float) -> list[tuple[float, int]]:
        return [(at, size) for at, size in self.left if at >= start_s]


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Batcher, Clocked]]:
    async with FakeEtcd() as etcd:
        clocked = Clocked(etcd)
        async with Batcher(cast("Etcd", clocked), pace_s=PACE_S, random=Random(1)) as batcher:
            yield batcher, clocked


class Load:
    """Transitions, one after the other at a fixed distance."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.waited_s: list[float] = []

    async def one(self, *, is_patient: bool) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        made = transitions.submit(new_task())
        assert isinstance(await self._batcher.apply(made, timeout_s=TIMEOUT_S, is_patient=is_patient), Applied)
        self.waited_s.append(loop.time() - start_s)

    async def send(self, count: int, every_s: float, *, is_patient: bool = True) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self.one(is_patient=is_patient))
                await asyncio.sleep(every_s)


@virtual_time
async def test_few_patient_ones_do_not_wait() -> None:
    """A lone task's way must not pass through a timer."""
    async with opened() as (batcher, clocked):
        load = Load(batcher)
        await load.send(50, 0.010)
        assert len(clocked.left) == 50
        assert max(load.waited_s) < PACE_S / 4


@virtual_time
async def test_many_patient_ones_leave_together_and_wait_no_longer_than_the_pace() -> None:
    async with opened() as (batcher, clocked):
        load = Load(batcher)
        await load.send(100, 0.001)
        start_s = asyncio.get_running_loop().time()
        await load.send(1000, 0.001)
        left = clocked.since(start_s)
        assert sum(size for _, size in left) >= 980
        gaps = [after - before for (before, _), (after, _) in itertools.pairwise(left)]
        assert min(gaps) > PACE_S * 0.99
        assert max(load.waited_s) < PACE_S * 1.5


@virtual_time
async def test_an_impatient_one_takes_those_that_wait_along_at_once() -> None:
    async with opened() as (batcher, clocked):
        load, hurried = Load(batcher), Load(batcher)
        sending = asyncio.create_task(load.send(1000, 0.001))
        await asyncio.sleep(0.5)
        for _ in range(10):
            before = len(clocked.left)
            await asyncio.sleep(PACE_S * 0.7)
            await hurried.one(is_patient=False)
            assert len(clocked.left) > before
        assert max(hurried.waited_s) < PACE_S / 2
        await sending


@virtual_time
async def test_half_a_batch_does_not_wait() -> None:
    async with opened() as (batcher, clocked):
        load = Load(batcher)
        await load.send(50, 0.001)
        start_s, before = asyncio.get_running_loop().time(), len(clocked.left)
        await asyncio.gather(*(load.one(is_patient=True) for _ in range(60)))
        assert clocked.left[before:] == [(start_s, 60)]
