"""Version 2 of control groups: what the spawner makes of it, and where its groups lie. In the guest of `make test-v2`,
or wherever else there is version 2.

The other tests of this directory hold on both versions. What differs:

* out of memory ends the task as a whole (memory.oom.group), where version 1 kills one process;
* a frozen sandbox dies of SIGKILL at once, where version 1 needs a thaw;
* writes that were only buffered are held to the io limit too, when the kernel writes them out: memory and io of one
  group know of each other here.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from isolation import client
from isolation.cgroup.v2 import CONTROLLERS
from isolation.client import SpawnerConfig
from tests.isolation_live.conftest import Runner, running, text, with_limits
from tests.isolation_live.test_ending import _processes_with
from tests.isolation_live.test_fencing import COUNTS, boottime, is_frozen
from tests.isolation_live.test_outcomes import HOG, PYTHON
from tests.support.guest import require_v2
from tests.support.leaks import cgroups_of
from tests.support.wait import patient, wait_until, wait_until_sync

pytestmark = pytest.mark.isolation

TOP = Path("/sys/fs/cgroup")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _v2() -> None:
    require_v2()


def group_of(pid: int) -> Path:
    """The directory of the group that a process is in."""
    return TOP / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


# ---- limits, as the kernel has them -------------------------------------------------------------------------------


async def test_limits_are_in_the_kernels_files(runner: Runner) -> None:
    limits = with_limits(cpu=0.5, memory_bytes=64 * MIB, pids=20, io_read_bytes_per_s=MIB, io_write_bytes_per_s=2 * MIB)
    sandbox = await runner.start("sleep", "600", limits=limits)
    group = group_of(sandbox.started.pid)
    assert (group / "cpu.max").read_text().split() == ["50000", "100000"]
    assert int((group / "memory.max").read_text()) == 64 * MIB
    assert (group / "memory.oom.group").read_text() == "1\n"
    assert (group / "pids.max").read_text() == "21\n"
    swap = group / "memory.swap.max"
    assert not swap.exists() or swap.read_text() == "0\n"
    (line,) = (group / "io.max").read_text().splitlines()
    assert {f"rbps={MIB}", f"wbps={2 * MIB}"} <= set(line.split())
    sandbox.kill()
    await sandbox.wait()


async def test_every_process_of_a_sandbox_is_in_its_group_from_the_first_on(
    runner: Runner, config: SpawnerConfig
) -> None:
    """Cloned into it, so that PID 1 is there too: nothing of ours writes to cgroup.procs."""
    sandbox = await runner.start("sh", "-c", "sleep 600 & sleep 600 & echo on; wait", says="on")
    group = group_of(sandbox.started.pid)
    pids = set(map(int, (group / "cgroup.procs").read_text().split()))
    assert sandbox.started.pid in pids
    assert len(pids) == 4
    assert group.name == f"s-{sandbox.id}"
    assert group.parent.name == config.host_id
    # The spawner's own are elsewhere: a group with children that have controllers holds no process.
    assert (group.parent / "cgroup.procs").read_text() == ""
    sandbox.kill()
    await sandbox.wait()


async def test_out_of_memory_is_the_end_of_the_whole_task(runner: Runner) -> None:
    marker = "86421.3"
    script = f"sleep {marker} & {PYTHON} -c '{HOG}' 200; exit 3"
    ended = (await runner.sh(script, limits=with_limits(memory_bytes=64 * MIB))).ended
    assert (ended.exit_code, ended.signal, ended.out_of_memory) == (None, signal.SIGKILL, True)
    assert ended.usage.memory_peak_bytes <= 64 * MIB
    assert _processes_with(marker) == []


async def test_buffered_writes_are_held_too(runner: Runner) -> None:
    script = "dd if=/dev/zero of=x bs=1M count=6 conv=fsync 2>/dev/null"
    held = (await runner.sh(script, limits=with_limits(io_write_bytes_per_s=2 * MIB))).ended.usage
    assert held.wall_s > 2  # 3 s, of which the kernel lets the first slice pass
    assert held.io_write_bytes >= 6 * MIB


async def test_reading_is_held_by_a_limit_of_its_own(runner: Runner) -> None:
    script = "dd if=/dev/zero of=x bs=1M count=4 oflag=direct && dd if=x of=/dev/null bs=1M iflag=direct"
    held = (await runner.sh(script, limits=with_limits(io_read_bytes_per_s=2 * MIB))).ended.usage
    assert held.wall_s > 1.2
    assert held.io_read_bytes >= 4 * MIB


# ---- freezing and killing ------------------------------------------------------------------------------------------


async def test_a_frozen_sandbox_dies_without_a_thaw(runner: Runner) -> None:
    sandbox, out, _ = await runner.launch(runner.spec("sh", "-c", COUNTS))
    await wait_until(lambda: "3" in text(out))
    parent = group_of(sandbox.started.pid).parent
    runner.spawner.set_deadline(boottime())
    await wait_until(lambda: is_frozen(sandbox.started.pid))
    assert (parent / "cgroup.freeze").read_text() == "1\n"
    before = text(out)
    sandbox.kill()
    ended = await sandbox.wait()
    assert (ended.signal, ended.ended_by) == (signal.SIGKILL, "stop")
    assert (parent / "cgroup.freeze").read_text() == "1\n"
    assert text(out) == before
    runner.spawner.set_deadline(boottime() + 600)
    await wait_until(lambda: (parent / "cgroup.freeze").read_text() == "0\n")


async def test_a_storm_of_forks_ends_with_its_group(runner: Runner) -> None:
    """Signals pid by pid would miss what is forked between the look and the signal; bounded by pids.max."""
    marker = "86422.8"
    storm = f"sleep {marker} & while :; do (sleep 0.01 &) ; done"
    sandbox = await runner.start("sh", "-c", f"echo on; {storm}", says="on", limits=with_limits(pids=50))
    await wait_until(lambda: _processes_with(marker) != [])
    runner.spawner.fence()
    assert (await sandbox.wait()).ended_by == "fence"
    assert _processes_with(marker) == []


# ---- where the groups lie ------------------------------------------------------------------------------------------

#: A spawner with one sandbox: its version, where the sandbox's group is, and what is not enforced.
SPAWNER = """
import asyncio, os, sys
from pathlib import Path
from isolation import client
from isolation.client import Spawner, SpawnerConfig
from isolation.spec import Limits, SandboxSpec

async def main():
    client.START_LIMIT_S = float(sys.argv[3])
    spawner = await Spawner.start(SpawnerConfig(host_id=sys.argv[1], scratch_root=Path(sys.argv[2])))
    null = os.open("/dev/null", os.O_RDWR)
    spec = SandboxSpec("t", ("sleep", "600"), {"PATH": "/usr/bin:/bin"}, Limits(1.0, None, 20))
    sandbox = await spawner.launch(spec, stdin=null, stdout=null, stderr=null)
    print(spawner.report.cgroup_version)
    print(Path(f"/proc/{sandbox.started.pid}/cgroup").read_text().strip())
    print("; ".join(spawner.report.not_enforced))
    await spawner.close()

asyncio.run(main())
"""


def started_in(group: Path, config: SpawnerConfig, *before: str) -> tuple[int, Path, str]:
    """What a spawner says that is started by a process in this group, which is alone there. `before`: a command that
    runs it."""
    script = f'echo $$ >{group}/cgroup.procs && exec "$@"'
    program = [sys.executable, "-c", SPAWNER, config.host_id, str(config.scratch_root), str(client.START_LIMIT_S)]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *before, *program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, path, missing = done.stdout.splitlines()
    assert cgroups_of(config.host_id) == []
    return int(version), TOP / path.removeprefix("0::/"), missing


@pytest.fixture
def tree() -> Iterator[Path]:
    """A group of the test's own, removed with all below."""
    top = TOP / f"pilfer-test-{uuid.uuid4()}"
    top.mkdir()
    try:
        yield top
    finally:
        for directory in [*sorted((d for d in top.rglob("*") if d.is_dir()), reverse=True), top]:
            wait_until_sync(partial(_is_removed, directory), what=f"{directory} removed")


def _is_removed(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


def enable(group: Path, controllers: Sequence[str]) -> None:
    (group / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in controllers))


def test_started_in_the_root(config: SpawnerConfig) -> None:
    """The one group that may have processes and hand controllers down."""
    version, group, missing = started_in(TOP, config)
    assert (version, missing) == (2, "")
    assert group == TOP / "pilfer" / config.host_id / "s-t"


def test_started_in_a_group_that_holds_it(config: SpawnerConfig, tree: Path) -> None:
    """A group with processes hands nothing down: ours lie in the nearest one above that can, beside the node's."""
    (tree / "service").mkdir()
    version, group, missing = started_in(tree / "service", config)
    assert (version, missing) == (2, "")
    assert group == tree / "pilfer" / config.host_id / "s-t"


def test_started_in_a_subtree_that_was_handed_over(config: SpawnerConfig, tree: Path) -> None:
    """As a service manager does it: controllers enabled down to the service, the node in a group below."""
    enable(TOP, CONTROLLERS)
    service = tree / "service"
    (service / "node").mkdir(parents=True)
    enable(tree, CONTROLLERS)
    version, group, missing = started_in(service / "node", config)
    assert (version, missing) == (2, "")
    assert group == service / "pilfer" / config.host_id / "s-t"


def test_controllers_that_are_missing_are_said(config: SpawnerConfig, tree: Path) -> None:
    enable(TOP, CONTROLLERS)
    service = tree / "service"
    (service / "node").mkdir(parents=True)
    enable(tree, ("memory", "pids"))
    version, group, missing = started_in(service / "node", config)
    assert version == 2
    assert group.is_relative_to(service)
    assert "cpu limits" in missing
    assert "disk io limits" in missing
    assert "memory" not in missing


def test_a_subtree_without_memory_is_left_for_one_above(config: SpawnerConfig, tree: Path) -> None:
    """Limits that are not enforced would be worse than groups at a place further up."""
    enable(TOP, CONTROLLERS)
    service = tree / "service"
    (service / "node").mkdir(parents=True)
    enable(tree, ("cpu", "pids"))
    version, group, missing = started_in(service / "node", config)
    assert (version, missing) == (2, "")
    assert group == tree / "pilfer" / config.host_id / "s-t"


def test_started_as_a_machine_of_its_own(config: SpawnerConfig, tree: Path) -> None:
    """As container engines do it: all that is seen of the groups is the own one, and the node is in it. Nothing can be
    handed down then, and the words say what to do."""
    enable(TOP, CONTROLLERS)
    (tree / "service").mkdir()
    enable(tree, CONTROLLERS)
    cover = 'umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    before = ("unshare", "--cgroup", "--mount", "--propagation", "private", "sh", "-c", cover, "sh")
    version, _, missing = started_in(tree / "service", config, *before)
    assert version == 0
    assert "memory" in missing
    assert "holds processes; start it in one of its own" in missing


async def test_out_of_memory_of_all_together_is_the_end_of_whole_tasks(config: SpawnerConfig) -> None:
    """Also of one without a limit of its own."""
    async for runner in running(replace(config, memory_bytes=96 * MIB)):
        script = f"{PYTHON} -c '{HOG}' 300; exit 3"
        ended = (await runner.sh(script, limits=with_limits(memory_bytes=None))).ended
        assert (ended.exit_code, ended.signal, ended.out_of_memory) == (None, signal.SIGKILL, True)
