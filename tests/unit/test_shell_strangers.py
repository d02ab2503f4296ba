"""Keys that somebody else wrote (etcdctl) cost a node a line in its log, not its life and not its duties."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.port import Delete, Put, Range, Txn
from node.api.log_record import RecordFollower
from node.api.watch import WatchCall
from node.cluster.sweeper import Sweeper
from node.core.model import Status
from node.core.retention import Limits
from node.retention import Retention
from node.running.own_keys import OwnKeys
from pilfer.v1 import tasks_pb2
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_spawner import living, open_shell, use_the_loops_clock
from tests.support.tasks import (
    DONE,
    NODE_A,
    NODE_B,
    NOW,
    TIMEOUT_S,
    claimed,
    join,
    leave,
    new_task,
    open_store,
    queued,
    read_one,
)
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


async def _put(etcd: FakeEtcd, key: bytes, value: bytes = b"") -> None:
    await etcd.txn(Txn(success=(Put(key, value),)))


@virtual_time
async def test_a_strangers_node_key_that_goes_does_not_end_the_node(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell, living(shell) as life:
        await asyncio.sleep(1)
        await _put(shell.etcd, b"/node/stranger")
        await shell.etcd.txn(Txn(success=(Delete(b"/node/stranger"),)))
        await asyncio.sleep(1)
        assert not life.done(), life.exception()


@virtual_time
async def test_a_record_overwritten_while_its_task_runs_does_not_end_the_node(tmp_path: Path) -> None:
    async with open_shell(tmp_path, cpu=2) as shell:
        other, broken = (await queued(shell.store)).task.id, (await queued(shell.store)).task.id
        async with living(shell) as life:
            await wait_until(lambda: len(shell.spawner.alive) == 2)
            await _put(shell.etcd, keys.task(broken), b"\xff\xff")
            shell.spawner.sandboxes[broken].end()
            await asyncio.sleep(1)
            assert not life.done(), life.exception()
            shell.spawner.sandboxes[other].end()
            await wait_until(lambda: not shell.incarnation.runner.runs, 60, what="both runs are over")
            assert (await read_one(shell.store, other)).task.status is Status.COMPLETE


@pytest.mark.parametrize("stray", [b"/task/status/running/stranger", b"/node/stranger"])
def test_orphans_are_requeued_beside_a_strangers_key(stray: bytes) -> None:
    @virtual_time
    async def sweeps() -> None:
        async with FakeEtcd() as etcd, open_store(etcd) as store:
            mine, dead = await join(etcd, NODE_A), await join(etcd, NODE_B)
            claim = await claimed(store, dead)
            await leave(etcd, NODE_B)
            await _put(etcd, stray)
            await Sweeper(etcd, store, mine).sweep()
            assert (await read_one(store, claim.task.id)).task.status is Status.QUEUED

    sweeps()


@virtual_time
async def test_orphans_are_requeued_beside_one_whose_record_cannot_be_read() -> None:
    async with FakeEtcd() as etcd, open_store(etcd) as store:
        mine, dead = await join(etcd, NODE_A), await join(etcd, NODE_B)
        claims = sorted([(await claimed(store, dead)).task.id for _ in range(250)])
        await leave(etcd, NODE_B)
        await _put(etcd, keys.task(claims[0]), b"\xff\xff")
        sweeper = Sweeper(etcd, store, mine)
        sweeping = asyncio.create_task(sweeper.run())
        await asyncio.sleep(60)
        sweeping.cancel()
        await asyncio.wait({sweeping})
        assert (await read_one(store, claims[-1])).task.status is Status.QUEUED


@pytest.mark.parametrize("what", ["a key that is none", "a damaged claim that comes first"])
def test_own_unknown_claims_are_given_back_beside(what: str, tmp_path: Path) -> None:
    @virtual_time
    async def reconciles() -> None:
        async with open_shell(tmp_path) as shell:
            identity = shell.session.identity
            claims = sorted([(await claimed(shell.store, identity)).task.id for _ in range(2)])
            if what == "a key that is none":
                await _put(shell.etcd, keys.running_of(NODE_A).key + b"stranger")
            else:
                await _put(shell.etcd, keys.task(claims[0]), b"\xff\xff")
            own = OwnKeys(shell.etcd, shell.store, shell.incarnation.runner, identity)
            looking = asyncio.create_task(own.run())
            await asyncio.sleep(60)
            looking.cancel()
            await asyncio.wait({looking})
            assert (await read_one(shell.store, claims[1])).task.status is Status.QUEUED

    reconciles()


@virtual_time
async def test_retention_goes_on_beside_a_strangers_key() -> None:
    async def told(_ids: Sequence[str]) -> None:
        return

    async with FakeEtcd() as etcd, Batcher(etcd) as batcher:
        async with open_store(etcd) as store:
            claim = await claimed(store, await join(etcd, NODE_A))
            await store.finish(claim, DONE, started_at=NOW, now=NOW, timeout_s=TIMEOUT_S)
        await _put(etcd, b"/task/status/complete/stranger")
        retention = Retention(etcd, batcher, Limits(10.0, 10, keep_s=0.0), on_forgotten=told, clock=lambda: NOW + 1000)
        assert (await retention.look()).forgotten == 1


@virtual_time
async def test_pages_leave_out_a_strangers_key() -> None:
    async with FakeEtcd() as etcd, open_store(etcd) as store:
        task = (await queued(store)).task
        await _put(etcd, b"/task/abc")
        assert [one.id for one in (await store.list_page(now=NOW)).tasks] == [task.id]


@virtual_time
async def test_a_follower_of_a_record_that_is_older_than_the_compaction_follows() -> None:
    """`node log -f` of a task that has been running for longer than history is kept."""
    async with FakeEtcd() as etcd, open_store(etcd) as store:
        claim = await claimed(store, await join(etcd, NODE_A))
        seen = await read_one(store, claim.task.id)
        await store.submit(new_task(), timeout_s=TIMEOUT_S)
        await store.submit(new_task(), timeout_s=TIMEOUT_S)
        etcd.store.compact(etcd.store.revision)
        async with RecordFollower(etcd, seen) as record:
            await record.wait_change(1.0)
            await store.finish(claim, DONE, started_at=NOW, now=NOW, timeout_s=TIMEOUT_S)
            await record.wait_until(lambda task: task.status is Status.COMPLETE)


@virtual_time
async def test_a_foreign_touch_of_a_running_key_cancels_nothing(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        task_id = (await queued(shell.store)).task.id
        async with living(shell):
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            await _put(shell.etcd, keys.running_key(NODE_A, task_id))
            await asyncio.sleep(10)
            assert shell.spawner.alive == [task_id]
            (kv,) = shell.etcd.store.read(Range(keys.task(task_id))).kvs
            assert not codec.decode_task(kv.key, kv.value).cancel_requested


@pytest.mark.parametrize("stray", [b"/task/abc", b"/task/00000000-0000-4000-8000-000000000000"])
def test_a_watch_of_all_goes_on_after_a_strangers_key(stray: bytes) -> None:
    class Context:
        async def abort(self, code: grpc.StatusCode, message: str, _metadata: object) -> None:
            raise AssertionError(f"the watch ended: {code}: {message}")

    @virtual_time
    async def watches() -> None:
        async with FakeEtcd() as etcd, open_store(etcd) as store:
            responses = WatchCall(etcd).Watch(tasks_pb2.WatchRequest(), Context())
            async with contextlib.aclosing(responses):
                assert (await anext(responses)).ready
                await _put(etcd, stray, b"\xff\xff")
                await etcd.txn(Txn(success=(Delete(stray),)))
                task = (await queued(store)).task
                seen = [(await anext(responses)).task.id, task.id]
                while seen[0] != task.id:
                    seen[0] = (await anext(responses)).task.id

    watches()
