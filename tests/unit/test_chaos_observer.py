"""The observer follows a history through voters that come and go, over gaps and recoveries, and tells what it finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from etcd import keys
from etcd.errors import StoreUnavailable
from etcd.port import Delete, Etcd, Put, Txn
from node.core.model import Task
from tests.chaos.observer import SILENCE_S, Observer, Parts
from tests.support.fake_etcd import FakeEtcd
from tests.support.tasks import HOST, NODE_A, new_task
from tests.support.virtual_time import run_virtual
from tests.unit.test_history import claim, finish, index_value, node_value, record


class World:
    """Some etcds by their endpoints; those that are None do not answer."""

    def __init__(self, directory: Path) -> None:
        self.etcds: dict[str, FakeEtcd | None] = {}
        self.told: list[dict[str, object]] = []
        self.parts = Parts(directory)
        self.observer = Observer(self.parts, self.told.append, self.connect)
        self.directory = directory

    @asynccontextmanager
    async def connect(self, endpoint: str, _pki: Path) -> AsyncIterator[Etcd]:
        etcd = self.etcds[endpoint]
        if etcd is None:
            raise StoreUnavailable(f"{endpoint} does not answer")
        yield etcd

    def flaws(self) -> list[str]:
        return [str(told["flaw"]) for told in self.told if "flaw" in told]

    async def finish(self, *must_be_known: str) -> dict[str, object]:
        file = self.directory / "ids"
        file.write_text("\n".join(must_be_known))
        self.observer.take({"finish": str(file)})
        await self.observer.run()
        return self.observer.finish()


async def found(etcd: FakeEtcd, epoch: int = 1) -> None:
    """A cluster with one node."""
    lease = await etcd.lease_grant(6000)
    node = Put(keys.node(NODE_A), node_value(NODE_A, HOST), lease=lease.id)
    await etcd.txn(Txn(success=(Put(keys.cluster_epoch(), b"%d" % epoch), node)))


async def write(etcd: FakeEtcd, *steps: Task, before: Task | None = None) -> Task:
    """One task's records one after the other, each with its index."""
    for step in steps:
        gone = (Delete(keys.index_key(before)),) if before and keys.index_key(before) != keys.index_key(step) else ()
        await etcd.txn(Txn(success=(*gone, Put(keys.index_key(step), index_value(step)), Put(*record(step)))))
        before = step
    return steps[-1]


async def forget(etcd: FakeEtcd, task: Task) -> None:
    await etcd.txn(Txn(success=(Delete(keys.index_key(task)), Delete(keys.task(task.id)))))


def play(directory: Path, script: Callable[[World], Awaitable[None]]) -> World:
    world = World(directory)

    async def run() -> None:
        await script(world)

    try:
        run_virtual(run())
    finally:
        world.parts.close()
    return world


async def follow(world: World) -> asyncio.Task[None]:
    """Follows beside what comes."""
    world.observer.take({"voters": [[name, "pki"] for name in world.etcds]})
    task = asyncio.create_task(world.observer.run())
    await asyncio.sleep(1)
    return task


def test_what_is_legal_is_followed_through_a_voter_that_does_not_answer(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with FakeEtcd() as etcd:
            world.etcds = {"dead": None, "alive": etcd}
            await found(etcd)
            following = await follow(world)
            task = new_task()
            ended = await write(etcd, task, claim(task), finish(claim(task)))
            await asyncio.sleep(3 * SILENCE_S)
            judged = await world.finish(ended.id)
            await following
            assert (judged["flaws_in_all"], judged["transitions"], judged["gaps"]) == (0, 3, 0)
            # What was there when it began is no revision that it has judged.
            assert (judged["revisions"], judged["requeues"]) == (3, 0)

    world = play(tmp_path, script)
    assert world.told == []
    lines = [json.loads(line) for line in (tmp_path / "history.0001.jsonl").read_text().splitlines()]
    assert sum("story" in line for line in lines) == 3


def test_what_is_illegal_is_told_at_once(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with FakeEtcd() as etcd:
            world.etcds = {"a": etcd}
            await found(etcd)
            following = await follow(world)
            task = await write(etcd, new_task())
            await forget(etcd, task)
            await asyncio.sleep(1)
            assert any("NothingLost" in flaw for flaw in world.flaws())
            await world.finish()
            await following

    play(tmp_path, script)


def test_a_gap_is_told_and_bridged(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with FakeEtcd() as etcd:
            world.etcds = {"a": etcd}
            await found(etcd)
            following = await follow(world)
            first = await write(etcd, new_task())
            await asyncio.sleep(1)
            # It cannot be reached for a while, and the history is compacted meanwhile.
            world.etcds["a"] = None
            etcd.break_streams()
            await asyncio.sleep(2 * SILENCE_S)
            await write(etcd, claim(first), finish(claim(first)), before=first)
            await etcd.compact((await etcd.status()).revision)
            world.etcds["a"] = etcd
            await asyncio.sleep(2 * SILENCE_S)
            judged = await world.finish(first.id)
            await following
            assert (judged["gaps"], judged["torn"], judged["flaws_in_all"]) == (1, 2, 0)

    assert any("gap" in told for told in play(tmp_path, script).told)


def test_a_task_that_is_unknown_at_the_end_is_lost(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with FakeEtcd() as etcd:
            world.etcds = {"a": etcd}
            await found(etcd)
            following = await follow(world)
            assert (await world.finish(new_task().id))["flaws_in_all"] == 1
            await following

    assert any("NothingLost" in flaw for flaw in play(tmp_path, script).flaws())


def test_a_revision_that_is_gone_is_told(tmp_path: Path) -> None:
    """Without an operator's recovery nothing that was written is unwritten."""

    async def script(world: World) -> None:
        async with FakeEtcd() as etcd, FakeEtcd() as older:
            world.etcds = {"a": etcd}
            await found(etcd)
            await found(older)
            following = await follow(world)
            await write(etcd, new_task())
            await asyncio.sleep(1)
            world.etcds["a"] = older
            await asyncio.sleep(3 * SILENCE_S)
            following.cancel()

    assert any("NothingLost: revision" in flaw for flaw in play(tmp_path, script).flaws())


def test_a_recovered_cluster_is_followed_when_that_was_announced(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with FakeEtcd() as etcd, FakeEtcd() as recovered:
            world.etcds = {"a": etcd}
            await found(etcd)
            following = await follow(world)
            task = new_task()
            claimed = await write(etcd, task, claim(task))
            await write(recovered, task)
            await found(recovered, epoch=2)
            await asyncio.sleep(1)
            world.etcds["a"] = recovered
            await asyncio.sleep(3 * SILENCE_S)
            # Another epoch, and nobody said so: it waits.
            assert world.observer.history.tasks[task.id] == claimed
            world.observer.take({"epoch": "restored"})
            await asyncio.sleep(3 * SILENCE_S)
            assert world.observer.history.tasks[task.id] == task
            await write(recovered, claim(task), finish(claim(task)), before=task)
            judged = await world.finish(task.id)
            await following
            assert (judged["flaws_in_all"], judged["gaps"]) == (0, 0)

    assert play(tmp_path, script).flaws() == []


def test_of_the_file_the_newest_parts_are_kept(tmp_path: Path) -> None:
    parts = Parts(tmp_path, part_bytes=100, parts_kept=2)
    for number in range(100):
        parts.write([f"line {number:04d}"])
    parts.close()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 2
    assert files[-1].read_text().endswith("line 0099\n")
