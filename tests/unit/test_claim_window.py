"""A queue that is longer than a node's window of it: every task's turn comes, and no node lists all of it each time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from etcd import keys
from etcd.port import Put, Range, Txn
from node.core.ids import new_task_ids
from node.core.model import Capacity, Requirements, TaskSpec
from node.core.queue_view import QueueView
from node.incarnation import Incarnation
from tests.support.fake_etcd import Fault
from tests.support.fake_spawner import Shell, living, open_shell, use_the_loops_clock
from tests.support.tasks import NOW, TIMEOUT_S, new_task
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

WINDOW = 8


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


@asynccontextmanager
async def _shell(tmp_path: Path, limits: list[int]) -> AsyncIterator[Shell]:
    """With a small window; `limits` gets that of each listing of the queue."""
    async with open_shell(tmp_path) as shell:
        around = replace(shell.around, queue_window=WINDOW)
        shell.incarnation = Incarnation(around, shell.session.session(), shell.session.identity)

        def note(_method: str, argument: object) -> Fault | None:
            if isinstance(argument, Range) and argument.key == keys.queued().key:
                limits.append(argument.limit)
            return None

        shell.etcd.faults = note
        yield shell


async def _submit(shell: Shell, count: int, cpu: float = 1.0) -> list[str]:
    spec = TaskSpec("/bin/true", requirements=Requirements(cpu=cpu))
    tasks = [new_task(spec, id=task_id) for task_id in new_task_ids(count, NOW, _Bits())]
    await shell.store.submit_many(tasks, timeout_s=TIMEOUT_S)
    return [task.id for task in tasks]


class _Bits:
    """Ids in the order of their making."""

    made = 0

    def getrandbits(self, _bits: int, /) -> int:
        _Bits.made += 1
        return _Bits.made


async def _run_all(shell: Shell, task_ids: list[str]) -> None:
    ended: set[str] = set()

    def end_what_runs() -> bool:
        for task_id in shell.spawner.sandboxes.keys() - ended:
            ended.add(task_id)
            shell.spawner.sandboxes[task_id].end()
        return ended >= set(task_ids)

    await wait_until(end_what_runs, 60, what="all ran")


@virtual_time
async def test_no_listing_is_longer_than_the_window(tmp_path: Path) -> None:
    limits: list[int] = []
    async with _shell(tmp_path, limits) as shell:
        task_ids = await _submit(shell, 60)
        async with living(shell):
            await _run_all(shell, task_ids)
    assert len(limits) > 60 // WINDOW
    assert set(limits) == {WINDOW}


@virtual_time
async def test_tasks_behind_a_window_of_what_can_never_fit_here_are_found(tmp_path: Path) -> None:
    limits: list[int] = []
    async with _shell(tmp_path, limits) as shell:
        await _submit(shell, 3 * WINDOW, cpu=5.0)
        fitting = await _submit(shell, 5)
        async with living(shell):
            await _run_all(shell, fitting)
    assert limits[:2] == [WINDOW, 0]


@virtual_time
async def test_a_strangers_key_at_the_end_of_a_listing_ends_nothing(tmp_path: Path) -> None:
    limits: list[int] = []
    async with _shell(tmp_path, limits) as shell:
        task_ids = await _submit(shell, WINDOW - 1)
        stranger = keys.queued_key(task_ids[-1]) + b"\xff"
        await shell.etcd.txn(Txn(success=(Put(stranger),)))
        task_ids += await _submit(shell, WINDOW)
        async with living(shell):
            await _run_all(shell, task_ids)


def test_what_comes_after_the_end_of_a_listing_waits_for_the_next() -> None:
    view = QueueView("me", Capacity(1.0, 1 << 30), limit=WINDOW)
    first, second, third, fourth = new_task_ids(4, NOW, _Bits())
    view.reset([(task_id, Requirements(), 0.0) for task_id in (first, third)], now=0.0, beyond=third)
    assert view.is_truncated
    view.add(fourth, Requirements(), now=0.0)
    assert fourth not in view
    view.add(second, Requirements(), now=0.0)  # requeued
    assert second in view
    assert view.needs_listing is False
    view.remove(first)
    assert view.needs_listing
