"""Time on the simulation's loop: what is due on a machine is due by its own clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from tests.simulation.loop import Machine, Process, SimLoop, of_nobody, true_time

PAUSED_AT, RESUMED_AT = 10.0, 17.0
PAUSED_S = RESUMED_AT - PAUSED_AT


def run(program: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(program())


@pytest.mark.parametrize(
    ("set_at", "delay_s", "due_at"),
    [
        (5.0, 3.0, 8.0),
        (5.0, 6.0, 11.0 + PAUSED_S),
        (9.0, 30.0, 39.0 + PAUSED_S),
        # From outside, while it is paused: its clock stands still.
        (12.0, 1.0, RESUMED_AT + 1.0),
        (16.0, 0.0, RESUMED_AT),
        (20.0, 1.0, 21.0),
    ],
)
def test_a_timer_waits_while_its_machine_is_paused(set_at: float, delay_s: float, due_at: float) -> None:
    async def program() -> None:
        machine, came, began = Machine(), list[float](), true_time()
        process = Process("one", machine)
        of_nobody(machine.pause, delay_s=PAUSED_AT)
        of_nobody(machine.resume, delay_s=RESUMED_AT)
        of_nobody(process.call_later, delay_s, lambda: came.append(true_time() - began), delay_s=set_at)
        await asyncio.sleep(100)
        assert came == pytest.approx([due_at])

    run(program)


def test_a_process_on_it_does_not_see_that_time_went_by() -> None:
    async def program() -> None:
        machine, own, true, began = Machine(), list[float](), list[float](), true_time()
        of_nobody(machine.pause, delay_s=PAUSED_AT)
        of_nobody(machine.resume, delay_s=RESUMED_AT)

        async def ticks() -> None:
            for _ in range(4):
                await asyncio.sleep(4.0)
                own.append(asyncio.get_running_loop().time() - began)
                true.append(true_time() - began)

        await Process("one", machine).start(ticks())
        assert own == pytest.approx([4.0, 8.0, 12.0, 16.0])
        assert true == pytest.approx([4.0, 8.0, 12.0 + PAUSED_S, 16.0 + PAUSED_S])

    run(program)


def test_a_stopped_process_does_late_what_came_due_and_a_dead_one_never() -> None:
    async def program() -> None:
        came, began = dict[str, float](), true_time()
        stopped, dead = Process("stopped"), Process("dead")
        for process in (stopped, dead):
            process.call_later(2.0, lambda name: came.update({name: true_time() - began}), process.name)
        stopped.pause()
        of_nobody(dead.kill, delay_s=1.0)
        of_nobody(stopped.resume, delay_s=5.0)
        await asyncio.sleep(10)
        assert came == pytest.approx({"stopped": 5.0})

    run(program)
