"""Version 2: one hierarchy; a fresh group per sandbox, which costs 40 us and gives exact peaks and events.

Documentation/admin-guide/cgroup-v2.rst. A process gets into its group by clone3 with CLONE_INTO_CGROUP.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from isolation.cgroup import CPU_PERIOD_US, REAPER_PIDS, Stats, files
from isolation.errors import StepFailed
from isolation.spec import Limits

#: What we enable for our children, where the host has it.
CONTROLLERS = ("cpu", "memory", "pids", "io")


class V2Group:
    """One sandbox's directory."""

    task_fds: Sequence[int] = ()

    def __init__(self, parent: V2Parent, name: str, dir_fd: int, io_devices: Sequence[str]) -> None:
        self._parent = parent
        self.name = name
        self._dir = dir_fd
        self._controllers = parent.controllers
        self._io_devices = io_devices

    @property
    def into_fd(self) -> int:
        return self._dir

    def limit(self, limits: Limits) -> None:
        self._set("cpu", "cpu.max", f"{max(1000, round(limits.cpu * CPU_PERIOD_US))} {CPU_PERIOD_US}")
        self._set("pids", "pids.max", limits.pids + REAPER_PIDS)
        # The task as a whole, not one process of it; also where the bound is that of all tasks, or the machine's.
        self._set("memory", "memory.oom.group", 1)
        if limits.memory_bytes is not None:
            self._set("memory", "memory.max", limits.memory_bytes)
            if files.has(self._dir, "memory.swap.max"):
                self._set("memory", "memory.swap.max", 0)
        if limits.io_read_bytes_per_s is not None or limits.io_write_bytes_per_s is not None:
            for device in self._io_devices:
                read, write = limits.io_read_bytes_per_s or "max", limits.io_write_bytes_per_s or "max"
                self._set("io", "io.max", f"{device} rbps={read} wbps={write}")

    def _set(self, controller: str, file: str, value: str | int) -> None:
        if controller not in self._controllers:
            return
        try:
            files.write(self._dir, file, value)
        except OSError as error:
            step = "limit" if files.has(self._dir, "cgroup.procs") else "cgroup"
            raise StepFailed(step, error.errno or 0, f"{file}={value}") from error

    def stats(self) -> Stats:
        read, written = self._io()
        peak = self._text("memory.peak").strip()  # Linux 5.19 and later
        return Stats(
            cpu_s=files.keyed(self._text("cpu.stat")).get("usage_usec", 0) / 1e6,
            memory_peak_bytes=int(peak) if peak.isdigit() else 0,
            io_read_bytes=read,
            io_write_bytes=written,
            oom_kills=files.keyed(self._text("memory.events")).get("oom_kill", 0),
        )

    def _text(self, file: str) -> str:
        try:
            return files.read(self._dir, file)
        except OSError:
            return ""

    def _io(self) -> tuple[int, int]:
        """Lines `MAJOR:MINOR rbytes=N wbytes=N ...`, one per device."""
        sums = {"rbytes": 0, "wbytes": 0}
        for line in self._text("io.stat").splitlines():
            for word in line.split()[1:]:
                key, _, value = word.partition("=")
                if key in sums and value.isdigit():
                    sums[key] += int(value)
        return sums["rbytes"], sums["wbytes"]

    def pids(self) -> list[int]:
        return list(files.pids_below(self._dir))

    def is_frozen(self) -> bool:
        return files.keyed(self._text("cgroup.events")).get("frozen", 0) == 1

    def kill(self) -> None:
        files.kill_below(self._dir)
        with contextlib.suppress(StepFailed):
            self._set("cpu", "cpu.max", "max")

    def release(self) -> None:
        self._parent.take_back(self)

    def close(self) -> None:
        os.close(self._dir)


class V2Parent:
    """`pilfer/HOST_ID`, with the controllers enabled down to it."""

    version = 2
    can_freeze = True

    def __init__(
        self, own: Path, host_id: str, *, memory_bytes: int | None = None, io_devices: Sequence[str] = ()
    ) -> None:
        """`own`: a group that may hand its controllers down (`probe.find_v2_base`)."""
        self._host_id = host_id
        self._io_devices = io_devices
        self._base, self._top, self._dir = files.make_parent(own, host_id)
        _enable(self._base)
        _enable(self._top)
        self.controllers = _enable(self._dir)
        self._doomed: list[str] = []
        if memory_bytes is not None and "memory" in self.controllers:
            files.write(self._dir, "memory.max", memory_bytes)

    def acquire(self, name: str) -> V2Group:
        directory = f"s-{name}"  # never a file name of the kernel's own
        try:
            os.mkdir(directory, 0o755, dir_fd=self._dir)
            fd = files.open_dir(directory, self._dir)
            return V2Group(self, directory, fd, self._io_devices)
        except OSError as error:
            self._doomed.append(directory)
            raise StepFailed("cgroup", error.errno or 0, name) from error

    def take_back(self, group: V2Group) -> None:
        """Its processes are gone; the directory goes now or at the next `tidy`."""
        group.close()
        self._doomed.append(group.name)
        self.tidy()

    def tidy(self) -> bool:
        self._doomed = [name for name in self._doomed if not files.remove_dir(name, self._dir)]
        return not self._doomed

    def freeze(self) -> None:
        with files.unless_gone():
            files.write(self._dir, "cgroup.freeze", 1)

    def is_frozen(self) -> bool:
        events = ""
        with contextlib.suppress(OSError):  # gone, or no descriptor to look with: then it is not known
            events = files.read(self._dir, "cgroup.events")
        return files.keyed(events).get("frozen", 0) == 1

    def thaw(self) -> None:
        with files.unless_gone():
            files.write(self._dir, "cgroup.freeze", 0)

    def kill(self) -> None:
        files.kill_below(self._dir)

    def close(self) -> None:
        self.tidy()
        os.close(self._dir)
        files.remove_parent(self._base, self._top, self._host_id)


def _enable(dir_fd: int) -> frozenset[str]:
    """Hands down what is there to be handed down; what then is in force for children."""
    there = files.read(dir_fd, "cgroup.controllers").split()
    for controller in CONTROLLERS:
        if controller in there:
            with contextlib.suppress(OSError):
                files.write(dir_fd, "cgroup.subtree_control", f"+{controller}")
    return frozenset(files.read(dir_fd, "cgroup.subtree_control").replace("+", "").split())
