"""What is different for an ordinary user, as far as it is data; `tests/isolation_live/test_degraded.py` runs it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import pytest

from isolation import _sandbox as sys_
from isolation import plan, rootless, rootless_view
from isolation.cgroup import Stats
from isolation.cgroup.none import NoParent, at_least, processes_below
from isolation.probe import Host, said
from isolation.rootless import Rootless, UserSteps
from isolation.spec import Limits, SandboxSpec
from isolation.step import Step
from tests.unit.test_isolation_plan import RESOURCES

LIMITS = Limits(1.0, 64 << 20, 10)
NONE: frozenset[str] = frozenset()


@pytest.fixture
def own() -> Iterator[Rootless]:
    proc_fd = os.open("/proc", os.O_RDONLY)
    yield Rootless(uid=1000, gid=100, proc_fd=proc_fd, capabilities=3, counts_processes=True)
    os.close(proc_fd)


def steps(own: Rootless, limits: Limits = LIMITS, *, host: bool = False, in_force: frozenset[str] = NONE) -> UserSteps:
    return own.steps(limits, host_network=host, first_fd=plan.FREE_FD, in_force=in_force)


def whole(own: Rootless, *, host: bool = False) -> list[Step]:
    resources = replace(RESOURCES, network_fd=None, user_steps=steps(own, host=host))
    return plan.steps(SandboxSpec("id-1", ("prog",), {}, LIMITS), resources)


def test_order(own: Rootless) -> None:
    """Ids before any file is made; loopback when no other descriptor is open; nothing that root's privileges need."""
    names = [name for name, _ in groupby(step.name for step in whole(own))]
    assert names[:3] == ["cgroup", "user namespace", "cgroup namespace"]
    assert names[names.index("stdio") :] == ["stdio", "network", "limits", "user", "death signal", "chdir", "seccomp"]
    calls = [step.call[1] for step in whole(own)]
    assert not {sys_.SYS_setgroups, sys_.SYS_setresgid, sys_.SYS_setresuid} & set(calls)
    assert calls.index(sys_.SYS_capset) < calls.index(sys_.SYS_chdir)  # as the user, and not as who may enter anything
    assert "network" not in [step.name for step in whole(own, host=True)]


def test_each_id_is_mapped_to_itself_through_the_lowest_free_descriptor(own: Rootless) -> None:
    free = os.dup(own.proc_fd)
    os.close(free)
    calls = [step.call[1:] for step in steps(own).map_ids]
    assert [call[2] for call in calls[::3]] == [b"self/uid_map", b"self/gid_map"]
    assert [call[1:3] for call in calls[1::3]] == [(free, b"1000 1000 1"), (free, b"100 100 1")]
    assert [call[:2] for call in calls[2::3]] == [(sys_.SYS_close, free)] * 2


def test_every_capability_leaves_the_bounding_set(own: Rootless) -> None:
    *dropped, last = steps(own).drop
    assert [step.call[3] for step in dropped] == [0, 1, 2]
    assert last.call[1] == sys_.SYS_capset


@pytest.mark.parametrize(
    ("limits", "in_force", "bounds", "tmp_bytes"),
    [
        (LIMITS, NONE, {2: 64 << 20, 6: 11}, 64 << 20),  # RLIMIT_DATA; RLIMIT_NPROC, one more for PID 1
        (replace(LIMITS, memory_bytes=None), NONE, {6: 11}, None),
        (LIMITS, frozenset({"memory"}), {6: 11}, None),
        (LIMITS, frozenset({"memory", "pids"}), {}, None),
        (LIMITS, frozenset({"pids"}), {2: 64 << 20}, 64 << 20),
    ],
)
def test_what_groups_enforce_is_not_enforced_twice(
    own: Rootless, limits: Limits, in_force: frozenset[str], bounds: dict[int, int], tmp_bytes: int | None
) -> None:
    made = steps(own, limits, in_force=in_force)
    assert {step.call[3]: step.call[4] for step in made.limits} == {key: [n, n] for key, n in bounds.items()}
    assert made.tmp_bytes == tmp_bytes


def test_processes_are_not_bounded_where_the_kernel_counts_all_of_the_user(own: Rootless) -> None:
    old = replace(own, counts_processes=False)
    assert [step.subject for step in steps(old).limits] == ["memory of a process"]


def test_what_is_said(own: Rootless) -> None:
    bare = Host(NoParent(), ("all of it",), (), is_ordinary=True)
    sentences, limits = said(bare, own)
    assert limits == ("pids",)
    assert [words.split()[0] for words in sentences] == ["a", "cpu", "memory", "disk", "freezing", "exact"]
    sentences, limits = said(bare, replace(own, counts_processes=False))
    assert limits == ()
    assert any(words.startswith("limits on the number of processes") for words in sentences)
    assert said(replace(bare, limits=("memory",)), None) == (("all of it",), ("memory",))


def test_mounts_below_a_directory() -> None:
    lines = ("/", "/sys", "/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/kernel/a\\040b", "/system", "/sys/fs/bpf")
    mountinfo = "\n".join(f"1 2 0:3 / {point} rw - tmpfs tmpfs rw" for point in lines)
    assert rootless_view.mounted_below("/sys", mountinfo) == ["/sys/fs/bpf", "/sys/fs/cgroup", "/sys/kernel/a b"]


def test_a_home_that_is_not_ones_own_is_not_covered() -> None:
    assert rootless_view.homes(2) == []  # bin, whose home holds everybody's programs
    assert rootless_view.homes(4_000_000) == []  # nobody


def test_figures_of_the_kernel_where_a_group_has_none() -> None:
    pid = os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    _, _, used = os.wait4(pid, 0)
    found = at_least(Stats(), used)
    assert found.cpu_s == used.ru_utime + used.ru_stime > 0
    assert found.memory_peak_bytes == used.ru_maxrss * 1024 > 100_000
    counted = Stats(cpu_s=100.0, memory_peak_bytes=5, io_read_bytes=6, io_write_bytes=7, oom_kills=1)
    assert at_least(counted, used) == counted
    assert isinstance(used, resource.struct_rusage)


def test_processes_below_one() -> None:
    program = "import subprocess, sys; subprocess.run(['sh', '-c', 'sleep 60 & echo; wait'])"
    proc_fd = os.open("/proc", os.O_RDONLY)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = processes_below(proc_fd, process.pid)
            assert found[0] == process.pid
            assert len(found) == 3
        finally:
            for pid in processes_below(proc_fd, process.pid):
                os.kill(pid, 9)
            os.close(proc_fd)


def test_every_lack_has_words() -> None:
    assert all(
        "(" in words and words.endswith(")") for words in (*rootless.NOT_ENFORCED, *rootless.WITHOUT_GROUPS.values())
    )
