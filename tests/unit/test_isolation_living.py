"""Who lives, who is signalled, and for what reason it says it ended."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from isolation.cgroup.none import NoGroup, NoParent
from isolation.living import Living
from isolation.sandbox import FENCE, SCRATCH, STOP, TIMEOUT, Sandbox
from isolation.spec import Limits, SandboxSpec
from isolation.timers import Timers
from tests.support.wait import wait_until


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Deaf to SIGTERM."""
    deaf = ["sh", "-c", "trap '' TERM; echo; exec sleep 60"]
    processes = [subprocess.Popen(deaf, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def living(timers: Timers, sleepers: list[subprocess.Popen[bytes]]) -> Living:
    """Two, `t0` and `t1`, whose PID 1 are the sleepers; where there are no control groups."""
    living = Living(NoParent(), timers)
    for number, process in enumerate(sleepers):
        spec = SandboxSpec(f"t{number}", ("sleep",), {}, Limits(1.0, None, 1))
        living.add(Sandbox(spec, number, process.pid, NoGroup(), None, 1, [], [], 0.0))
    return living


def get(living: Living, name: str) -> Sandbox:
    found = living.find(name)
    assert found is not None
    return found


def test_no_signal_goes_to_a_pid_that_was_reaped(living: Living, sleepers: list[subprocess.Popen[bytes]]) -> None:
    """It may be another's by then; here it still sleeps, and goes on doing so."""
    first = get(living, "t0")
    assert living.take_reaped(first.pid) is first
    assert living.take_reaped(first.pid) is None
    living.kill(first)
    living.kill_all(FENCE)
    living.kill_unfrozen()
    assert sleepers[1].wait() == -signal.SIGKILL
    assert sleepers[0].poll() is None
    assert living.pids == [sleepers[1].pid]
    living.remove(first)
    assert living.find("t0") is living.find_by_note(0) is None


def test_the_first_reason_counts_and_the_fence_before_all(
    living: Living, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    first, second = get(living, "t0"), get(living, "t1")
    living.terminate(first, TIMEOUT, 1000.0)
    living.terminate(first, STOP, 1000.0)
    assert first.asked_by == TIMEOUT
    living.kill_for_scratch("t1", "too much")
    assert (second.asked_by, second.asked_why) == (SCRATCH, "too much")
    living.kill_unfrozen()
    assert (first.asked_by, second.asked_by) == (FENCE, FENCE)
    assert [process.wait() for process in sleepers] == [-signal.SIGKILL] * 2


async def test_the_grace_period_ends_and_can_only_be_shortened(
    living: Living, timers: Timers, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    living.terminate(get(living, "t0"), STOP, 0.01)
    living.terminate(get(living, "t0"), STOP, 1000.0)

    def is_killed() -> bool:
        timers.run_due()
        return sleepers[0].poll() is not None

    await wait_until(is_killed)
    assert sleepers[0].wait() == -signal.SIGKILL


def test_who_is_gone_has_no_timers(living: Living, timers: Timers, sleepers: list[subprocess.Popen[bytes]]) -> None:
    first = get(living, "t0")
    living.terminate(first, STOP, 0)
    living.terminate(get(living, "t1"), STOP, 1e-9)
    due = get(living, "t1").timers[:]
    for one in (first, get(living, "t1")):
        living.take_reaped(one.pid)
        living.remove(one)
    assert [timer.is_cancelled for timer in due] == [True]
    timers.run_due()
    assert sleepers[1].poll() is None
