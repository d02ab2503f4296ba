"""Upkeep with several real etcds: a voter raises the alarm of the used up quota and dies with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.errors import NoSpace, StoreError
from etcd.maintenance import Maintenance
from etcd.port import Put, Txn
from tests.support.etcd_process import EtcdProcess, etcd_binary
from tests.support.wait import wait_until

pytestmark = pytest.mark.etcd

QUOTA = 16 << 20
#: The upkeep's clock runs so many times as fast: a minute of turns is over in six seconds.
SPEED = 10.0


def put(key: bytes, size: int = 0) -> Txn:
    return Txn(success=(Put(key, bytes(size)),))


def upkeep(etcd: EtcdClient) -> Maintenance:
    return Maintenance(
        etcd,
        quota_bytes=QUOTA,
        clock=lambda: time.monotonic() * SPEED,
        sleep=lambda seconds: asyncio.sleep(seconds / SPEED),
    )


@pytest_asyncio.fixture
async def voters(tmp_path: Path) -> AsyncIterator[list[EtcdProcess]]:
    """Three that found their cluster together."""
    binary = etcd_binary()
    first = EtcdProcess(binary, tmp_path / "a", quota_bytes=QUOTA, name="a")
    made = [first, *(EtcdProcess(binary, tmp_path / n, quota_bytes=QUOTA, name=n, joins=first) for n in "bc")]
    for one in made:
        others = tuple((other.config.name, other.peer_url) for other in made if other is not one)
        one.config = replace(one.config, state="new", initial_cluster=others)
    try:
        for one in made:
            one.start()
        for one in made:
            await one.wait_ready()
        yield made
    finally:
        for one in made:
            one.kill()


async def fill(etcd: EtcdClient) -> None:
    """With one key's past, until the quota is used up."""
    with pytest.raises(NoSpace):
        for _ in range(100):
            await etcd.txn(put(b"/same", 500_000), timeout_s=10)


async def test_the_alarm_of_a_voter_that_died_is_taken_back(voters: list[EtcdProcess]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(voter.client()) for voter in voters]
        names = {member.id: member.name for member in await clients[0].members()}
        await fill(clients[2])
        # Mostly the one that was asked; but the others, who apply the same, may be the first to see theirs full.
        raised_by = [names[alarm.member_id] for alarm in await clients[2].alarms()]
        assert raised_by
        dead = next(voter for voter in voters if voter.config.name == raised_by[0])
        dead.kill()
        living = [client for voter, client in zip(voters, clients, strict=True) if voter is not dead]

        duties = [upkeep(client) for client in living]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        running = [group.create_task(duty.run()) for duty in duties]

        async def takes_puts() -> bool:
            with contextlib.suppress(StoreError):
                await living[0].txn(put(b"/cluster/removed/c"))
                return True
            return False

        async def is_healed() -> bool:
            if not await takes_puts() or any(duty.is_filling_up for duty in duties):
                return False
            return all([(await client.status()).db_size_bytes < QUOTA // 2 for client in living])

        await wait_until(is_healed, 40, what="the living took the dead one's alarm back", every_s=0.1)
        assert await living[0].alarms() == ()
        assert len(await living[0].members()) == 3, "it keeps its seat"
        for task in running:
            task.cancel()
