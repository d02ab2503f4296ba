"""Control groups of both versions, on directories of plain files."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolation.cgroup import Group, Parent, files, find
from isolation.cgroup.v1 import CONTROLLERS, UNLIMITED, V1Group, V1Parent
from isolation.cgroup.v2 import V2Group, V2Parent
from isolation.errors import StepFailed
from isolation.spec import Limits

LIMITS = Limits(cpu=0.5, memory_bytes=1 << 20, pids=7)

V1_FILES = {
    "freezer": {"freezer.state": "THAWED\n"},
    "memory": {
        "memory.limit_in_bytes": "",
        "memory.memsw.limit_in_bytes": "",
        "memory.kmem.tcp.limit_in_bytes": "",
        "memory.max_usage_in_bytes": "0\n",
        "memory.usage_in_bytes": "0\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    },
    "pids": {"pids.max": ""},
    "cpu": {"cpu.cfs_quota_us": ""},
    "cpuacct": {"cpuacct.usage": "0\n"},
    "blkio": {
        "blkio.throttle.io_service_bytes": "Total 0\n",
        "blkio.throttle.read_bps_device": "",
        "blkio.throttle.write_bps_device": "",
    },
}
V2_FILES = {
    "cgroup.procs": "",
    "cgroup.freeze": "0\n",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cpu.max": "",
    "cpu.stat": "usage_usec 0\n",
    "memory.max": "",
    "memory.swap.max": "",
    "memory.oom.group": "",
    "memory.peak": "0\n",
    "memory.events": "oom 0\noom_kill 0\n",
    "pids.max": "",
    "io.max": "",
    "io.stat": "",
}


@pytest.fixture
def v1_own(tmp_path: Path) -> dict[str, Path]:
    """Our own group in each hierarchy, as mkdir in the kernel would find it."""
    own = {controller: tmp_path / controller for controller in CONTROLLERS}
    for path in own.values():
        path.mkdir()
    return own


def v1_parent(own: dict[str, Path], *groups: str) -> V1Parent:
    """A parent in which these groups are there already, with the files that a kernel would have made."""
    for controller, path in own.items():
        for group in ("", *groups):
            directory = path / "pilfer" / "host" / group
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "tasks").write_text("")
            (directory / "cgroup.procs").write_text("")
            for name, content in V1_FILES[controller].items():
                (directory / name).write_text(content)
    return V1Parent(own, "host", io_devices=["8:0"])


def v1_read(own: dict[str, Path], controller: str, file: str, group: str = "s1") -> str:
    return (own[controller] / "pilfer" / "host" / group / file).read_text()


def test_v1_limits_are_written_in_the_kernels_words(v1_own: dict[str, Path]) -> None:
    group = v1_parent(v1_own, "s1").acquire("x")
    group.limit(replace(LIMITS, io_read_bytes_per_s=1000))
    assert v1_read(v1_own, "cpu", "cpu.cfs_quota_us") == "50000"
    assert v1_read(v1_own, "pids", "pids.max") == "8"  # and PID 1, which is ours
    assert v1_read(v1_own, "memory", "memory.limit_in_bytes") == str(1 << 20)
    assert v1_read(v1_own, "memory", "memory.memsw.limit_in_bytes") == str(1 << 20)
    assert v1_read(v1_own, "memory", "memory.kmem.tcp.limit_in_bytes") == str(1 << 20)
    assert v1_read(v1_own, "blkio", "blkio.throttle.read_bps_device") == "8:0 1000"
    assert v1_read(v1_own, "blkio", "blkio.throttle.write_bps_device") == ""


def test_v1_limits_of_the_one_before_do_not_stay(v1_own: dict[str, Path]) -> None:
    parent = v1_parent(v1_own, "s1")
    first = parent.acquire("x")
    first.limit(replace(LIMITS, io_read_bytes_per_s=1000))
    first.release()
    again = parent.acquire("y")
    assert again is first
    again.limit(replace(LIMITS, memory_bytes=None, pids=100))
    assert v1_read(v1_own, "memory", "memory.limit_in_bytes") == str(UNLIMITED)
    assert v1_read(v1_own, "memory", "memory.memsw.limit_in_bytes") == str(UNLIMITED)
    assert v1_read(v1_own, "memory", "memory.kmem.tcp.limit_in_bytes") == str(UNLIMITED)
    assert v1_read(v1_own, "pids", "pids.max") == "101"
    assert v1_read(v1_own, "blkio", "blkio.throttle.read_bps_device") == "8:0 0"


def test_v1_a_limit_in_force_is_not_written_again(v1_own: dict[str, Path]) -> None:
    group = v1_parent(v1_own, "s1").acquire("x")
    group.limit(LIMITS)
    quota = v1_own["cpu"] / "pilfer/host/s1/cpu.cfs_quota_us"
    quota.write_text("untouched")
    group.limit(LIMITS)
    assert quota.read_text() == "untouched"


def test_v1_a_limit_that_the_kernel_refuses_names_the_file(v1_own: dict[str, Path]) -> None:
    group = v1_parent(v1_own, "s1").acquire("x")
    (v1_own["pids"] / "pilfer/host/s1/pids.max").unlink()
    (v1_own["pids"] / "pilfer/host/s1/pids.max").mkdir()
    with pytest.raises(StepFailed) as failed:
        group.limit(LIMITS)
    assert (failed.value.step, failed.value.subject) == ("limit", "pids.max=8")


def test_v1_a_refused_limit_is_not_taken_for_one_in_force(v1_own: dict[str, Path]) -> None:
    """The next sandbox of the same limits would have had no limit of swap and sockets."""
    parent = v1_parent(v1_own, "s1")
    group = parent.acquire("x")
    refused = v1_own["memory"] / "pilfer/host/s1/memory.kmem.tcp.limit_in_bytes"
    refused.unlink()
    refused.mkdir()
    with pytest.raises(StepFailed):
        group.limit(LIMITS)
    group.release()
    refused.rmdir()
    refused.write_text("")
    again = parent.acquire("y")
    assert again is group
    again.limit(LIMITS)
    assert refused.read_text() == str(LIMITS.memory_bytes)


def own_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("missing", ["tasks", "memory.max_usage_in_bytes", ""])
def test_v1_a_group_that_cannot_be_had_keeps_no_descriptors(v1_own: dict[str, Path], missing: str) -> None:
    """What lacks here is what the kernel would refuse where there are none left."""
    parent = v1_parent(v1_own, "s1")
    directory = v1_own["memory"] / "pilfer/host/s1"
    if missing:
        (directory / missing).unlink()
        (directory / missing).symlink_to(missing)  # ELOOP at its open
    else:
        directory.rename(directory.with_name("away"))
        directory.write_text("no directory")
    before = own_descriptors()
    with pytest.raises(StepFailed):
        parent.acquire("x")
    assert own_descriptors() == before


def test_who_kills_goes_on_past_what_he_cannot_look_at(v1_own: dict[str, Path], tmp_path: Path) -> None:
    """With no descriptor left: not even the names of the groups below can be had."""
    parent = v1_parent(v1_own, "s1")
    group = parent.acquire("x")
    parent.freeze()
    (tmp_path / "cgroup.procs").write_text("1\n")
    fd = files.open_dir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert list(files.pids_below(fd)) == []
        assert files.kill_below(fd) == 0
        assert not group.is_frozen()  # as far as is known: so it is killed at the deadline
        assert not parent.is_frozen()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(fd)


def test_v1_stats_and_their_start_for_the_next(v1_own: dict[str, Path]) -> None:
    parent = v1_parent(v1_own, "s1")
    directory = {controller: path / "pilfer/host/s1" for controller, path in v1_own.items()}
    group = parent.acquire("x")
    (directory["cpuacct"] / "cpuacct.usage").write_text("2500000000\n")
    (directory["memory"] / "memory.max_usage_in_bytes").write_text("4096\n")
    (directory["memory"] / "memory.oom_control").write_text("under_oom 0\noom_kill 2\n")
    (directory["blkio"] / "blkio.throttle.io_service_bytes").write_text("8:0 Read 10\n8:0 Write 20\n9:1 Read 5\n")
    stats = group.stats()
    assert (stats.cpu_s, stats.memory_peak_bytes, stats.oom_kills) == (2.5, 4096, 2)
    assert (stats.io_read_bytes, stats.io_write_bytes) == (15, 20)
    group.release()
    stats = parent.acquire("y").stats()
    assert (stats.cpu_s, stats.memory_peak_bytes, stats.oom_kills) == (0, 0, 0)
    assert (stats.io_read_bytes, stats.io_write_bytes) == (0, 0)


def test_v1_a_group_with_memory_left_is_not_reused(v1_own: dict[str, Path]) -> None:
    parent = v1_parent(v1_own, "s1", "s2")
    group = parent.acquire("x")
    (v1_own["memory"] / "pilfer/host/s1/memory.usage_in_bytes").write_text(str(8 << 20))
    with pytest.raises(OSError, match="not empty"):  # plain files are in the way of rmdir, as the kernel's are not
        group.release()
    assert parent.acquire("y") is not group


def test_v1_freeze_is_one_write_to_the_parent(v1_own: dict[str, Path]) -> None:
    parent = v1_parent(v1_own, "s1")
    parent.freeze()
    assert v1_read(v1_own, "freezer", "freezer.state", "") == "FROZEN"
    assert parent.is_frozen()
    parent.thaw()
    assert not parent.is_frozen()
    assert v1_read(v1_own, "freezer", "freezer.state", "s1") == "THAWED\n"


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_v1_kill_signals_every_process_of_all_groups(
    v1_own: dict[str, Path], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    parent = v1_parent(v1_own, "s1", "s2")
    first, second, third = (process.pid for process in sleepers)
    (v1_own["freezer"] / "pilfer/host/s1/cgroup.procs").write_text(f"{first}\n{second}\n")
    (v1_own["freezer"] / "pilfer/host/s2/cgroup.procs").write_text(f"{third}\n")
    group = parent.acquire("x")
    assert group.pids() == [first, second]
    group.kill()
    assert [process.wait() for process in sleepers[:2]] == [-signal.SIGKILL] * 2
    assert sleepers[2].poll() is None
    parent.kill()
    assert sleepers[2].wait() == -signal.SIGKILL


def test_v1_what_is_killed_dies_outside_of_its_quota(v1_own: dict[str, Path]) -> None:
    """Which is in force again for whoever has the group next."""
    group = v1_parent(v1_own, "s1").acquire("x")
    group.limit(LIMITS)
    group.kill()
    assert v1_read(v1_own, "cpu", "cpu.cfs_quota_us") == str(UNLIMITED)
    group.limit(LIMITS)
    assert v1_read(v1_own, "cpu", "cpu.cfs_quota_us") == "50000"


def test_v2_what_is_killed_dies_outside_of_its_quota(v2_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, directory = v2_group(v2_own, monkeypatch)
    group.limit(LIMITS)
    group.kill()
    assert (directory / "cpu.max").read_text() == "max"


def test_v2_kill_is_one_write_where_the_kernel_has_it(
    v2_own: Path, monkeypatch: pytest.MonkeyPatch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    parent, group, directory = v2_parent(v2_own, monkeypatch)
    (directory / "cgroup.procs").write_text(f"{sleepers[0].pid}\n")
    group.kill()  # before Linux 5.14: no such file, so each gets its signal
    assert sleepers[0].wait() == -signal.SIGKILL
    for place in (directory, v2_own / "pilfer/host"):
        (place / "cgroup.procs").write_text(f"{sleepers[1].pid}\n")
        (place / "cgroup.kill").write_text("")
    group.kill()
    parent.kill()
    assert [(place / "cgroup.kill").read_text() for place in (directory, v2_own / "pilfer/host")] == ["1", "1"]
    assert sleepers[1].poll() is None


def test_v1_controllers_mounted_together_are_attached_to_once(tmp_path: Path) -> None:
    together, memory = tmp_path / "cpu,cpuacct", tmp_path / "memory"
    own = {"cpu": together, "cpuacct": together, "memory": memory}
    for path in {together, memory}:
        path.mkdir()
    group = v1_parent(own, "s1").acquire("x")
    assert isinstance(group, V1Group)
    assert len(group.task_fds) == 2


@pytest.fixture
def v2_own(tmp_path: Path) -> Path:
    own = tmp_path / "own"
    for directory in (own, own / "pilfer", own / "pilfer/host"):
        directory.mkdir()
        (directory / "cgroup.controllers").write_text("cpu io memory pids\n")
        (directory / "cgroup.subtree_control").write_text("cpu memory pids io\n")
        for name, content in V2_FILES.items():
            (directory / name).write_text(content)
    return own


def v2_parent(own: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[V2Parent, V2Group, Path]:
    """A parent, and a group in it, whose files appear with its directory, as the kernel makes them."""
    import isolation.cgroup.v2 as module

    real = os.mkdir

    def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
        real(name, mode, dir_fd=dir_fd)
        for file, content in V2_FILES.items():
            (own / "pilfer/host" / name / file).write_text(content)

    # What the control files allow to be enabled stays: plain files would keep the last word written alone.
    monkeypatch.setattr(module, "_enable", lambda _: frozenset(module.CONTROLLERS))
    parent = V2Parent(own, "host", io_devices=["8:0"])
    monkeypatch.setattr(os, "mkdir", mkdir)
    return parent, parent.acquire("cgroup.procs"), own / "pilfer/host/s-cgroup.procs"


def v2_group(own: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[V2Group, Path]:
    return v2_parent(own, monkeypatch)[1:]


def test_v2_limits(v2_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, directory = v2_group(v2_own, monkeypatch)
    group.limit(replace(LIMITS, io_write_bytes_per_s=5))
    files = {name: (directory / name).read_text() for name in V2_FILES}
    assert files["cpu.max"] == "50000 100000"
    assert files["memory.max"] == str(1 << 20)
    assert files["memory.swap.max"] == "0"
    assert files["memory.oom.group"] == "1"
    assert files["pids.max"] == "8"
    assert files["io.max"] == "8:0 rbps=max wbps=5"


def test_v2_no_memory_limit_writes_none(v2_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, directory = v2_group(v2_own, monkeypatch)
    group.limit(replace(LIMITS, memory_bytes=None))
    assert (directory / "memory.max").read_text() == ""


def test_v2_stats(v2_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, directory = v2_group(v2_own, monkeypatch)
    (directory / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (directory / "memory.peak").write_text("8192\n")
    (directory / "memory.events").write_text("oom 3\noom_kill 1\n")
    (directory / "io.stat").write_text("8:0 rbytes=7 wbytes=9 rios=1\n9:1 rbytes=1 wbytes=1\n")
    stats = group.stats()
    assert (stats.cpu_s, stats.memory_peak_bytes, stats.oom_kills) == (1.5, 8192, 1)
    assert (stats.io_read_bytes, stats.io_write_bytes) == (8, 10)
    (directory / "memory.peak").unlink()  # before Linux 5.19
    assert group.stats().memory_peak_bytes == 0


def test_v2_frozen_when_the_kernel_says_so(v2_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, directory = v2_group(v2_own, monkeypatch)
    assert not group.is_frozen()
    (directory / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert group.is_frozen()


def check_gone(parent: Parent, group: Group) -> None:
    """Every verb but `acquire`, of groups that somebody removed."""
    parent.freeze()
    assert not parent.is_frozen()  # of what is not known to stand still, everything is killed one by one
    assert not group.is_frozen()
    parent.thaw()
    assert group.pids() == []
    parent.kill()
    group.kill()
    assert group.stats().oom_kills == 0
    with pytest.raises(StepFailed) as failed:
        group.limit(LIMITS)
    assert failed.value.step == "cgroup"
    group.release()
    assert parent.tidy()
    with pytest.raises(StepFailed):
        # Open files of the pooled one answer on, since these are plain ones: the kernel's do not.
        _ = [parent.acquire("y") for _ in range(2)]
    parent.close()


def test_v1_groups_that_somebody_removed_count_as_gone(v1_own: dict[str, Path]) -> None:
    parent = v1_parent(v1_own, "s1")
    group = parent.acquire("x")
    for path in v1_own.values():
        shutil.rmtree(path / "pilfer")
    check_gone(parent, group)


def test_v2_groups_that_somebody_removed_count_as_gone(v2_own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, group, _ = v2_parent(v2_own, monkeypatch)
    shutil.rmtree(v2_own / "pilfer")
    check_gone(parent, group)


MOUNTINFO = """\
22 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 22 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 22 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 22 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 22 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 22 0:27 / /elsewhere/cpu rw - cgroup cgroup rw,cpu,cpuacct
36 22 0:31 / /with\\040space rw - cgroup cgroup rw,pids
"""
PROC_CGROUP = "5:cpu,cpuacct:/a/b\n4:memory:/docker/abc/own\n3:pids:/\n2:name=systemd:/x\n0::/user.slice\n"


def test_hierarchies_are_found_where_they_are_mounted() -> None:
    mounted = find.parse_mounts(MOUNTINFO)
    paths = find.own_paths(PROC_CGROUP)
    places = {
        controller: find.directory_of(hierarchy, paths[controller])
        for hierarchy in mounted
        for controller in hierarchy.controllers
    }
    assert places == {
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct/a/b"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct/a/b"),
        "memory": Path("/sys/fs/cgroup/memory/own"),
        "pids": Path("/with space"),
    }
    assert [find.directory_of(h, paths[""]) for h in mounted if h.version == 2] == [
        Path("/sys/fs/cgroup/unified/user.slice")
    ]
