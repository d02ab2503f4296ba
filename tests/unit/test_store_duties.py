"""Duties of the store in a cluster: what one node does, what each does for itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest

from etcd import keys
from etcd.batcher import Batcher
from etcd.errors import NoSpace, StoreError
from etcd.identity import Identity
from etcd.maintenance import COMPACTION, DEFRAGMENT, HEAL_EVERY_S, Maintenance, is_turn_to_heal
from etcd.port import Alarm, Etcd, Put, Range, Txn
from node.cluster.duties import Duties
from node.core.retention import Limits
from node.retention import LOOK_EVERY_S, Retention
from node.running.log_sweep import MIN_AGE_S, SHARDS, LogSweep
from node.running.logs import STREAMS, LogStore
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd
from tests.support.fake_store import FakeStore
from tests.support.tasks import NODE_A, NODE_B, join, leave, open_store, queued
from tests.support.tasks import task_id as new_id
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

QUOTA = 1000 << 20


async def duties_of(etcd: Etcd, node_id: str) -> Duties:
    identity = await join(etcd, node_id)
    return Duties(etcd, lambda: identity)


def ticking(start: float = 0.0, step: float = 30.0) -> Callable[[], float]:
    """A clock that moves on by itself at each look."""
    now = [start]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


# -- who compacts


async def test_one_of_two_compacts_and_the_other_takes_over_when_it_is_gone() -> None:
    async with FakeEtcd() as etcd, FakeEtcd(etcd.store) as other:
        first = Maintenance(etcd, quota_bytes=QUOTA, duties=await duties_of(etcd, NODE_A), clock=ticking())
        second = Maintenance(other, quota_bytes=QUOTA, duties=await duties_of(other, NODE_B), clock=ticking())
        for _ in range(6):
            await etcd.txn(Txn((), (Put(b"/a"),)))
            await first.look()
            await second.look()
        assert "compact" in etcd.calls
        assert "compact" not in other.calls
        await leave(etcd, NODE_A)
        for _ in range(3):
            await second.look()
        assert "compact" in other.calls


async def test_between_two_incarnations_no_duty_is_held() -> None:
    async with FakeEtcd() as etcd:
        now: list[Identity | None] = [await join(etcd, NODE_A)]
        duties = Duties(etcd, lambda: now[0])
        assert await duties.hold(COMPACTION)
        now[0] = None
        assert not await duties.hold(COMPACTION)
        await duties.release(COMPACTION)
        now[0] = await join(etcd, NODE_B)
        assert not await duties.hold(COMPACTION), "the last incarnation's key is still there"
        await leave(etcd, NODE_A)
        assert await duties.hold(COMPACTION)


# -- who defragments


@asynccontextmanager
async def slack_store() -> AsyncIterator[FakeStore]:
    """A store whose file is near its quota and mostly air."""
    store = FakeStore(quota_bytes=1_000_000)
    async with FakeEtcd(store) as etcd:
        for _ in range(90):
            await etcd.txn(Txn((), (Put(b"/same", bytes(9_000)),)))
        await etcd.compact(store.revision)
    yield store


async def test_a_member_is_defragmented_by_its_own_host_alone() -> None:
    async with slack_store() as store, FakeEtcd(store) as etcd, FakeEtcd(store) as own:
        without = Maintenance(etcd, quota_bytes=1_000_000, own=lambda: nullcontext(None), clock=ticking())
        await without.look()
        assert "defragment" not in etcd.calls
        assert without.status is not None, "it must know when to refuse tasks"
        await Maintenance(etcd, quota_bytes=1_000_000, own=lambda: nullcontext(own), clock=ticking()).look()
        assert "defragment" not in etcd.calls
        assert "defragment" in own.calls


async def test_no_two_members_are_defragmented_at_once() -> None:
    async with slack_store() as store, FakeEtcd(store) as etcd:
        busy, waiting = await duties_of(etcd, NODE_A), await duties_of(etcd, NODE_B)
        assert await busy.hold(DEFRAGMENT)
        duty = Maintenance(etcd, quota_bytes=1_000_000, duties=waiting, clock=ticking())
        await duty.look()
        assert "defragment" not in etcd.calls
        await busy.release(DEFRAGMENT)
        await duty.look()
        assert "defragment" in etcd.calls
        assert await busy.hold(DEFRAGMENT), "it was given back"


async def test_a_defragmentation_that_fails_gives_the_duty_back() -> None:
    async with slack_store() as store, FakeEtcd(store) as etcd:
        etcd.faults = lambda method, _argument: LOST_BEFORE if method == "defragment" else None
        duty = Maintenance(etcd, quota_bytes=1_000_000, duties=await duties_of(etcd, NODE_A), clock=ticking())
        with pytest.raises(StoreError):
            await duty.look()
        assert await (await duties_of(etcd, NODE_B)).hold(DEFRAGMENT)


async def test_a_full_store_heals_though_nobody_can_take_a_duty() -> None:
    """The holder of all duties died when the quota was used up; taking one is a put."""
    async with FakeEtcd(FakeStore(quota_bytes=100_000)) as etcd:
        dead, duties = await duties_of(etcd, NODE_A), await duties_of(etcd, NODE_B)
        for name in (COMPACTION, DEFRAGMENT):
            assert await dead.hold(name)
        await leave(etcd, NODE_A)
        with pytest.raises(NoSpace):
            while True:
                await etcd.txn(Txn((), (Put(b"/same", bytes(9_000)),)))
        duty = Maintenance(etcd, quota_bytes=100_000, duties=duties, clock=ticking())
        await duty.look()
        assert not etcd.store.has_no_space_alarm
        assert not duty.is_filling_up


@pytest.mark.parametrize(
    ("raised", "member", "after_s", "expected"),
    [
        ([1], 1, 0.0, True),
        ([1, 2, 3], 1, 0.0, True),
        ([3, 1, 2], 2, 0.0, False),
        ([3, 1, 2], 2, HEAL_EVERY_S, True),  # the first is dead, or does not get through
        ([3, 1, 2], 3, HEAL_EVERY_S, False),
        ([3], 1, 0.0, False),  # it raised none: after those that did
        ([3], 1, HEAL_EVERY_S, True),
        ([3], 2, HEAL_EVERY_S, False),
        ([3], 2, 2 * HEAL_EVERY_S, True),
        ([9, 3], 1, HEAL_EVERY_S, True),  # one that is no voter has no turn
        ([9], 9, 1000.0, False),
    ],
)
def test_members_heal_one_after_the_other(raised: list[int], member: int, after_s: float, *, expected: bool) -> None:
    alarms = [Alarm(number, "NOSPACE") for number in raised] + [Alarm(1, "CORRUPT")]
    assert is_turn_to_heal(alarms, (2, 3, 1), member, healing_for_s=after_s) is expected


# -- who forgets


@virtual_time
async def test_one_of_two_forgets() -> None:
    async with FakeEtcd() as etcd, FakeEtcd(etcd.store) as other, Batcher(etcd) as batcher, Batcher(other) as others:
        limits = Limits(max_age_s=10.0, max_count=10)

        async def forgotten(_ids: object) -> None:
            return

        duties = [
            Retention(etcd, batcher, limits, on_forgotten=forgotten, duties=await duties_of(etcd, NODE_A)),
            Retention(other, others, limits, on_forgotten=forgotten, duties=await duties_of(other, NODE_B)),
        ]
        running = []
        for duty in duties:
            running.append(asyncio.create_task(duty.run()))
            await asyncio.sleep(0.1)
        before = [(len(one.calls)) for one in (etcd, other)]
        await asyncio.sleep(10 * LOOK_EVERY_S)
        looks = [len(one.calls) - count for one, count in zip((etcd, other), before, strict=True)]
        await leave(etcd, NODE_A)
        taken = len(other.calls)
        await asyncio.sleep(4 * LOOK_EVERY_S)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        listed = [op for op in other.calls[taken:] if op == "txn"]
        # It asks whose the duty is (two calls) and lists nothing; the holder asks (one) and lists (one).
        assert looks == [20, 20]
        assert len(listed) > 4, "the other takes over"


# -- logs of forgotten tasks


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path)
    yield store
    store.close()


async def write_log(logs: LogStore, task_id: str, age_s: float) -> None:
    os.write(logs.open(task_id, 1).stdout, b"words")
    await logs.settle(task_id, 1)
    then = time.time() - age_s
    for stream in STREAMS:
        os.utime(logs.path(task_id, 1, stream), (then, then))


async def test_logs_without_a_record_go_when_they_are_old(logs: LogStore, tmp_path: Path) -> None:
    async with FakeEtcd() as etcd, open_store(etcd) as store:
        kept = [(await queued(store)).task.id for _ in range(5)]
        young = [new_id() for _ in range(3)]
        forgotten = [new_id() for _ in range(40)]
        for task_id in (*kept, *forgotten):
            await write_log(logs, task_id, MIN_AGE_S + 60)
        for task_id in young:
            await write_log(logs, task_id, MIN_AGE_S - 60)
        (tmp_path / "00" / "stranger.txt").write_text("not ours")
        sweep = LogSweep(etcd, logs, tmp_path)
        removed = sum([await sweep.look(shard) for shard in range(SHARDS)])
        assert removed == len(forgotten)
        assert all(logs.path(task_id, 1, "stdout").exists() for task_id in (*kept, *young))
        assert not any(logs.path(task_id, 1, "stdout").exists() for task_id in forgotten)
        assert (tmp_path / "00" / "stranger.txt").exists()


async def test_without_an_answer_of_the_store_no_log_goes(logs: LogStore, tmp_path: Path) -> None:
    async with FakeEtcd() as etcd:
        task_id = new_id()
        await write_log(logs, task_id, MIN_AGE_S + 60)
        etcd.faults = lambda _method, _argument: LOST_BEFORE
        with pytest.raises(StoreError):
            await LogSweep(etcd, logs, tmp_path).look(int(task_id[-2:], 16))
        assert logs.path(task_id, 1, "stdout").exists()


async def test_the_sweep_of_logs_goes_on_after_errors(logs: LogStore, tmp_path: Path) -> None:
    async with FakeEtcd() as etcd:
        task_id = new_id()
        await write_log(logs, task_id, MIN_AGE_S + 60)
        turns = 0

        async def sleep(_seconds: float) -> None:
            nonlocal turns
            turns += 1
            etcd.faults = (lambda _method, _argument: LOST_BEFORE) if turns <= SHARDS else (lambda _m, _a: None)
            await asyncio.sleep(0)

        running = asyncio.create_task(LogSweep(etcd, logs, tmp_path, sleep=sleep).run())
        await wait_until(lambda: not logs.path(task_id, 1, "stdout").exists(), what="its turn comes again")
        running.cancel()
        await asyncio.wait({running})
        assert turns > SHARDS
        assert (await etcd.range(Range(keys.task(task_id)))).count == 0
