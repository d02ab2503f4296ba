"""System calls that a task has no business with: each is refused, and each would have done something.

The tables name every attempt of the attacks with the place in which it is shown to be real. `unfiltered` is a sandbox
without its filter of system calls; `throwaway` and `as_root` are the harness's. What is nowhere real says why.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from isolation.client import SpawnerConfig
from tests.hostile.harness import Hostile, Report, as_root, throwaway
from tests.hostile.weaken import weakened
from tests.isolation_live.conftest import with_limits

pytestmark = [
    pytest.mark.isolation,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the attacks have the numbers of x86_64"),
]

#: What a kernel answers that does not even look: the filter's answers, and those of missing rights.
REFUSALS = frozenset(f"refused {errno.errorcode[n]}" for n in (errno.EPERM, errno.EACCES, errno.ENOSYS))

#: Of `calls`: without the filter an ordinary user, even as the root of his own namespaces, is refused too (or this
#: kernel has no such call). Shown in the guest, as its root.
CALLS_OF_ROOT = frozenset(
    {
        *("swapon", "swapoff", "acct", "syslog", "kexec_load", "kexec_file_load", "init_module", "finit_module"),
        *("delete_module", "iopl", "ioperm"),
    }
)
#: Gone from Linux 6.7 on; refused for the kernels before it.
CALLS_GONE = frozenset({"lookup_dcookie"})
#: Linux 6.15.
CALLS_NEW = frozenset({"open_tree_attr"})

NAMESPACES = ("mnt", "cgroup", "uts", "ipc", "user", "pid", "net")
#: A thread cannot enter the user namespace that it is in (setns(2)), nor a time namespace that it may not set.
NEVER = frozenset({"setns own user", "setns pid 1's user", "setns own time", "setns pid 1's time"})

#: Of `doors`, with where each is real.
DOORS_UNFILTERED = frozenset(
    {
        *("key", "io_uring", "perf", "userfaultfd", "modify_ldt", "i386 call", "i386 program", "quotactl"),
        "personality READ_IMPLIES_EXEC",
    }
)
DOORS_THROWAWAY = frozenset({"raw socket", "raw icmp socket", "link down", "family packet", "family xdp"})
DOORS_OF_ROOT = frozenset({"bpf map", "bpf program", "open by handle", "iopl", "ioperm", "TIOCSTI"})
#: What a socket of a family that is not there, or not for tasks, may answer.
FAMILY_REFUSALS = REFUSALS | {"refused EAFNOSUPPORT", "refused EPROTONOSUPPORT", "refused ESOCKTNOSUPPORT"}


async def unfiltered(config: SpawnerConfig, *attack: str) -> Report:
    """In a sandbox of its own spawner, which installs no filter."""
    beside = replace(config, host_id=f"test-{uuid4()}", scratch_root=config.scratch_root.with_name("unfiltered"))
    async with weakened(beside, "seccomp") as weak:
        return await weak.run(*attack)


def done(report: Report) -> dict[str, str]:
    """All outcomes of an attack that came to its end."""
    assert report.get("done") == "yes", report
    assert not [outcome for outcome in report.said.values() if outcome.startswith("broken")], report.said
    return {name: outcome for name, outcome in report.said.items() if name != "done"}


def reached(report: Report) -> set[str]:
    """The calls that a kernel looked at: it complained of what is wrong with them, or did them."""
    return {name for name, outcome in done(report).items() if outcome not in REFUSALS}


async def test_calls_are_refused_unseen(hostile: Hostile) -> None:
    """Nonsense as arguments is not even looked at."""
    outcomes = done(await hostile.run("calls"))
    assert len(outcomes) > 50
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSALS} == {}


async def test_it_is_the_filter_that_refuses_them(hostile: Hostile, config: SpawnerConfig) -> None:
    calls = set(done(await hostile.run("calls")))
    seen = reached(await unfiltered(config, "calls")) | reached(await throwaway("calls"))
    assert calls - seen <= CALLS_OF_ROOT | CALLS_GONE | CALLS_NEW


async def test_root_has_the_calls_of_root() -> None:
    assert reached(await as_root("calls")) >= CALLS_OF_ROOT


async def test_no_way_out_by_mounts_and_namespaces(hostile: Hostile) -> None:
    report = await hostile.run("namespaces")
    outcomes = done(report)
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSALS} == {}
    # The C library falls back to clone, whose flags a filter can see, on this answer alone.
    assert {o for name, o in outcomes.items() if name.startswith("clone3")} == {"refused ENOSYS"}


async def test_ways_out_by_mounts_and_namespaces_are_real() -> None:
    """Whoever gets a user namespace has every one of them."""
    report = await throwaway("namespaces")
    assert set(done(report)) - report.succeeded <= NEVER


async def test_a_user_namespace_would_be_had_without_the_filter(config: SpawnerConfig) -> None:
    report = await unfiltered(config, "namespaces")
    assert {"unshare user", "clone user", "clone3 user", "clone3 without flags"} <= report.succeeded


async def test_doors_are_shut(hostile: Hostile) -> None:
    outcomes = done(await hostile.run("doors"))
    for name, outcome in outcomes.items():
        if name.startswith("family") or name.endswith("socket"):
            assert outcome in FAMILY_REFUSALS, (name, outcome)
        elif name in ("i386 call", "i386 program"):
            # The number of a call means another one there: the whole table is shut, and who calls it dies.
            assert outcome in {"killed SIGSYS", "refused EPERM", "refused ENOSYS"}, (name, outcome)
        else:
            assert outcome in REFUSALS, (name, outcome)


async def test_doors_are_real(config: SpawnerConfig) -> None:
    report = await unfiltered(config, "doors")
    assert done(report)
    assert report.succeeded >= DOORS_UNFILTERED
    # A socket that talks past every network namespace, where the kernel has it.
    vsock = report.get("family vsock")
    assert vsock.startswith("SUCCEEDED") or not Path("/proc/sys/net/vsock").exists()
    assert (await throwaway("doors")).succeeded >= DOORS_THROWAWAY


async def test_doors_of_root_are_real() -> None:
    report = await as_root("doors")
    assert done(report)
    assert report.succeeded >= DOORS_OF_ROOT


async def test_typing_into_a_terminal_is_real_where_the_kernel_still_has_it(config: SpawnerConfig) -> None:
    legacy = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if legacy.exists() and legacy.read_text().strip() != "1":
        pytest.skip("dev.tty.legacy_tiocsti is off: only root may (shown in the guest)")
    assert "TIOCSTI" in (await unfiltered(config, "doors")).succeeded


async def test_pid_1_can_be_neither_read_nor_steered(hostile: Hostile) -> None:
    outcomes = done(await hostile.run("tracing", "pid-1"))
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSALS} == {}


async def test_pid_1_of_others_can_be_read_and_steered() -> None:
    report = await throwaway("tracing", "pid-1")
    assert report.succeeded == frozenset(done(report))


async def test_ones_own_processes_are_ones_own_to_steer(hostile: Hostile) -> None:
    """What is refused of PID 1 is refused of PID 1 alone."""
    steering = {"priority", "policy", "policy by attributes", "processors", "io priority", "limits", "name"}
    assert (await hostile.run("tracing", "sibling")).succeeded >= steering


async def test_nobody_is_traced(hostile: Hostile, config: SpawnerConfig) -> None:
    """Not by calls, not even one's own children; by files one's own are open, as /proc is made."""
    calls = {"attach", "seize", "read memory", "write memory", "take a descriptor", "compare", "be traced"}
    report = await hostile.run("tracing", "sibling")
    assert {done(report)[name] for name in calls} == {"refused EPERM"}
    assert (await unfiltered(config, "tracing", "sibling")).succeeded >= calls


async def test_pid_1_is_not_put_behind_everybody(hostile: Hostile) -> None:
    """Where it runs only when nobody else wants to, it takes many seconds to die, or to see the deadline."""
    sandbox = await hostile.start("idle_reaper", says="done", limits=with_limits(cpu=1.0))
    assert os.sched_getscheduler(sandbox.started.pid) == os.SCHED_OTHER
    assert len(os.sched_getaffinity(sandbox.started.pid)) == len(os.sched_getaffinity(0))
    sandbox.kill()
    await sandbox.wait()
