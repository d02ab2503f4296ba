"""The store while etcd dies, freezes and fills up: nothing acknowledged is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from etcd import keys
from etcd.batcher import Batcher
from etcd.client import EtcdClient
from etcd.errors import NoSpace, OutcomeUnknown, StoreUnavailable
from etcd.port import Range
from etcd.store import Claim, Submitted
from node.core.model import Status, TaskSpec
from node.core.retention import Limits
from node.retention import Retention
from tests.support.etcd_process import EtcdProcess, etcd_running
from tests.support.tasks import (
    DONE,
    NODE_A,
    NOW,
    claimed,
    join,
    new_task,
    open_store,
    queued,
    snapshot,
    status_agrees_with_record,
)
from tests.support.wait import wait_until

pytestmark = pytest.mark.etcd

PATIENCE_S = 60.0


async def count_of_tasks(client: EtcdClient) -> int:
    every = keys.all_tasks()
    return (await client.range(Range(every.key, every.range_end, count_only=True))).count


async def kill_and_restart(etcd: EtcdProcess) -> None:
    etcd.kill()
    etcd.start()
    await etcd.wait_ready()


async def test_etcd_killed_under_a_stream_of_lives(own_etcd: EtcdProcess) -> None:
    """Submits, claims and finishes go on through three deaths of etcd; every one is answered, once."""
    count = 3_000
    async with own_etcd.client() as client, open_store(client, rpc_timeout_s=2.0) as store:
        me = await join(client, NODE_A)
        tasks = [new_task() for _ in range(count)]

        submitting = asyncio.create_task(store.submit_many(tasks, timeout_s=PATIENCE_S))
        await wait_for_some(client)
        await kill_and_restart(own_etcd)
        answers = await submitting
        assert [answer.created for answer in answers if isinstance(answer, Submitted)] == [True] * count

        seen = [one for one in await store.read([task.id for task in tasks], timeout_s=PATIENCE_S) if one]
        claiming = asyncio.create_task(store.claim_many(seen, me, now=NOW + 1, timeout_s=PATIENCE_S))
        await kill_and_restart(own_etcd)
        claims = [claim for claim in await claiming if isinstance(claim, Claim)]
        assert len(claims) == count
        running, _ = await store.running_of(me.node_id, timeout_s=PATIENCE_S)
        assert {id_: kv.create_revision for id_, kv in running} == {c.task.id: c.fence_revision for c in claims}

        finishing = asyncio.gather(
            *(store.finish(c, DONE, started_at=NOW + 1, now=NOW + 2, timeout_s=PATIENCE_S) for c in claims)
        )
        await kill_and_restart(own_etcd)
        ended = await finishing
        assert {task.status for task in ended if task is not None} == {Status.COMPLETE}
        assert None not in ended
        shown = status_agrees_with_record(await snapshot(client))
    assert [shown[task.id] for task in tasks] == ended


async def wait_for_some(client: EtcdClient) -> None:
    async def some() -> bool:
        return await count_of_tasks(client) > 0

    await wait_until(some, what="the first batch has arrived", every_s=0.002)


async def test_a_frozen_etcd_is_unknown_then_answers(own_etcd: EtcdProcess) -> None:
    async with own_etcd.client() as client, open_store(client, rpc_timeout_s=0.5) as store:
        me = await join(client, NODE_A)
        claim = await claimed(store, me)
        own_etcd.freeze()
        with pytest.raises(OutcomeUnknown):
            await store.finish(claim, DONE, started_at=NOW, now=NOW, timeout_s=1.0)
        with pytest.raises(StoreUnavailable):
            await store.read([claim.task.id], timeout_s=1.0)
        patient = asyncio.create_task(store.finish(claim, DONE, started_at=NOW, now=NOW, timeout_s=PATIENCE_S))
        own_etcd.thaw()
        after = await patient
        assert after is not None
        assert after.status is Status.COMPLETE
        status_agrees_with_record(await snapshot(client))


async def test_a_full_etcd_still_forgets() -> None:
    with etcd_running(quota_bytes=16 << 20) as etcd:
        await etcd.wait_ready()
        async with etcd.client() as client, open_store(client) as store, Batcher(client) as batcher:
            me = await join(client, NODE_A)
            small = await claimed(store, me)
            await store.finish(small, DONE, started_at=NOW, now=NOW, timeout_s=PATIENCE_S)
            waiting = await queued(store)
            big = TaskSpec("/bin/cat", stdin=b"x" * 900_000)
            answers: list[object] = []
            # etcd 3.4 notices late how large its file has become.
            while NoSpace not in map(type, answers):
                assert len(answers) < 1_000, "the quota is never reached"
                answers += await store.submit_many([new_task(big) for _ in range(20)], timeout_s=PATIENCE_S)
            assert {type(answer) for answer in answers} == {Submitted, NoSpace}
            with pytest.raises(NoSpace):
                await store.claim(waiting, me, now=NOW, timeout_s=PATIENCE_S)

            gone: list[str] = []

            async def on_forgotten(ids: Sequence[str]) -> None:
                gone.extend(ids)

            duty = Retention(
                client, batcher, Limits(60.0, 10, keep_s=0.0), on_forgotten=on_forgotten, clock=lambda: NOW + 3600
            )
            assert (await duty.look()).forgotten == 1
            assert gone == [small.task.id]
            stored = sum(isinstance(answer, Submitted) for answer in answers)
            assert await count_of_tasks(client) == stored + 1
