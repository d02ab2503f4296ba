"""Limits hold, from the first instruction on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.isolation_live.conftest import Runner, with_limits
from tests.support.require import require

pytestmark = pytest.mark.isolation

#: Forks until it is refused or has forked 40 children (bounded, whatever the limit does), and prints how many.
FORKS = """
import os, sys, time
n = 0
try:
    while n < 40:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        n += 1
except OSError as e:
    print(n, e.strerror)
else:
    print(n)
sys.stdout.flush()
os._exit(0)
"""


async def test_pids(runner: Runner) -> None:
    result = await runner.run("/usr/bin/python3", "-c", FORKS, limits=with_limits(pids=10))
    assert result.stdout == "9 Resource temporarily unavailable\n"  # and the command itself
    assert (await runner.run("/usr/bin/python3", "-c", FORKS)).stdout == "40\n"


async def test_one_pid_is_enough_for_a_command(runner: Runner) -> None:
    assert (await runner.run("/bin/true", limits=with_limits(pids=1))).ended.exit_code == 0


@pytest.mark.usefixtures("groups")
async def test_cpu_quota(runner: Runner) -> None:
    """What it does to a task is in tests/hostile/test_cpu_io.py: here, that it is this sandbox's alone."""
    code = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    usage = (await runner.run("/usr/bin/python3", "-c", code, limits=with_limits(cpu=0.25))).ended.usage
    assert usage.cpu_s < 0.35 * usage.wall_s
    # The group is used again with another one.
    sandbox = await runner.start("sleep", "60", limits=with_limits(cpu=1.5))
    assert quota_of(sandbox.started.pid) == 1.5
    sandbox.kill()
    await sandbox.wait()


def quota_of(pid: int) -> float:
    """Of the group of a process: processors."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if "cpu" in names.split(","):
            group = Path(f"/sys/fs/cgroup/cpu{path}")
            return int((group / "cpu.cfs_quota_us").read_text()) / int((group / "cpu.cfs_period_us").read_text())
        if names == "" and (most := Path(f"/sys/fs/cgroup{path}/cpu.max")).exists():
            quota, period = most.read_text().split()
            return int(quota) / int(period)
    raise AssertionError("it is in no group that has a quota")


async def test_descriptors_are_bounded(runner: Runner) -> None:
    assert (await runner.sh("ulimit -n; ulimit -c")).stdout.split() == ["1024", "0"]


async def test_memory_none_is_unlimited(runner: Runner) -> None:
    code = "b = bytearray(300 << 20); print(len(b))"
    result = await runner.run("/usr/bin/python3", "-c", code, limits=with_limits(memory_bytes=None))
    assert result.stdout == f"{300 << 20}\n"


async def test_disk_io(runner: Runner) -> None:
    lacking = [words for words in runner.spawner.report.not_enforced if "disk io" in words]
    require("isolation", is_there=not lacking, reason="; ".join(lacking))
    script = "dd if=/dev/zero of=x bs=1M count=4 oflag=direct 2>/dev/null"
    free = (await runner.sh(script)).ended.usage
    assert free.io_write_bytes >= 4 << 20
    held = (await runner.sh(script, limits=with_limits(io_write_bytes_per_s=2 << 20))).ended.usage
    assert held.wall_s > 1.2  # 2 s, of which the kernel lets the first slice pass
    # The next one in the same group is not held.
    assert (await runner.sh(script)).ended.usage.wall_s < held.wall_s
