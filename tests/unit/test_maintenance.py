"""Upkeep: what is decided from what etcd reports, and a fake etcd that fills up and heals."""

from __future__ import annotations

import asyncio

import pytest

from etcd.errors import NoSpace
from etcd.maintenance import (
    DEFRAGMENT_EVERY_S,
    DEFRAGMENT_MIN_BYTES,
    HEALING_INTERVAL_S,
    Maintenance,
    RevisionsByTime,
    Step,
    is_filling_up,
    next_step,
)
from etcd.port import Alarm, Delete, MemberStatus, Put, Range, Txn
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_store import FakeStore
from tests.support.wait import wait_until

QUOTA = 1000 << 20
MIB = 1 << 20
NOSPACE = (Alarm(1, "NOSPACE"),)
CORRUPT = (Alarm(1, "CORRUPT"),)
LONG_AGO = DEFRAGMENT_EVERY_S + 1


def report(size_mib: int, in_use_mib: int) -> MemberStatus:
    return MemberStatus("3.5.30", size_mib * MIB, in_use_mib * MIB, 1, 1, 1)


@pytest.mark.parametrize(
    ("size_mib", "in_use_mib", "alarms", "since_s", "expected"),
    [
        (200, 150, (), LONG_AGO, Step.NOTHING),
        (200, 99, (), LONG_AGO, Step.DEFRAGMENT),
        (200, 99, (), 1.0, Step.NOTHING),  # not again so soon
        (DEFRAGMENT_MIN_BYTES // MIB, 1, (), LONG_AGO, Step.NOTHING),  # not worth it
        (900, 700, (), 1.0, Step.DEFRAGMENT),  # near the quota: at once
        (900, 850, (), LONG_AGO, Step.NOTHING),  # near the quota, but it would give nothing back
        (1000, 100, NOSPACE, 1.0, Step.DEFRAGMENT),
        (1000, 990, NOSPACE, 1.0, Step.NOTHING),  # waits for retention
        (1000, 990, NOSPACE, LONG_AGO, Step.DEFRAGMENT),  # the report may be wrong
        (300, 290, NOSPACE, 1.0, Step.DISARM),
        (300, 290, CORRUPT, LONG_AGO, Step.NOTHING),  # never disarmed by a program
    ],
)
def test_next_step(size_mib: int, in_use_mib: int, alarms: tuple[Alarm, ...], since_s: float, expected: Step) -> None:
    step = next_step(report(size_mib, in_use_mib), alarms, quota_bytes=QUOTA, since_defragment_s=since_s)
    assert step is expected


@pytest.mark.parametrize(
    ("size_mib", "in_use_mib", "expected"),
    [(500, 500, False), (800, 800, False), (801, 801, True), (900, 850, True), (950, 100, False)],
)
def test_is_filling_up(size_mib: int, in_use_mib: int, expected: bool) -> None:
    assert is_filling_up(report(size_mib, in_use_mib), QUOTA) == expected


def test_revisions_come_out_when_they_are_old_enough_and_only_once() -> None:
    revisions = RevisionsByTime(60)
    for now, revision in ((0, 10), (30, 20), (60, 30)):
        revisions.note(now, revision)
    assert revisions.take_old(59) is None
    assert revisions.take_old(95) == 20
    assert revisions.take_old(95) is None
    assert revisions.take_old(1000) == 30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def put(etcd: FakeEtcd, key: bytes, size: int = 0) -> None:
    await etcd.txn(Txn((), (Put(key, bytes(size)),)))


async def test_compacts_to_what_was_newest_a_minute_ago() -> None:
    async with FakeEtcd() as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=QUOTA, clock=clock)
        revisions = []
        for _ in range(4):
            await put(etcd, b"/a")
            await duty.look()
            revisions.append(etcd.store.revision)
            clock.now += 30
        assert etcd.store.compacted == revisions[1]
        assert not duty.is_filling_up
        assert duty.status is not None
        assert duty.status.revision == revisions[-1]


async def test_heals_when_the_quota_is_used_up() -> None:
    async with FakeEtcd(FakeStore(quota_bytes=100_000)) as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=100_000, clock=clock, sleep=clock.sleep)
        with pytest.raises(NoSpace):
            while True:
                await put(etcd, b"/same", 9_000)
        await duty.look()
        assert not etcd.store.has_no_space_alarm
        assert not duty.is_filling_up
        await put(etcd, b"/same", 9_000)


async def test_stays_closed_while_what_is_in_use_fills_the_quota_and_opens_after_deletes() -> None:
    async with FakeEtcd(FakeStore(quota_bytes=100_000)) as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=100_000, clock=clock, sleep=clock.sleep)
        keys = [b"/k%d" % i for i in range(20)]
        with pytest.raises(NoSpace):
            for key in keys:
                await put(etcd, key, 9_000)
        running = asyncio.create_task(duty.run())
        await wait_until(lambda: len(clock.slept) >= 3, what="it keeps looking")
        assert duty.is_filling_up
        assert etcd.store.has_no_space_alarm
        assert set(clock.slept) == {HEALING_INTERVAL_S}
        await etcd.txn(Txn((), (Delete(b"/k", b"/l"),)))
        await wait_until(lambda: not duty.is_filling_up, what="it has healed")
        await put(etcd, b"/again", 9_000)
        running.cancel()


async def test_an_outage_costs_a_round_and_not_the_duty() -> None:
    async with FakeEtcd() as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=QUOTA, clock=clock, sleep=clock.sleep)
        failing = True

        def faults(_method: str, _argument: object) -> Fault | None:
            return LOST_BEFORE if failing else None

        etcd.faults = faults
        running = asyncio.create_task(duty.run())
        await wait_until(lambda: len(clock.slept) >= 2, what="it has tried twice")
        assert duty.status is None
        failing = False
        await wait_until(lambda: duty.status is not None, what="it has got through")
        running.cancel()
        assert (await etcd.range(Range(b"/a"))).count == 0
