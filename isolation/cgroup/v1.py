"""Version 1: one hierarchy per controller (or several controllers mounted together), and a pool of groups.

A fresh group costs 160 to 210 us more than one that is reused, so groups go back into a pool, one sandbox at a time.
Nothing of a sandbox may show in the next one's figures: peak memory is reset, cpu time, oom kills and io are taken as
differences, and a group that still has more than a little memory charged (page cache of files that the
sandbox read) is removed instead of reused.

Documentation/admin-guide/cgroup-v1/{memory,pids,freezer-subsystem,cpuacct,blkio-controller}.rst
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from isolation.cgroup import CPU_PERIOD_US, REAPER_PIDS, Stats, files
from isolation.errors import StepFailed
from isolation.spec import Limits

#: What we use, in the order in which a child attaches; the freezer first, so that the fence reaches it soonest.
CONTROLLERS = ("freezer", "memory", "pids", "cpu", "cpuacct", "blkio")

POOL_MAX = 64
#: Charged to a group after its sandbox: more than this is not handed on.
REUSE_BYTES_MAX = 1024 * 1024

UNLIMITED = -1
#: Bytes per second that no disk reaches.
_NO_REAL_LIMIT = 1 << 60
_PEAK = "memory.max_usage_in_bytes"
_IO_SERVICE = "blkio.throttle.io_service_bytes"
#: What TCP and UDP sockets hold. Version 1 counts it apart from all other memory, and only where this has been written
#: once (mm/memcontrol-v1.c); a task could fill the machine with datagrams that nobody reads. Version 2 counts it with
#: the rest.
_SOCKETS = "memory.kmem.tcp.limit_in_bytes"


class V1Group:
    """One sandbox's directories, one per hierarchy, with the files that every sandbox needs kept open."""

    into_fd = -1

    def __init__(self, parent: V1Parent, name: str, dirs: Mapping[str, int], io_devices: Sequence[str]) -> None:
        self._parent = parent
        self.name = name
        #: Controller -> directory; controllers mounted together share one.
        self._dirs = dirs
        self._io_devices = io_devices
        self._has_swap_limit = "memory" in dirs and files.has(dirs["memory"], "memory.memsw.limit_in_bytes")
        self._has_socket_limit = "memory" in dirs and files.has(dirs["memory"], _SOCKETS)
        if self._has_socket_limit:
            files.write(dirs["memory"], _SOCKETS, UNLIMITED)
        self._task_fds: list[int] = []
        self._open: dict[str, int] = {}
        try:
            self._open_files()
        except OSError:
            self._close_files()
            raise
        self._in_force: dict[str, str | int] = {}
        #: Those that are in force as a whole.
        self._limits: Limits | None = None
        #: What the counters that are not reset showed when the group was last given to nobody.
        self._cpu_ns_before = self._number("cpuacct.usage")
        self._oom_kills_before, self._io_before = self._seen = self._oom_kills(), self._io()

    def _open_files(self) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC
        for fd in dict.fromkeys(self._dirs.values()):
            self._task_fds.append(os.open("tasks", flags, dir_fd=fd))
        for controller, file, access in (
            ("cpuacct", "cpuacct.usage", os.O_RDONLY),
            ("memory", _PEAK, os.O_RDWR),
            ("memory", "memory.usage_in_bytes", os.O_RDONLY),
            ("memory", "memory.oom_control", os.O_RDONLY),
            ("blkio", _IO_SERVICE, os.O_RDONLY),
        ):
            if controller in self._dirs and files.has(self._dirs[controller], file):
                self._open[file] = os.open(file, access | os.O_CLOEXEC, dir_fd=self._dirs[controller])

    def _close_files(self) -> None:
        for fd in (*self._task_fds, *self._open.values()):
            os.close(fd)

    @property
    def task_fds(self) -> Sequence[int]:
        return self._task_fds

    def limit(self, limits: Limits) -> None:
        if limits == self._limits:  # the last sandbox's, as in a batch of the same tasks
            return
        self._set("cpu", "cpu.cfs_quota_us", max(1000, round(limits.cpu * CPU_PERIOD_US)))
        self._set("pids", "pids.max", limits.pids + REAPER_PIDS)
        self._limit_memory(UNLIMITED if limits.memory_bytes is None else limits.memory_bytes)
        self._limit_io("blkio.throttle.read_bps_device", limits.io_read_bytes_per_s)
        self._limit_io("blkio.throttle.write_bps_device", limits.io_write_bytes_per_s)
        self._limits = limits

    def _limit_memory(self, limit: int) -> None:
        # All of them: the kernel may have taken one and refused the next (EBUSY: more than that is charged already).
        wanted = ["memory.limit_in_bytes"]
        wanted += ["memory.memsw.limit_in_bytes"] if self._has_swap_limit else []
        wanted += [_SOCKETS] if self._has_socket_limit else []
        if "memory" not in self._dirs or all(self._in_force.get(file, UNLIMITED) == limit for file in wanted):
            return
        if self._has_swap_limit:
            # Memory and swap together are never below memory alone, so the order depends on the direction;
            # taking both limits off first makes it the same each time.
            self._set("memory", "memory.memsw.limit_in_bytes", UNLIMITED)
        self._set("memory", "memory.limit_in_bytes", limit)
        if self._has_swap_limit:
            self._set("memory", "memory.memsw.limit_in_bytes", limit)
        if self._has_socket_limit:
            self._set("memory", _SOCKETS, limit)

    def _limit_io(self, file: str, bytes_per_s: int | None) -> None:
        for device in self._io_devices:
            self._set("blkio", file, f"{device} {bytes_per_s or 0}", key=f"{file} {device}")

    def _set(self, controller: str, file: str, value: str | int, *, key: str | None = None) -> None:
        """Writes a limit unless it is in force already."""
        if controller not in self._dirs:
            return
        unlimited: str | int = f"{key.split()[-1]} 0" if key else UNLIMITED
        if self._in_force.get(key or file, unlimited) == value:
            return
        self._limits = None  # whoever changes one of them
        try:
            files.write(self._dirs[controller], file, value)
        except OSError as error:
            step = "limit" if files.has(self._dirs[controller], "tasks") else "cgroup"
            raise StepFailed(step, error.errno or 0, f"{file}={value}") from error
        self._in_force[key or file] = value

    def stats(self) -> Stats:
        io, oom_kills = self._io(), self._oom_kills()
        stats = Stats(
            cpu_s=max(0, self._number("cpuacct.usage") - self._cpu_ns_before) / 1e9,
            memory_peak_bytes=self._number(_PEAK),
            io_read_bytes=max(0, io[0] - self._io_before[0]),
            io_write_bytes=max(0, io[1] - self._io_before[1]),
            oom_kills=max(0, oom_kills - self._oom_kills_before),
        )
        self._seen = oom_kills, io
        return stats

    def _text(self, file: str) -> str:
        fd = self._open.get(file)
        if fd is None:
            return ""
        try:
            return os.pread(fd, 4096, 0).decode("utf-8", "replace")
        except OSError:
            return ""

    def _number(self, file: str) -> int:
        text = self._text(file).partition("\n")[0]
        return int(text) if text.isdigit() else 0

    def _oom_kills(self) -> int:
        """The last of the lines `oom_kill_disable 0`, `under_oom 0`, `oom_kill 0`."""
        number = self._text("memory.oom_control").partition("\noom_kill ")[2].strip()
        return int(number) if number.isdigit() else 0

    def _io(self) -> tuple[int, int]:
        """Bytes read and written, over all devices: lines `MAJOR:MINOR Read BYTES`."""
        read = written = 0
        for line in self._text(_IO_SERVICE).splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[1] == "Read":
                read += int(parts[2])
            elif len(parts) == 3 and parts[1] == "Write":
                written += int(parts[2])
        return read, written

    def reset(self) -> bool:
        """Counters back to zero for the next sandbox; False where that cannot be had and the group must go."""
        if self._number("memory.usage_in_bytes") > REUSE_BYTES_MAX:
            return False
        try:
            if _PEAK in self._open:
                os.pwrite(self._open[_PEAK], b"0\n", 0)
        except OSError:
            return False
        self._oom_kills_before, self._io_before = self._seen
        # Read now and not with the report: the last of PID 1's time is counted after its end was seen.
        self._cpu_ns_before = self._number("cpuacct.usage")
        return True

    def pids(self) -> list[int]:
        return list(files.pids_below(self._dirs.get("freezer", next(iter(self._dirs.values())))))

    def is_frozen(self) -> bool:
        return "freezer" in self._dirs and _is_frozen(self._dirs["freezer"])

    def kill(self) -> None:
        files.kill_below(self._dirs.get("freezer", next(iter(self._dirs.values()))))
        with contextlib.suppress(StepFailed):
            self._set("cpu", "cpu.cfs_quota_us", UNLIMITED)

    def release(self) -> None:
        self._parent.take_back(self)

    def close(self) -> None:
        self._close_files()
        for fd in set(self._dirs.values()):
            os.close(fd)


def _is_frozen(freezer: int) -> bool:
    state = ""
    with contextlib.suppress(OSError):  # gone, or no descriptor to look with: then it is not known
        state = files.read(freezer, "freezer.state")
    return state.strip() == "FROZEN"


class V1Parent:
    """`pilfer/HOST_ID` in each hierarchy."""

    version = 1

    def __init__(
        self, own: Mapping[str, Path], host_id: str, *, memory_bytes: int | None = None, io_devices: Sequence[str] = ()
    ) -> None:
        """`own`: controller -> the directory of the group that we were started in."""
        self._host_id = host_id
        self._io_devices = io_devices
        opened: dict[Path, int] = {}
        self._tops: list[tuple[int, int]] = []
        for path in dict.fromkeys(own.values()):
            base, top, opened[path] = files.make_parent(path, host_id)
            self._tops.append((base, top))
        self._dirs = {controller: opened[path] for controller, path in own.items()}
        self._free: list[V1Group] = []
        self._doomed: list[str] = []
        self._made = 0
        if memory_bytes is not None and "memory" in self._dirs:
            files.write(self._dirs["memory"], "memory.limit_in_bytes", memory_bytes)
            if files.has(self._dirs["memory"], _SOCKETS):
                files.write(self._dirs["memory"], _SOCKETS, memory_bytes)
        self._count_io()

    def _count_io(self) -> None:
        """Since Linux 6.10 io is counted on a disk only after some group has had a limit there."""
        if "blkio" not in self._dirs:
            return
        for device in self._io_devices:
            for rate in (_NO_REAL_LIMIT, 0):
                with contextlib.suppress(OSError):  # a disk without a queue: nothing to count there
                    files.write(self._dirs["blkio"], "blkio.throttle.read_bps_device", f"{device} {rate}")

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(self._dirs)

    @property
    def can_freeze(self) -> bool:
        return "freezer" in self._dirs

    def acquire(self, name: str) -> V1Group:
        if self._free:
            return self._free.pop()
        self._made += 1
        own_name = f"s{self._made}"
        by_fd: dict[int, int] = {}
        try:
            for fd in dict.fromkeys(self._dirs.values()):
                by_fd[fd] = files.make_dir(own_name, fd)
            dirs = {controller: by_fd[fd] for controller, fd in self._dirs.items()}
            return V1Group(self, own_name, dirs, self._io_devices)
        except OSError as error:
            for fd in by_fd.values():
                os.close(fd)
            self._doomed.append(own_name)
            raise StepFailed("cgroup", error.errno or 0, f"{own_name} for {name}") from error

    def take_back(self, group: V1Group) -> None:
        """Into the pool, or away."""
        if len(self._free) < POOL_MAX and group.reset():
            self._free.append(group)
            return
        group.close()
        self._doomed.append(group.name)
        self.tidy()

    def tidy(self) -> bool:
        self._doomed = [name for name in self._doomed if not self._remove(name)]
        return not self._doomed

    def _remove(self, name: str) -> bool:
        return all(files.remove_dir(name, fd) for fd in dict.fromkeys(self._dirs.values()))

    def freeze(self) -> None:
        with files.unless_gone():
            files.write(self._dirs["freezer"], "freezer.state", "FROZEN")

    def is_frozen(self) -> bool:
        return _is_frozen(self._dirs["freezer"])

    def thaw(self) -> None:
        with files.unless_gone():
            files.write(self._dirs["freezer"], "freezer.state", "THAWED")

    def kill(self) -> None:
        files.kill_below(self._dirs.get("freezer", next(iter(self._dirs.values()))))

    def close(self) -> None:
        for group in self._free:
            group.close()
            self._doomed.append(group.name)
        self._free.clear()
        self.tidy()
        for base, top in self._tops:
            files.remove_parent(base, top, self._host_id)
        for fd in dict.fromkeys(self._dirs.values()):
            os.close(fd)
