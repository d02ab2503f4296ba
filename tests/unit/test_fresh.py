"""Records known from their submit: used once, not without an answer, not beyond the bound; and what it saves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from etcd import keys
from etcd.fresh import KEPT_MAX, OF_CALL_MAX, FreshRecords, Versioned
from etcd.port import Put, Range, Txn
from tests.support.fake_etcd import Fault
from tests.support.fake_spawner import living, open_shell, use_the_loops_clock
from tests.support.tasks import TIMEOUT_S, new_task
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


async def test_a_record_is_known_from_its_submits_answer_on_and_once() -> None:
    fresh, task = FreshRecords(), new_task()
    with fresh.noting([task]) as note:
        waited_for = fresh.find_submit(task.id)
        assert waited_for is not None
        assert not waited_for.done()
        note(Versioned(task, 7))
    assert waited_for.done()
    assert fresh.find_submit(task.id) is None
    assert fresh.take(task.id) == Versioned(task, 7)
    assert fresh.take(task.id) is None


async def test_a_submit_that_fails_leaves_nothing_behind() -> None:
    fresh, task = FreshRecords(), new_task()
    with pytest.raises(ValueError, match="broken"), fresh.noting([task]):
        raise ValueError("broken")
    assert fresh.find_submit(task.id) is None
    assert fresh.take(task.id) is None


async def test_of_two_submits_of_one_id_the_first_alone_is_waited_for_and_noted() -> None:
    fresh, task = FreshRecords(), new_task()
    with fresh.noting([task]) as first:
        with fresh.noting([task]) as second:
            second(Versioned(task, 8))
        assert fresh.find_submit(task.id) is not None
        assert fresh.take(task.id) is None
        first(Versioned(task, 7))
    assert fresh.take(task.id) == Versioned(task, 7)


async def test_large_calls_are_left_out_and_the_oldest_are_forgotten() -> None:
    fresh = FreshRecords()
    many = [new_task() for _ in range(OF_CALL_MAX + 1)]
    with fresh.noting(many) as note:
        assert fresh.find_submit(many[0].id) is None
        note(Versioned(many[0], 1))
    assert fresh.take(many[0].id) is None
    tasks = [new_task() for _ in range(KEPT_MAX + 1)]
    for task in tasks:
        with fresh.noting([task]) as note:
            note(Versioned(task, 1))
    assert fresh.take(tasks[0].id) is None
    assert fresh.take(tasks[1].id) is not None


def _is_read_of(argument: object, key: bytes) -> bool:
    return isinstance(argument, Txn) and any(isinstance(op, Range) and op.key == key for op in argument.success)


@virtual_time
async def test_a_task_submitted_through_this_node_is_claimed_without_reading_it(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        task, reads = new_task(), []

        def spy(_method: str, argument: object) -> Fault | None:
            if _is_read_of(argument, keys.task(task.id)):
                reads.append(argument)
            return None

        shell.etcd.faults = spy
        async with living(shell):
            await asyncio.sleep(1)
            await shell.store.submit(task, timeout_s=TIMEOUT_S)
            await wait_until(lambda: task.id in shell.spawner.sandboxes, 60)
            assert not reads


@virtual_time
async def test_a_task_whose_submit_is_not_answered_runs_all_the_same(tmp_path: Path) -> None:
    """etcd has it, and its answer is lost for a while: the queue does not wait for that."""
    async with open_shell(tmp_path) as shell:
        task = new_task()

        def slow(_method: str, argument: object) -> Fault | None:
            puts = isinstance(argument, Txn) and any(
                isinstance(op, Put) and op.key == keys.queued_key(task.id) for op in argument.success
            )
            return Fault(applied_after_s=0.0, error_after_s=5.0) if puts else None

        shell.etcd.faults = slow
        async with living(shell):
            await asyncio.sleep(1)
            submit = asyncio.create_task(shell.store.submit(task, timeout_s=TIMEOUT_S))
            await wait_until(lambda: task.id in shell.spawner.sandboxes, 2, what="it runs")
            assert not submit.done()
            shell.etcd.faults = lambda _method, _argument: None
            assert (await submit).task.id == task.id
