"""Timeouts, stopping and killing: who ended it is told truly, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from isolation.errors import ProtocolError
from tests.isolation_live.conftest import Runner, with_limits
from tests.support.wait import patient, wait_until

pytestmark = pytest.mark.isolation

IGNORES_TERM = "trap '' TERM; echo ready; while :; do sleep 1; done"


async def test_timeout_sends_term_first(runner: Runner) -> None:
    result = await runner.sh("trap 'echo bye; exit 7' TERM; echo on; sleep 60", timeout_s=0.3)
    assert result.stdout == "on\nbye\n"
    assert (result.ended.exit_code, result.ended.ended_by) == (7, "timeout")
    assert 0.25 < result.ended.usage.wall_s < patient(20)


async def test_timeout_kills_after_the_grace(runner: Runner) -> None:
    ended = (await runner.sh(IGNORES_TERM, timeout_s=0.2, grace_s=0.2)).ended
    assert (ended.exit_code, ended.signal, ended.ended_by) == (None, signal.SIGKILL, "timeout")


async def test_timeout_of_zero_grace_kills(runner: Runner) -> None:
    ended = (await runner.run("sleep", "60", timeout_s=0.1, grace_s=0.0)).ended
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "timeout")


async def test_a_timeout_that_is_not_reached(runner: Runner) -> None:
    assert (await runner.run("/bin/true", timeout_s=60.0)).ended.ended_by == ""


async def test_stop(runner: Runner) -> None:
    sandbox = await runner.start("sleep", "60")
    sandbox.stop(30)
    ended = await sandbox.wait()
    assert (ended.signal, ended.ended_by) == (signal.SIGTERM, "stop")
    sandbox.stop(1)  # quiet once it has ended


async def test_stop_with_term_ignored(runner: Runner) -> None:
    sandbox = await runner.start("sh", "-c", IGNORES_TERM, says="ready")
    sandbox.stop(0.2)
    ended = await sandbox.wait()
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "stop")


async def test_a_second_stop_shortens_the_grace(runner: Runner) -> None:
    sandbox = await runner.start("sh", "-c", IGNORES_TERM, says="ready")
    sandbox.stop(1000)
    sandbox.kill()
    assert (await sandbox.wait()).signal == signal.SIGKILL


async def test_a_command_that_ended_before_the_signal_has_ended_by_itself(runner: Runner) -> None:
    sandbox = await runner.start("sh", "-c", "echo on; sleep 0.3; exit 5", says="on")
    pid = sandbox.started.pid
    # PID 1 is held until both have happened: the command is dead, and then the signal has come.
    os.kill(pid, signal.SIGSTOP)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    await wait_until(lambda: "Z (zombie)" in Path(f"/proc/{children.read_text().split()[0]}/status").read_text())
    sandbox.stop(60)
    await runner.run("/bin/true")  # when it has ended, the request before it was done
    os.kill(pid, signal.SIGCONT)
    ended = await sandbox.wait()
    assert (ended.exit_code, ended.ended_by) == (5, "")


async def test_stopping_in_the_very_moment_of_the_end(runner: Runner) -> None:
    for _ in range(30):
        sandbox, _, _ = await runner.launch(runner.spec("sh", "-c", "exit 5"))
        sandbox.stop(60)
        ended = await sandbox.wait()
        # Either came first; what cannot be is a death of the signal that nobody is said to have sent.
        assert (ended.exit_code, ended.signal) in ((5, None), (None, signal.SIGTERM))
        assert ended.ended_by == "stop" or ended.exit_code == 5


async def test_a_signal_from_inside_to_pid_1_is_no_stop(runner: Runner) -> None:
    ended = (await runner.sh("kill -TERM 1; sleep 0.2; exit 4")).ended
    assert (ended.exit_code, ended.ended_by) == (4, "")


async def test_daemons_end_with_the_command(runner: Runner) -> None:
    marker = "86413.7"
    script = f"setsid sh -c '(sleep {marker} &) &' ; (trap '' TERM HUP; sleep {marker}) & sleep 0.2; exit 0"
    ended = (await runner.sh(script)).ended
    assert (ended.exit_code, ended.ended_by) == (0, "")
    assert _processes_with(marker) == []  # at the moment of the report, not later


async def test_two_hundred_processes_are_killed(runner: Runner) -> None:
    marker = "86414.2"
    script = f"for i in $(seq 200); do sleep {marker} & done; echo all; wait"
    sandbox = await runner.start("sh", "-c", script, says="all", limits=with_limits(pids=300))
    await wait_until(lambda: len(_processes_with(marker)) == 200)
    began = time.monotonic()
    sandbox.kill()
    ended = await sandbox.wait()
    assert time.monotonic() - began < patient(10)
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "stop")
    assert _processes_with(marker) == []


async def test_waiting_may_be_given_up_and_repeated(runner: Runner) -> None:
    sandbox = await runner.start("sleep", "60")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await sandbox.wait()
    sandbox.kill()
    assert await sandbox.wait() == await sandbox.wait()


async def test_a_launch_that_nobody_waits_for_is_killed(runner: Runner) -> None:
    marker = "86415.9"
    spec = runner.spec("sleep", marker)
    waiting = asyncio.create_task(runner.launch(spec))
    await asyncio.sleep(0)  # it has sent its request by then
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await wait_until(lambda: runner.spawner.running_count == 0 and _processes_with(marker) == [])


async def test_an_id_cannot_be_used_twice_at_once(runner: Runner) -> None:
    sandbox = await runner.start("sleep", "60", id="twin")
    with pytest.raises(ProtocolError, match="twin"):
        await runner.run("/bin/true", id="twin")
    sandbox.kill()
    await sandbox.wait()
    assert (await runner.run("/bin/true", id="twin")).ended.exit_code == 0


async def test_many_at_once(runner: Runner) -> None:
    results = await asyncio.gather(*(runner.sh(f"echo {i}; exit {i}") for i in range(100)))
    assert [r.ended.exit_code for r in results] == list(range(100))
    assert [r.stdout for r in results] == [f"{i}\n" for i in range(100)]


def _processes_with(argument: str) -> list[str]:
    """Processes of the host that have this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
