"""However many processes a task makes, and however they mean to stay: contained, and gone when it ends.

What fills up is shown to be real by the same attack under a limit with more room.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from pathlib import Path

import pytest

from isolation.client import Sandbox, SpawnerConfig
from isolation.spec import Limits
from tests.hostile.harness import Hostile
from tests.hostile.weaken import weakened
from tests.isolation_live.conftest import Runner, with_limits
from tests.isolation_live.test_fencing import boottime, is_frozen
from tests.support.wait import patient, wait_until

pytestmark = pytest.mark.isolation

FEW, MANY = 30, 300
#: Processes that each attack on the end of a task makes.
COUNT = 20
#: For the kernel to be done with a handful of processes, on a machine that has much else to do.
PATIENCE_S = patient(20.0)


def processes_of(sandbox: Sandbox) -> set[int]:
    """Host pids of all that is in its PID namespace, PID 1 included; zombies too."""
    try:
        own = Path(f"/proc/{sandbox.started.pid}/ns/pid").readlink()
    except OSError:
        return set()
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/pid").readlink() == own:
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def roomy(pids: int) -> Limits:
    return with_limits(pids=pids, memory_bytes=1 << 30)


@pytest.mark.parametrize("kind", ["sleepers", "threads", "zombies"])
async def test_too_many_are_refused(hostile: Hostile, kind: str) -> None:
    for limit in (FEW, MANY):
        sandbox, report = await hostile_said(hostile, kind, limit)
        assert report == f"{kind}: refused EAGAIN after {limit - 1}\n"  # and the command itself
        sandbox.kill()
        assert (await sandbox.wait()).ended_by == "stop"


async def hostile_said(hostile: Hostile, kind: str, limit: int) -> tuple[Sandbox, str]:
    """What an attack says that goes on afterwards."""
    sandbox, out, _ = await hostile.runner.launch(hostile.spec("processes", kind, limits=roomy(limit)))
    await wait_until(lambda: os.fstat(out).st_size > 0, 60.0, what=f"{kind} says something")
    return sandbox, os.pread(out, 4096, 0).decode()


async def test_a_fork_bomb_is_contained(hostile: Hostile, runner: Runner) -> None:
    """Neither more than it may have, nor a hindrance to others, nor alive after it was killed."""
    bomb = await hostile.start("processes", "bomb", says="ready", limits=roomy(FEW))
    await wait_until(lambda: len(processes_of(bomb)) >= FEW, what="it has all that it may have")
    forks = "i=0; while [ $i -lt 50 ]; do /bin/true || exit 1; i=$((i+1)); done"
    beside = asyncio.create_task(runner.sh(forks, limits=with_limits(pids=3)))
    while not beside.done():
        assert len(processes_of(bomb)) <= FEW + 1  # and PID 1
        await asyncio.sleep(0)
    assert (await beside).ended.exit_code == 0
    bomb.kill()
    ended = await asyncio.wait_for(bomb.wait(), PATIENCE_S)
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "stop")
    # With room, it is far more than that: it is the limit that held it.
    free = await hostile.start("processes", "bomb", says="ready", limits=roomy(MANY))
    await wait_until(lambda: len(processes_of(free)) > 3 * FEW, what="it passes the first one's limit")
    free.kill()
    await asyncio.wait_for(free.wait(), PATIENCE_S)


async def test_orphans_are_waited_for(hostile: Hostile) -> None:
    """A thousand processes that only PID 1 can wait for, in a sandbox for a few; and such as ask for odd signals."""
    report = await hostile.run("processes", "orphans", limits=roomy(FEW))
    assert report.succeeded == {"orphans"}, report.said
    report = await hostile.run("processes", "odd_ends", limits=roomy(200))
    assert report.get("odd_ends") == "SUCCEEDED 0 left"


async def test_groups_of_others_cannot_be_joined(hostile: Hostile) -> None:
    report = await hostile.run("processes", "groups")
    assert report.said == {
        "setpgid of PID 1": "refused ESRCH",
        "into the group of PID 1": "refused EPERM",
        "into no group": "refused EPERM",
    }


async def test_no_signal_from_inside_ends_or_stops_pid_1(hostile: Hostile) -> None:
    report = await hostile.run("processes", "signals")
    assert report.ended is not None
    assert (report.ended.exit_code, report.ended.ended_by) == (7, "")


async def test_pid_1_cannot_be_hampered(hostile: Hostile) -> None:
    report = await hostile.run("against_pid_1", "exit")
    assert report.exit_code == 5
    assert report.succeeded == {"done"}, report.said


async def test_pid_1_could_be_hampered_without_the_filter(config: SpawnerConfig) -> None:
    """Which knows it by its number."""
    async with weakened(config, "seccomp") as weak:
        report = await weak.run("against_pid_1", "exit")
        assert {"descriptors", "idle", "nice", "one processor"} <= report.succeeded, report.said


async def test_the_second_fence_holds_against_a_busy_task(hostile: Hostile, runner: Runner) -> None:
    """The spawner is stopped; PID 1 has to see the deadline beside forty that want the same processor."""
    sandbox = await hostile.start("against_pid_1", "spin", says="done", limits=roomy(64))
    await wait_until(lambda: len(processes_of(sandbox)) > 40)
    deadline = boottime() + 1.0
    runner.spawner.set_deadline(deadline)
    await asyncio.sleep(0)
    await wait_until(lambda: boottime() > deadline - 0.5)
    os.kill(runner.spawner.pid, signal.SIGSTOP)
    try:
        stat = Path(f"/proc/{sandbox.started.pid}/stat")
        await wait_until(lambda: stat.read_text().split()[2] == "Z", 10, what="its PID 1 has ended it all")
    finally:
        os.kill(runner.spawner.pid, signal.SIGCONT)
    assert (await sandbox.wait()).ended_by == "fence"


#: Kinds of tasks that are hard to end; each says that it is ready.
HARD = ["respawning", "vfork_chain", "siblings", "deaf", "stopped", "continuing", "sleepers"]
#: SIGTERM goes to the command's group. One that waits in the kernel for its child dies of it when that has.
DIE_OF_TERM = {"respawning", "siblings", "sleepers", "continuing", "vfork_chain"}

#: A timeout is a stop with another name, so two of them will do. It must be long enough for the attack to get ready.
TIMEOUT_S = 6.0
WAYS = [(how, kind) for how in ("kill", "grace", "fence", "freeze") for kind in HARD]
WAYS += [("timeout", "deaf"), ("timeout", "sleepers")]


@pytest.mark.parametrize(("how", "kind"), WAYS)
async def test_hard_to_end(hostile: Hostile, runner: Runner, kind: str, how: str) -> None:
    dies_of_term = how in ("grace", "timeout") and kind in DIE_OF_TERM
    grace_s = 60.0 if dies_of_term else 0.2
    fields = {"timeout_s": patient(TIMEOUT_S), "grace_s": grace_s} if how == "timeout" else {}
    limits = roomy(2 * COUNT + 10)
    sandbox = await hostile.start("processes", kind, str(COUNT), says="ready", limits=limits, **fields)
    namespace = processes_of(sandbox)
    if how == "kill":
        sandbox.kill()
    elif how == "grace":
        sandbox.stop(grace_s)
    elif how == "fence":
        runner.spawner.fence()
    elif how == "freeze":
        await frozen_or_killed(runner, sandbox)
    ended = await asyncio.wait_for(sandbox.wait(), PATIENCE_S)
    assert ended.exit_code is None
    assert ended.signal == (signal.SIGTERM if dies_of_term else signal.SIGKILL)
    assert ended.ended_by == {"timeout": "timeout", "fence": "fence", "freeze": "fence"}.get(how, "stop")
    assert processes_of(sandbox) == set()
    assert [pid for pid in namespace if _environment_has(pid, hostile.marker)] == []


async def frozen_or_killed(runner: Runner, sandbox: Sandbox) -> None:
    """At the deadline nothing moves any more; then the lease is lost."""
    runner.spawner.set_deadline(boottime())
    pid = sandbox.started.pid
    await wait_until(lambda: not processes_of(sandbox) or is_frozen(pid), what="frozen, or gone")
    before = _times(sandbox)
    until = boottime() + 0.3
    await wait_until(lambda: boottime() > until)
    assert _times(sandbox) == before
    runner.spawner.fence()


def _times(sandbox: Sandbox) -> dict[int, str]:
    """Of each process, the processor time that it has used (proc(5): fields 14 and 15)."""
    found = {}
    for pid in processes_of(sandbox):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[pid] = f"{fields[11]} {fields[12]}"
    return found


def _environment_has(pid: int, marker: str) -> bool:
    try:
        return marker.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


async def test_two_hundred_are_killed_as_fast_as_the_kernel_can(hostile: Hostile) -> None:
    """Beside a SIGKILL of PID 1 by hand, which leaves all of it to the kernel. 100 ms are meant for a quiet machine."""
    ours, kernels = [], []
    for _ in range(3):
        sandbox = await _two_hundred(hostile)
        began = time.monotonic()
        sandbox.kill()
        await sandbox.wait()
        ours.append(time.monotonic() - began)

        sandbox = await _two_hundred(hostile)
        pidfd = os.pidfd_open(sandbox.started.pid)
        began = time.monotonic()
        os.kill(sandbox.started.pid, signal.SIGKILL)
        select.select([pidfd], [], [], PATIENCE_S)
        kernels.append(time.monotonic() - began)
        os.close(pidfd)
        await sandbox.wait()
    print(f"200 processes killed in {min(ours) * 1000:.1f} ms, by the kernel alone in {min(kernels) * 1000:.1f} ms")
    assert min(ours) < 0.1 + 3 * min(kernels)


async def _two_hundred(hostile: Hostile) -> Sandbox:
    limits = with_limits(pids=MANY, memory_bytes=1 << 30)
    sandbox = await hostile.start("processes", "sleepers", "199", says="ready", limits=limits)
    assert len(processes_of(sandbox)) == 201
    return sandbox
