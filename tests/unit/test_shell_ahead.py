"""Tasks claimed ahead of the room for them, in virtual time: never beyond capacity, never kept for long."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from etcd import keys
from etcd.port import Delete, Put, Range, Txn
from node.core.model import Reason, Status, TaskSpec
from node.running.runner import WAIT_MAX_S
from tests.support.fake_etcd import Fault
from tests.support.fake_spawner import Shell, living, open_shell, use_the_loops_clock
from tests.support.tasks import NODE_A, NOW, TIMEOUT_S, new_task, read_one
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

CPUS = 2
#: Ids in the order of submission.
_numbers = itertools.count()
TASK_S = 0.004


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


async def submit(shell: Shell, count: int, spec: TaskSpec | None = None) -> list[str]:
    tasks = [new_task(spec, id=f"01a3185c-5000-7000-8000-{next(_numbers):012x}") for _ in range(count)]
    for result in await shell.store.submit_many(tasks, timeout_s=TIMEOUT_S):
        assert not isinstance(result, Exception)
    return sorted(task.id for task in tasks)


def running_keys(shell: Shell) -> list[str]:
    """Ids of the tasks that this node has claimed, according to etcd."""
    found = keys.running_of(NODE_A)
    return [kv.key.decode().rpartition("/")[2] for kv in shell.etcd.store.read(Range(found.key, found.range_end)).kvs]


class Ends:
    """Ends what runs TASK_S after it has started, until it is told to stop; notes the most that ran at a time."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.is_on = True
        self.most = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TASK_S)
            alive = self._shell.spawner.alive
            self.most = max(self.most, len(alive))
            if self.is_on:
                for task_id in alive:
                    self._shell.spawner.sandboxes[task_id].end()


@asynccontextmanager
async def ending(shell: Shell) -> AsyncIterator[Ends]:
    ends = Ends(shell)
    task = asyncio.create_task(ends.run())
    try:
        yield ends
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def claiming_ahead(tmp_path: Path, count: int = 2000) -> AsyncIterator[tuple[Shell, Ends]]:
    """A node under a backlog of short tasks, at a moment at which it has claimed some ahead; then all that start go on
    for ever."""
    async with open_shell(tmp_path, cpu=CPUS) as shell:
        await submit(shell, count)
        async with living(shell), ending(shell) as ends:
            runner = shell.incarnation.runner
            await wait_until(lambda: runner.waiting >= 8 and len(shell.spawner.alive) == CPUS, 60, what="held")
            ends.is_on = False
            yield shell, ends


@virtual_time
async def test_a_backlog_runs_through_without_ever_exceeding_the_capacity(tmp_path: Path) -> None:
    async with open_shell(tmp_path, cpu=CPUS) as shell:
        ids = await submit(shell, 500)
        async with living(shell), ending(shell) as ends:
            most_waiting = 0

            def all_ran() -> bool:
                nonlocal most_waiting
                most_waiting = max(most_waiting, shell.incarnation.runner.waiting)
                assert shell.incarnation.ledger.free.milli_cpu >= 0
                return len(shell.spawner.sandboxes) == len(ids) and not shell.incarnation.runner.runs

            await wait_until(all_ran, 120, what="all ran")
            assert ends.most == CPUS
            assert most_waiting > 0, "nothing was claimed ahead, and this test shows nothing"
            assert most_waiting <= 0.1 * CPUS / TASK_S + 1
            assert len(shell.incarnation.ledger) == 0
            for task_id in (ids[0], ids[-1]):
                task = (await read_one(shell.store, task_id)).task
                assert (task.status, task.attempt) == (Status.COMPLETE, 1)


@virtual_time
async def test_what_finds_no_room_in_time_is_given_back_and_uses_no_attempt(tmp_path: Path) -> None:
    async with claiming_ahead(tmp_path) as (shell, _):
        waiting = set(running_keys(shell)) - set(shell.spawner.sandboxes)
        assert waiting
        await asyncio.sleep(WAIT_MAX_S + 0.2)
        assert sorted(running_keys(shell)) == sorted(shell.spawner.alive), "kept from others for too long"
        task = (await read_one(shell.store, min(waiting))).task
        assert (task.status, task.attempt, task.attempts_used) == (Status.QUEUED, 1, 0)
        assert task.attempts[-1].outcome is not None
        assert task.attempts[-1].outcome.reason is Reason.GIVEN_BACK
        # Nothing has ended since: nothing more is claimed ahead.
        await asyncio.sleep(2)
        assert sorted(running_keys(shell)) == sorted(shell.spawner.alive)
        assert len(shell.incarnation.ledger) == CPUS


@virtual_time
async def test_a_node_with_long_tasks_claims_what_it_starts_and_no_more(tmp_path: Path) -> None:
    async with open_shell(tmp_path, cpu=CPUS) as shell:
        await submit(shell, 200)
        async with living(shell):
            await wait_until(lambda: len(shell.spawner.alive) == CPUS)
            for _ in range(5):
                for task_id in shell.spawner.alive:
                    shell.spawner.sandboxes[task_id].end()
                await asyncio.sleep(1)
                assert sorted(running_keys(shell)) == sorted(shell.spawner.alive)


@virtual_time
async def test_nothing_is_claimed_ahead_of_a_short_queue(tmp_path: Path) -> None:
    """A peer may be idle."""
    async with open_shell(tmp_path, cpu=CPUS) as shell, living(shell), ending(shell):
        runner = shell.incarnation.runner

        def all_ran() -> bool:
            assert runner.waiting == 0
            return not runner.runs and not running_keys(shell)

        for _ in range(40):
            await submit(shell, 10)
            await wait_until(lambda: bool(runner.runs), 60)
            await wait_until(all_ran, 60)


@virtual_time
async def test_a_cancel_of_a_task_that_waits_for_room_is_confirmed_without_starting_it(tmp_path: Path) -> None:
    async with claiming_ahead(tmp_path) as (shell, _):
        task_id = min(set(running_keys(shell)) - set(shell.spawner.sandboxes))
        await shell.store.cancel(task_id, now=NOW, timeout_s=TIMEOUT_S)
        await asyncio.sleep(WAIT_MAX_S / 2)
        task = (await read_one(shell.store, task_id)).task
        assert task.status is Status.CANCELED
        assert task.attempts[-1].started_at is None
        assert task_id not in shell.spawner.sandboxes
        assert task_id not in shell.incarnation.ledger


@virtual_time
async def test_a_stop_gives_back_what_waits_for_room(tmp_path: Path) -> None:
    """Also what may not run again once it has started: it has not."""
    async with open_shell(tmp_path, cpu=CPUS) as shell:
        ids = await submit(shell, 500, TaskSpec("true", restart_on_node_loss=False))
        async with living(shell) as life, ending(shell) as ends:
            runner = shell.incarnation.runner
            await wait_until(lambda: runner.waiting >= 8 and len(shell.spawner.alive) == CPUS, 60)
            ends.is_on = False
            started = set(shell.spawner.sandboxes)
            waiting = set(running_keys(shell)) - started
            shell.stop.set()
            await wait_until(life.done, 60, what="the stop ends")
            assert not running_keys(shell)
            assert set(shell.spawner.sandboxes) == started, "started although the node stops"
            for task_id in waiting:
                task = (await read_one(shell.store, task_id)).task
                assert (task.status, task.attempts_used) == (Status.QUEUED, 0)
            statuses = {(await read_one(shell.store, task_id)).task.status for task_id in ids}
            assert Status.RUNNING not in statuses


@virtual_time
async def test_after_the_loss_of_the_lease_nothing_that_waited_is_started_or_written(tmp_path: Path) -> None:
    async with open_shell(tmp_path, cpu=CPUS) as shell:
        await submit(shell, 500)
        async with living(shell) as life, ending(shell) as ends:
            runner = shell.incarnation.runner
            await wait_until(lambda: runner.waiting >= 8 and len(shell.spawner.alive) == CPUS, 60)
            ends.is_on = False
            started, claimed = set(shell.spawner.sandboxes), set(running_keys(shell))
            shell.session.lost.set_result("gone")
            await wait_until(life.done, 60, what="the life ends")
            assert set(shell.spawner.sandboxes) == started
            # Left to the peers, as what ran: this incarnation writes nothing any more.
            assert claimed - started <= set(running_keys(shell))


@virtual_time
async def test_when_the_spawner_dies_what_waited_is_given_back_or_runs_under_the_next(tmp_path: Path) -> None:
    async with claiming_ahead(tmp_path) as (shell, ends):
        ran = set(shell.spawner.sandboxes)
        waiting = set(running_keys(shell)) - ran
        shell.spawner.die()
        await asyncio.sleep(2)
        assert set(shell.spawner.sandboxes) == ran, "started without a spawner"
        for task_id in waiting:
            task = (await read_one(shell.store, task_id)).task
            assert (task.status, task.attempts_used) == (Status.QUEUED, 0)
        shell.spawner.is_up = True
        shell.spawner.clean.set()
        shell.incarnation.runner.on_change()
        ends.is_on = True
        await wait_until(lambda: waiting <= set(shell.spawner.sandboxes), 60, what="they run under the next spawner")


@virtual_time
async def test_a_claim_ahead_that_is_unsettled_books_nothing_and_is_not_forgotten(tmp_path: Path) -> None:
    """etcd takes the claims and does not answer for a while."""
    async with open_shell(tmp_path, cpu=CPUS) as shell:
        ids = await submit(shell, 400)
        async with living(shell), ending(shell) as ends:
            runner = shell.incarnation.runner
            await wait_until(lambda: runner.waiting >= 8, 60)
            until = asyncio.get_running_loop().time() + 3

            def silent(_method: str, argument: object) -> Fault | None:
                writes = isinstance(argument, Txn) and any(_writes(op) for op in argument.success)
                if writes and asyncio.get_running_loop().time() < until:
                    return Fault(applied_after_s=0.0, error_after_s=1.0)
                return None

            shell.etcd.faults = silent
            await wait_until(lambda: len(shell.spawner.sandboxes) == len(ids) and not runner.runs, 120, what="all ran")
            assert ends.most == CPUS
            assert len(shell.incarnation.ledger) == 0


def _writes(op: object) -> bool:
    if isinstance(op, Txn):
        return any(_writes(one) for one in op.success)
    return isinstance(op, Put | Delete)
