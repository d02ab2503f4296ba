"""What is outside of a task: other processes, control groups, the kernel's own files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.hostile.harness import Hostile, throwaway

pytestmark = pytest.mark.isolation


@pytest.fixture
def others(hostile: Hostile) -> Iterator[list[str]]:
    """Pids of the machine: its first, the test's own, the spawner's, and one of the kind that a task could signal
    elsewhere (of an ordinary user)."""
    command = ["setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups", "sleep", "100"]
    with subprocess.Popen(command) as ordinary:
        yield ["1", "2", str(os.getpid()), str(os.getppid()), str(hostile.runner.spawner.pid), str(ordinary.pid)]
        assert ordinary.poll() is None
        ordinary.kill()


async def test_signals_to_anything_outside(hostile: Hostile, others: list[str]) -> None:
    """No number of the machine's means anything in a task: each is nobody, or one of its own few."""
    report = await hostile.run("outside", "signals", *others[2:])
    assert set(report.said.values()) <= {"refused ESRCH", "refused EPERM"}, report.said


async def test_signals_to_pid_1(hostile: Hostile) -> None:
    """It is in the same namespace and has the same user, so that it may be signalled; nothing comes of it, as with any
    PID 1 (pid_namespaces(7))."""
    report = await hostile.run("outside", "everyone")
    assert report.exit_code == 0
    assert set(report.get("in sight").split()) == {"1", "2"}


async def test_that_signals_are_sent_where_they_may() -> None:
    report = await throwaway("outside", "signals", "1")
    assert {"kill 1", "tgkill 1", "pidfd_open 1", "F_SETOWN 1"} <= report.succeeded, report.said


async def test_priorities_of_others(hostile: Hostile, others: list[str]) -> None:
    report = await hostile.run("outside", "priorities", *others[2:])
    assert report.succeeded <= {"nice user"}, report.said  # the task's own user, who has nothing but the task
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == os.getpriority(os.PRIO_PROCESS, 0)


async def test_that_priorities_are_set_where_they_may() -> None:
    report = await throwaway("outside", "priorities", "1")
    assert {"nice 1", "affinity 1", "scheduler 1", "limits 1"} <= report.succeeded, report.said


async def test_proc_of_others(hostile: Hostile, others: list[str]) -> None:
    report = await hostile.run("outside", "proc", *others[2:])
    assert report.succeeded == frozenset()
    assert set(report.get("in sight").split()) == {"1", "2"}


async def test_the_kernels_settings(hostile: Hostile) -> None:
    """Not one file of /proc and /sys that means something beyond the task can be opened for writing."""
    report = await hostile.run("outside", "settings")
    assert report.succeeded <= {"own timer slack"}, {name: report.said[name] for name in report.succeeded}
    reached = {name for name, outcome in report.said.items() if outcome in ("refused EACCES", "refused EROFS")}
    assert {"/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"} <= reached


async def test_that_settings_of_namespaces_are_written_where_they_may() -> None:
    """What belongs to a namespace is its root's; the machine's own settings are refused to him too."""
    report = await throwaway("outside", "settings")
    assert {"/proc/sys/net/ipv4/ip_forward", "next pid"} <= report.succeeded, report.said
    assert "/proc/sys/kernel/core_pattern" not in report.succeeded


async def test_control_groups(hostile: Hostile) -> None:
    report = await hostile.run("outside", "cgroups")
    assert report.succeeded == frozenset(), report.said
    assert set(report.get("own group").split()) == {"/"}


async def test_that_control_groups_are_mounted_where_they_may() -> None:
    report = await throwaway("outside", "cgroups")
    assert {name for name in report.succeeded if name.startswith(("mount cgroup", "own namespace"))}, report.said


#: Read by everybody on every Linux, and about the machine as a whole or about the task's own namespaces.
_TOLD = {
    *("/proc/interrupts", "/proc/diskstats", "/proc/mdstat", "/proc/cmdline", "/proc/sysvipc/shm", "/proc/modules"),
    *("/proc/net/unix", "/proc/net/tcp", "/proc/net/arp", "/proc/net/route", "/proc/mounts", "/proc/self/mountinfo"),
    *("/proc/config.gz", "/proc/iomem", "/proc/ioports", "/sys/kernel/notes", "/sys/kernel/vmcoreinfo"),
    *("/sys/kernel/btf/vmlinux", "/proc/key-users", "/sys/kernel/slab"),
}


async def test_what_the_kernel_tells(hostile: Hostile) -> None:
    report = await hostile.run("outside", "reading")
    assert report.succeeded <= _TOLD, {name: report.said[name] for name in report.succeeded - _TOLD}
    assert report.get("kernel's log") in ("refused EPERM", "refused ENOSYS")


async def test_that_the_kernel_tells_what_everybody_may_read() -> None:
    """The same attempts without our masks: what anybody may read is read. That root would read the rest cannot be shown
    here, since no attack runs as root; which files are masked for everybody depends on the kernel that is built."""
    report = await throwaway("outside", "reading")
    assert {"/proc/interrupts", "/proc/cmdline", "/proc/mounts"} <= report.succeeded, report.said


async def test_deaths_and_urgent_data(hostile: Hostile) -> None:
    """They reach nobody outside: the task ends with its own exit code, and its neighbour goes on."""
    other = await hostile.runner.start("sh", "-c", "echo there; sleep 100", says="there")
    report = await hostile.run("outside", "deaths")
    assert report.exit_code == 0
    assert len(report.said) == 3
    other.stop(0)
    assert (await other.wait()).ended_by == "stop"
