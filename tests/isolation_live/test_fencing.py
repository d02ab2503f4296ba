"""The deadline freezes, a later one thaws, a lost lease kills; nothing starts at or after the deadline."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from isolation.errors import SandboxFailed
from isolation.spec import Ended
from tests.isolation_live.conftest import Runner, text
from tests.support.wait import patient, wait_until

pytestmark = pytest.mark.isolation

COUNTS = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_frozen(pid: int) -> bool:
    """Whether the group of a process is frozen."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    for line in lines:
        _, names, path = line.split(":", 2)
        if names == "freezer":
            return Path(f"/sys/fs/cgroup/freezer{path}/freezer.state").read_text().strip() == "FROZEN"
        if names == "" and (events := Path(f"/sys/fs/cgroup{path}/cgroup.events")).exists():
            return "frozen 1" in events.read_text()
    return False


@pytest.mark.usefixtures("freezer")
async def test_freeze_thaw_and_go_on(runner: Runner) -> None:
    sandbox, out, _ = await runner.launch(runner.spec("sh", "-c", COUNTS))
    await wait_until(lambda: "3" in text(out))
    runner.spawner.set_deadline(boottime() + 0.2)
    await wait_until(lambda: is_frozen(sandbox.started.pid))
    frozen_at = text(out)
    runner.spawner.set_deadline(boottime() + 60)
    await wait_until(lambda: len(text(out)) > len(frozen_at) + 20)
    assert text(out).startswith(frozen_at)
    assert (await runner.run("/bin/true")).ended.exit_code == 0
    sandbox.kill()
    assert (await sandbox.wait()).ended_by == "stop"


@pytest.mark.usefixtures("freezer")
async def test_no_progress_while_frozen(runner: Runner) -> None:
    sandbox, out, _ = await runner.launch(runner.spec("sh", "-c", COUNTS))
    await wait_until(lambda: "3" in text(out))
    runner.spawner.set_deadline(boottime())
    await wait_until(lambda: is_frozen(sandbox.started.pid))
    before = text(out)
    until = boottime() + 0.3
    await wait_until(lambda: boottime() > until)
    assert text(out) == before
    runner.spawner.fence()
    ended = await sandbox.wait()
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "fence")
    assert text(out) == before  # it died before its next instruction


async def test_nothing_starts_after_the_deadline(runner: Runner) -> None:
    runner.spawner.set_deadline(boottime() - 1)
    with pytest.raises(SandboxFailed) as failed:
        await runner.run("/bin/true")
    assert failed.value.report.step == "fence"
    runner.spawner.set_deadline(boottime() + 60)
    assert (await runner.run("/bin/true")).ended.exit_code == 0


async def test_fence_kills_all_and_starts_nothing(runner: Runner) -> None:
    sandboxes = [await runner.start("sh", "-c", "trap '' TERM; sleep 60 & sleep 60") for _ in range(5)]
    runner.spawner.fence()
    ends: list[Ended] = [await sandbox.wait() for sandbox in sandboxes]
    assert {(end.signal, end.ended_by) for end in ends} == {(signal.SIGKILL, "fence")}
    with pytest.raises(SandboxFailed) as failed:
        await runner.run("/bin/true")
    assert failed.value.report.step == "fence"
    runner.spawner.set_deadline(boottime() + 60)
    assert (await runner.run("/bin/true")).ended.exit_code == 0


@pytest.mark.usefixtures("freezer")
async def test_stop_of_a_frozen_one_takes_effect_without_a_further_step(runner: Runner) -> None:
    sandbox, out, _ = await runner.launch(runner.spec("sh", "-c", COUNTS))
    await wait_until(lambda: "3" in text(out))
    runner.spawner.set_deadline(boottime())
    await wait_until(lambda: is_frozen(sandbox.started.pid))
    before = text(out)
    sandbox.kill()
    runner.spawner.set_deadline(boottime() + 60)
    assert (await sandbox.wait()).ended_by == "stop"
    assert text(out) == before


async def test_a_stopped_spawner_does_not_stop_the_fence(runner: Runner) -> None:
    """The second fence: PID 1 of each sandbox reads the deadline itself."""
    sandbox = await runner.start("sleep", "60")
    runner.spawner.set_deadline(boottime() + max(2, patient(0.5)))
    await runner.run("/bin/true")  # when it has ended, the deadline has been read
    pid = sandbox.started.pid
    os.kill(runner.spawner.pid, signal.SIGSTOP)
    try:
        await wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", 10)
    finally:
        os.kill(runner.spawner.pid, signal.SIGCONT)
    ended = await sandbox.wait()
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "fence")


async def test_deadline_from_another_thread(runner: Runner) -> None:
    import threading

    thread = threading.Thread(target=runner.spawner.set_deadline, args=(boottime() - 1,))
    thread.start()
    thread.join()
    with pytest.raises(SandboxFailed):
        await runner.run("/bin/true")
