"""A spawner that is stopped or hangs while the node is well: it is killed, with all that it ran, and another takes its
place."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from isolation.client import SpawnerConfig
from isolation.errors import SpawnerDied
from isolation.spec import Limits, SandboxSpec
from node.core.silence import TURN_S, TURNS
from node.running.supervised_spawner import SupervisedSpawner
from tests.isolation_live.conftest import PATH, require_freezer
from tests.isolation_live.test_death import is_alive
from tests.isolation_live.test_fencing import boottime, is_frozen
from tests.support.leaks import cgroups_of
from tests.support.wait import patient, wait_until

pytestmark = pytest.mark.isolation


@asynccontextmanager
async def supervised(config: SpawnerConfig) -> AsyncIterator[SupervisedSpawner]:
    """A spawner that is watched, and the check that nothing is left of it."""
    spawner = SupervisedSpawner(config)
    await spawner.start()
    running = asyncio.create_task(spawner.run())
    try:
        yield spawner
    finally:
        running.cancel()
        await asyncio.wait({running})
        if spawner.pid is not None and is_alive(spawner.pid):
            os.kill(spawner.pid, signal.SIGCONT)
        await spawner.close()
    assert cgroups_of(config.host_id) == []


def spec(name: str, *argv: str) -> SandboxSpec:
    return SandboxSpec(name, argv, {"PATH": PATH}, Limits(1.0, None, 20))


async def launch(spawner: SupervisedSpawner, name: str) -> tuple[int, asyncio.Task[object]]:
    """The pid of a sandbox that sleeps, and the wait for its end."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        sandbox = await spawner.launch(spec(name, "sleep", "600"), stdin=null, stdout=null, stderr=null)
    finally:
        os.close(null)

    async def ended() -> object:
        return await sandbox.wait()

    return sandbox.started.pid, asyncio.create_task(ended())


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
async def test_a_stopped_spawner_is_replaced_and_its_tasks_are_gone(config: SpawnerConfig, *, frozen: bool) -> None:
    async with supervised(config) as spawner:
        if frozen:
            require_freezer(spawner.report)
        spawner.set_deadline(boottime() + 600)
        first = spawner.pid
        assert first is not None
        pid, ended = await launch(spawner, "t1")
        if frozen:
            spawner.set_deadline(boottime())
            await wait_until(lambda: is_frozen(pid), what="frozen")
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(SpawnerDied):
            await asyncio.wait_for(ended, patient(30))
        await asyncio.wait_for(spawner.wait_clean(), patient(30))
        assert not is_alive(first)
        assert not is_alive(pid)
        assert spawner.pid != first
        spawner.set_deadline(boottime() + 600)
        _, again = await launch(spawner, "t2")
        again.cancel()
        await asyncio.wait({again})


async def test_a_node_that_was_busy_itself_blames_nobody(config: SpawnerConfig) -> None:
    """Its loop stands still for longer than it has patience; the spawner answers meanwhile, and is not heard."""
    async with supervised(config) as spawner:
        spawner.set_deadline(boottime() + 600)
        first = spawner.pid
        pid, ended = await launch(spawner, "t1")
        for _ in range(2):
            end = boottime() + (TURNS + 1) * TURN_S
            while boottime() < end:
                sum(range(1000))
            await asyncio.sleep(0)
        await asyncio.sleep(TURN_S)
        assert (spawner.pid, is_alive(pid)) == (first, True)
        ended.cancel()
        await asyncio.wait({ended})


async def test_a_short_stop_costs_nothing(config: SpawnerConfig) -> None:
    async with supervised(config) as spawner:
        spawner.set_deadline(boottime() + 600)
        first = spawner.pid
        assert first is not None
        pid, ended = await launch(spawner, "t1")
        os.kill(first, signal.SIGSTOP)
        await asyncio.sleep(TURN_S)
        os.kill(first, signal.SIGCONT)
        await asyncio.sleep((TURNS + 2) * TURN_S)
        assert (spawner.pid, is_alive(pid)) == (first, True)
        ended.cancel()
        await asyncio.wait({ended})
