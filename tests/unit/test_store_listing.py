"""Pages: every task once, in order, from either end, at a cost that does not grow with the square of the number."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
import pytest_asyncio

from etcd import codec, keys
from etcd.listing import BadPageToken
from etcd.port import Etcd, Put, Range, RangeResult, Txn
from etcd.store import TaskStore
from node.core import lifecycle
from node.core.model import Outcome, Reason, Status, Task, TaskSpec
from tests.support.fake_etcd import FakeEtcd
from tests.support.tasks import DONE, HOST, NODE_A, NODE_B, NOW, delete_key, new_task, open_store


class Meter:
    """Another etcd: adds up what it has to look at for each range."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.keys_counted = 0
        self.keys_read = 0
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def range(self, op: Range, *, timeout_s: float = 3.0) -> RangeResult:
        result = await self._etcd.range(op, timeout_s=timeout_s)
        self.calls += 1
        self.keys_counted += result.count
        # Downwards etcd reads the whole range, values too, and takes the limit afterwards.
        self.keys_read += 0 if op.count_only else result.count if op.descending else len(result.kvs)
        return result


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[Etcd]:
    async with FakeEtcd() as fake:
        yield fake


@pytest.fixture
def meter(etcd: Etcd) -> Meter:
    return Meter(etcd)


@pytest_asyncio.fixture
async def store(meter: Meter) -> AsyncIterator[TaskStore]:
    async with open_store(cast("Etcd", meter)) as opened:
        yield opened


async def put(etcd: Etcd, tasks: list[Task]) -> None:
    """Records with their index keys, as the transitions leave them."""
    for start in range(0, len(tasks), 60):
        puts: list[Put] = []
        for task in tasks[start : start + 60]:
            puts += [Put(keys.task(task.id), codec.encode_task(task)), Put(keys.index_key(task))]
        await etcd.txn(Txn(success=tuple(puts)))


def in_status(task: Task, status: Status, at: float, node_id: str = NODE_A) -> Task:
    if status is Status.QUEUED:
        return task
    if status is Status.CANCELED:
        return lifecycle.cancel(task, now=at)
    running = lifecycle.claim(task, node_id=node_id, host_id=HOST, now=at)
    if status is Status.RUNNING:
        return running
    outcome = DONE if status is Status.COMPLETE else Outcome(Reason.SETUP_FAILED, step="exec")
    return lifecycle.finish(running, outcome, started_at=at, now=at)


async def walk(store: TaskStore, page_size: int, **wanted: Any) -> list[Task]:
    found: list[Task] = []
    token = ""
    for _ in range(10_000):
        page = await store.list_page(page_size=page_size, page_token=token, now=NOW, **wanted)
        assert len(page.tasks) <= page_size
        assert page.corrupt == ()
        found += page.tasks
        token = page.next_token
        if not token:
            return found
    raise AssertionError("the pages do not end")


def mixture(random: Random) -> list[Task]:
    """Bursts of UUIDv7 with nights between, ids of clients' choosing everywhere, all statuses."""
    ids = [keys.new_task_id(NOW - 7 * 86_400 + number * 40_000 + random.random(), random) for number in range(15)]
    ids += [keys.new_task_id(NOW - 9_000, random) for _ in range(120)]
    ids += [keys.new_task_id(NOW - 60 + number / 50, random) for number in range(150)]
    ids += [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(40)]
    ids += [str(UUID(int=0)), str(UUID(int=(1 << 128) - 1))]
    made = [
        in_status(new_task(id=id_), random.choice(list(Status)), NOW - random.choice([0.5, 10, 300, 300, 90_000]))
        for id_ in ids
    ]
    random.shuffle(made)
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("newest_first", [False, True])
async def test_every_task_once_and_in_order(
    etcd: Etcd,
    store: TaskStore,
    seed: int,
    newest_first: bool,
) -> None:
    tasks = mixture(Random(seed))
    await put(etcd, tasks)
    for page_size in (13, 50, 1000):
        by_id = sorted(tasks, key=lambda task: task.id, reverse=newest_first)
        assert await walk(store, page_size, newest_first=newest_first) == by_id
        for status in Status:
            wanted = [task for task in by_id if task.status is status]
            if status.is_terminal:
                wanted.sort(key=lambda task: (int(task.finished_at or 0), task.id), reverse=newest_first)
            assert await walk(store, page_size, newest_first=newest_first, status=status) == wanted


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_of_one(etcd: Etcd, store: TaskStore, newest_first: bool) -> None:
    tasks = mixture(Random(9))[:25]
    await put(etcd, tasks)
    wanted = sorted(tasks, key=lambda task: task.id, reverse=newest_first)
    assert await walk(store, 1, newest_first=newest_first) == wanted


async def test_no_tasks_is_an_empty_page(store: TaskStore) -> None:
    for status, newest_first in itertools.product([None, *Status], [False, True]):
        assert await walk(store, 10, status=status, newest_first=newest_first) == []


async def test_running_tasks_of_all_nodes_come_by_id(etcd: Etcd, store: TaskStore) -> None:
    tasks = [in_status(new_task(), Status.RUNNING, NOW, node) for node in (NODE_B, NODE_A) for _ in range(20)]
    await put(etcd, tasks)
    for newest_first in (False, True):
        wanted = sorted(tasks, key=lambda task: task.id, reverse=newest_first)
        assert await walk(store, 7, status=Status.RUNNING, newest_first=newest_first) == wanted


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("status", [None, Status.QUEUED, Status.COMPLETE])
async def test_a_walk_does_not_cost_the_square(
    etcd: Etcd,
    meter: Meter,
    store: TaskStore,
    status: Status | None,
    newest_first: bool,
) -> None:
    """40 pages: by limit alone etcd would count 20 times all, and downwards read 20 times all."""
    count, page_size = 1_000, 25
    random = Random(1)
    tasks = [
        in_status(new_task(id=keys.new_task_id(NOW - number, random)), status or Status.QUEUED, NOW - number)
        for number in range(count)
    ]
    await put(etcd, tasks)
    assert len(await walk(store, page_size, status=status, newest_first=newest_first)) == count
    assert meter.keys_counted <= 8 * count
    assert meter.keys_read <= 3 * count
    assert meter.calls <= 12 * (count / page_size)


@pytest.mark.parametrize("status", [None, Status.QUEUED])
async def test_the_newest_page_is_cheap(etcd: Etcd, meter: Meter, store: TaskStore, status: Status | None) -> None:
    """Even when all were submitted at one moment an hour ago: found by halving, never by reading them all."""
    random = Random(2)
    await put(etcd, [new_task(id=keys.new_task_id(NOW - 3600, random)) for _ in range(3_000)])
    page = await store.list_page(status=status, page_size=20, newest_first=True, now=NOW)
    assert len(page.tasks) == 20
    assert meter.keys_read <= 60
    assert meter.calls <= 2 * math.log2(86_400e3 * 4096) + 20


async def test_large_records_end_a_page_early(etcd: Etcd, store: TaskStore) -> None:
    tasks = [new_task(TaskSpec("/bin/cat", stdin=b"x" * 300_000)) for _ in range(60)]
    for task in tasks:
        await put(etcd, [task])
    page = await store.list_page(page_size=1000)
    assert 0 < len(page.tasks) < 60
    assert page.next_token
    assert await walk(store, 1000) == sorted(tasks, key=lambda task: task.id)
    assert await walk(store, 1000, newest_first=True) == sorted(tasks, key=lambda task: task.id, reverse=True)


async def test_a_record_that_cannot_be_read_is_told_and_left_out(etcd: Etcd, store: TaskStore) -> None:
    tasks = sorted((new_task() for _ in range(5)), key=lambda task: task.id)
    await put(etcd, tasks)
    await etcd.txn(Txn(success=(Put(keys.task(tasks[2].id), b"\xff"),)))
    page = await store.list_page()
    assert [task.id for task in page.tasks] == [task.id for task in tasks if task is not tasks[2]]
    assert len(page.corrupt) == 1
    assert tasks[2].id in page.corrupt[0]


async def test_what_moves_while_the_pages_are_read_is_in_none_twice(etcd: Etcd, store: TaskStore) -> None:
    tasks = sorted((new_task() for _ in range(30)), key=lambda task: task.id)
    await put(etcd, tasks)
    first = await store.list_page(status=Status.QUEUED, page_size=10)
    for task in tasks[8:12]:
        await delete_key(etcd, keys.queued_key(task.id))
        await put(etcd, [in_status(task, Status.CANCELED, NOW)])
    second = await store.list_page(status=Status.QUEUED, page_size=100, page_token=first.next_token)
    assert [task.id for task in (*first.tasks, *second.tasks)] == [task.id for task in (*tasks[:10], *tasks[12:])]


@pytest.mark.parametrize("token", ["x", "////", "MQ==", "Lg==", "LTEuMQ==", "MS4w", "é", "MS4x\n", "MS4x" * 50])
async def test_a_foreign_token_is_refused(store: TaskStore, token: str) -> None:
    with pytest.raises(BadPageToken):
        await store.list_page(page_token=token)
