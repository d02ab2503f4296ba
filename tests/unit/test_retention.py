"""Retention: what is forgotten, when, and that a late submit makes nothing anew; the duty on the fake etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from random import Random

import pytest
import pytest_asyncio

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.port import Etcd, Put, Txn
from node.core.lifecycle import cancel
from node.core.model import Status, Task
from node.core.retention import Ended, Limits, Listed, Looks, is_too_old_to_submit, to_forget
from node.retention import LISTED, Retention
from tests.support.fake_etcd import LOST_AFTER, FakeEtcd
from tests.support.tasks import NOW, TIMEOUT_S, new_task, open_store, snapshot, status_agrees_with_record

DAY_S = 86_400.0
#: The newest where policy is asked.
REVISION = 10_000


def ended(*seconds_ago: int) -> list[Ended]:
    """Each a revision, one in each second."""
    return sorted(Ended(int(NOW) - ago, f"{number:02}", REVISION - ago) for number, ago in enumerate(seconds_ago))


def whole(*seconds_ago: int) -> Listed:
    return Listed(ended(*seconds_ago), len(seconds_ago))


def ages(found: Sequence[Ended]) -> list[int]:
    return [int(NOW) - one.ended_s for one in found]


@pytest.mark.parametrize(
    ("statuses", "max_age_s", "max_count", "expected"),
    [
        ([], 100.0, 10, []),
        ([whole(50, 99)], 100.0, 10, []),
        ([whole(50, 101, 300)], 100.0, 10, [300, 101]),
        ([whole(500, 400, 300)], 1000.0, 2, [500]),
        ([whole(500, 400, 300)], 1000.0, 3, []),
        ([whole(500, 300), whole(400), whole()], 1000.0, 1, [500, 400]),
        # What has just ended is kept.
        ([whole(500, 59, 30)], 1000.0, 0, [500]),
        ([whole(500, 59, 30)], 40.0, 0, [500]),
        # Both at once: those too old are among the excess, not beside it.
        ([whole(900, 800, 700, 600)], 750.0, 3, [900, 800]),
        ([whole(900, 800, 700, 600)], 850.0, 2, [900, 800]),
    ],
)
def test_what_is_forgotten(statuses: list[Listed], max_age_s: float, max_count: int, expected: list[int]) -> None:
    found = to_forget(statuses, Limits(max_age_s, max_count), now=NOW, settled=REVISION - 60)
    assert ages(found) == expected


def test_nothing_newer_than_the_end_of_a_cut_listing_is_forgotten() -> None:
    """200 complete tasks, of which the oldest two are listed, and one failed that is newer than all of those."""
    complete = Listed(ended(900, 800), 200)
    failed = Listed([Ended(int(NOW) - 100, "failed")], 1)
    limits = Limits(max_age_s=10_000.0, max_count=50)
    assert ages(to_forget([complete, failed], limits, now=NOW, settled=REVISION)) == [900, 800]


@pytest.mark.parametrize("off_s", [-3600, 3600, -50 * 365 * 86_400])
def test_wrong_clocks_forget_nothing_that_has_just_ended_and_keep_nothing_too_long(off_s: int) -> None:
    """As they were: whatever the clocks of those that ended them said, and whatever ours says."""
    there = Ended(int(NOW) + off_s, "there", REVISION - 61)
    new = Ended(int(NOW) + off_s, "new", REVISION - 59)
    limits = Limits(max_age_s=DAY_S, max_count=0)
    for now in (NOW, NOW + off_s, NOW - off_s):
        assert to_forget([Listed([new, there], 2)], limits, now=now, settled=REVISION - 60) == [there]


def test_what_was_there_long_enough_is_told_by_ones_own_looks() -> None:
    looks = Looks(keep_s=60.0)
    assert looks.saw(100, now=0.0) == 0, "nothing is known of what was before the first look"
    assert looks.saw(200, now=30.0) == 0
    assert looks.saw(300, now=59.9) == 0
    assert looks.saw(400, now=60.0) == 100
    assert looks.saw(401, now=60.5) == 100, "looks may follow each other without a pause"
    assert looks.saw(500, now=90.0) == 200
    assert looks.saw(600, now=1000.0) == 500, "after a pause"


def test_after_a_restore_revisions_are_others() -> None:
    looks = Looks(keep_s=60.0)
    assert looks.saw(1000, now=0.0) == 0
    assert looks.saw(2000, now=60.0) == 1000
    assert looks.saw(10, now=70.0) == 0
    assert looks.saw(20, now=130.0) == 10


@pytest.mark.parametrize(("age_s", "expected"), [(6 * DAY_S, False), (8 * DAY_S, True), (-60.0, False)])
def test_an_id_older_than_the_window_is_refused(age_s: float, expected: bool) -> None:
    task_id = keys.new_task_id(NOW - age_s, Random(1))
    assert is_too_old_to_submit(task_id, now=NOW, max_age_s=7 * DAY_S) is expected


def test_other_ids_tell_no_age() -> None:
    assert not is_too_old_to_submit("11111111-1111-4111-8111-111111111111", now=NOW, max_age_s=1.0)


# -- the duty ---------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[Etcd]:
    async with FakeEtcd() as fake:
        yield fake


async def put_ended(etcd: Etcd, count: int, *, ended_at: float, status: Status = Status.CANCELED) -> list[Task]:
    """Finished tasks, written as the transitions leave them."""
    tasks = [
        replace(cancel(new_task(), now=ended_at), status=status, cancel_requested=status is Status.CANCELED)
        for _ in range(count)
    ]
    for start in range(0, count, 50):
        puts: list[Put] = []
        for task in tasks[start : start + 50]:
            record = codec.encode_task(task)
            puts += [Put(keys.task(task.id), record), Put(keys.index_key(task))]
        await etcd.txn(Txn(success=tuple(puts)))
    return tasks


class Told:
    def __init__(self) -> None:
        self.ids: list[str] = []

    async def __call__(self, ids: Sequence[str]) -> None:
        self.ids += ids


async def test_the_oldest_beyond_the_number_go_and_their_logs_owner_is_told(etcd: Etcd) -> None:
    old = await put_ended(etcd, 120, ended_at=NOW - 500)
    failed = await put_ended(etcd, 30, ended_at=NOW - 400, status=Status.FAILED)
    new = await put_ended(etcd, 50, ended_at=NOW - 300)
    told = Told()
    async with open_store(etcd) as store, Batcher(etcd) as batcher:
        waiting = new_task()
        await store.submit(waiting, timeout_s=TIMEOUT_S)
        duty = Retention(etcd, batcher, Limits(DAY_S, max_count=60, keep_s=0.0), on_forgotten=told, clock=lambda: NOW)
        look = await duty.look()
        assert (look.forgotten, look.is_done) == (140, True)
        assert (await duty.look()).forgotten == 0
    assert set(told.ids[:120]) == {task.id for task in old}
    left = status_agrees_with_record(await snapshot(etcd))
    assert set(told.ids).isdisjoint(left)
    assert left.keys() > {task.id for task in new} | {waiting.id}
    assert len(left.keys() & {task.id for task in failed}) == 10


async def test_it_goes_on_until_nothing_is_due_then_waits(etcd: Etcd) -> None:
    """More than one look's worth: no pause in between, or it would not keep up."""
    await put_ended(etcd, LISTED + 700, ended_at=NOW - 2 * DAY_S)
    told, pauses = Told(), asyncio.Event()

    async def sleep(_: float) -> None:
        assert len(told.ids) == LISTED + 700, "paused before it was done"
        pauses.set()
        await asyncio.Event().wait()

    async with Batcher(etcd) as batcher:
        duty = Retention(
            etcd, batcher, Limits(DAY_S, 10**6, keep_s=0.0), on_forgotten=told, clock=lambda: NOW, sleep=sleep
        )
        running = asyncio.create_task(duty.run())
        await asyncio.wait({running, asyncio.create_task(pauses.wait())}, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert await snapshot(etcd) == {}


async def test_lost_answers_lose_no_notice() -> None:
    async with FakeEtcd() as etcd, Batcher(etcd) as batcher:
        tasks = await put_ended(etcd, 20, ended_at=NOW - 2 * DAY_S)
        told = Told()
        faults = [LOST_AFTER]
        etcd.faults = lambda method, argument: (
            faults.pop()
            if method == "txn" and isinstance(argument, Txn) and "Delete" in repr(argument) and faults
            else None
        )
        duty = Retention(etcd, batcher, Limits(DAY_S, 10**6, keep_s=0.0), on_forgotten=told, clock=lambda: NOW)
        assert (await duty.look()).forgotten == 20
        assert not faults
        assert sorted(told.ids) == sorted(task.id for task in tasks)


async def test_errors_cost_a_look_and_not_the_duty() -> None:
    async with FakeEtcd() as etcd, Batcher(etcd) as batcher:
        await put_ended(etcd, 5, ended_at=NOW - 2 * DAY_S)
        told, sleeps = Told(), 0
        etcd.faults = lambda method, _: LOST_AFTER if method == "txn" else None
        done = asyncio.Event()

        async def sleep(_: float) -> None:
            nonlocal sleeps
            sleeps += 1
            etcd.faults = lambda _method, _argument: None
            if sleeps == 2:
                done.set()
                await asyncio.Event().wait()

        duty = Retention(
            etcd, batcher, Limits(DAY_S, 10**6, keep_s=0.0), on_forgotten=told, clock=lambda: NOW, sleep=sleep
        )
        running = asyncio.create_task(duty.run())
        await done.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(told.ids) == 5


async def test_a_clock_that_jumps_does_not_make_it_forget_what_has_just_ended() -> None:
    """Found by the simulation (`tests/simulation/repeats.py`): a second try of a submit made such a task anew."""
    times = [(NOW, 5.0), (NOW, 50.0), (NOW + 100 * DAY_S, 100.0), (NOW - DAY_S, 110.0)]
    async with FakeEtcd() as etcd, Batcher(etcd) as batcher:
        duty = Retention(
            etcd,
            batcher,
            Limits(DAY_S, 0),
            on_forgotten=Told(),
            clock=lambda: times[0][0],
            monotonic=lambda: times[0][1],
        )
        await duty.look()
        await put_ended(etcd, 3, ended_at=NOW - 3600)
        forgotten = []
        while times := times[1:]:
            forgotten.append((await duty.look()).forgotten)
        assert forgotten == [0, 0, 3]
