"""A host that lacks something: it is said, and what can be kept is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from isolation.errors import HostLacks
from isolation.probe import probe

pytestmark = pytest.mark.isolation

WITHOUT_CGROUPS = """
import asyncio, os, sys, time
from pathlib import Path
from isolation.client import Spawner, SpawnerConfig
from isolation.errors import SandboxFailed
from isolation.spec import Limits, SandboxSpec

async def main():
    spawner = await Spawner.start(SpawnerConfig(host_id=sys.argv[1], scratch_root=Path(sys.argv[2])))
    print(spawner.report.cgroup_version, *spawner.report.not_enforced)
    null = os.open("/dev/null", os.O_RDWR)

    async def launch(name, *argv):
        spec = SandboxSpec(name, argv, {"PATH": "/usr/bin:/bin"}, Limits(1.0, None, 20))
        return await spawner.launch(spec, stdin=null, stdout=null, stderr=null)

    print((await (await launch("a", "sh", "-c", "exit 3")).wait()).exit_code)
    sleeper = await launch("b", "sleep", "60")
    spawner.set_deadline(time.clock_gettime(time.CLOCK_BOOTTIME))
    print((await sleeper.wait()).ended_by)
    await spawner.close()

asyncio.run(main())
"""


def test_without_cgroups_tasks_run_and_die_at_the_deadline(config: SpawnerConfig) -> None:
    """In a mount namespace of the test's own, in which the groups are covered."""
    script = 'mount -t tmpfs cover /sys/fs/cgroup && exec "$@"'
    program = [sys.executable, "-c", WITHOUT_CGROUPS, config.host_id, str(config.scratch_root)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    report, code, ended_by = done.stdout.splitlines()
    assert report.startswith("0 cpu, memory, process and disk io limits")
    assert (code, ended_by) == ("3", "fence"), done.stderr


def test_an_ordinary_user_is_told(config: SpawnerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostLacks, match="root"):
        probe(config)


def test_an_old_kernel_is_told(config: SpawnerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        release = "5.4.0-100-generic"

    monkeypatch.setattr(os, "uname", Old)
    with pytest.raises(HostLacks, match=r"5\.4\.0.*5\.12"):
        probe(config)
