"""Where a host has no control groups for us: nothing is limited by them, and nothing can be frozen.

What a sandbox used is then what the kernel tells of its PID 1 when that is reaped (getrusage(2)): its own and that of
every process which it, or one below it, waited for. Children of a program that ignores SIGCHLD are missing, and peak
memory is that of the largest process, not of all together: both are less than what was used, never more.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Sequence

from isolation.cgroup import Stats, files
from isolation.spec import Limits

#: Of ru_inblock and ru_oublock (include/linux/task_io_accounting_ops.h).
_BLOCK_BYTES = 512
#: Of ru_maxrss.
_RSS_BYTES = 1024


def at_least(stats: Stats, used: resource.struct_rusage) -> Stats:
    """The group's figures, and the kernel's own of the processes where the group has none."""
    return Stats(
        cpu_s=stats.cpu_s or used.ru_utime + used.ru_stime,
        memory_peak_bytes=stats.memory_peak_bytes or used.ru_maxrss * _RSS_BYTES,
        io_read_bytes=stats.io_read_bytes or used.ru_inblock * _BLOCK_BYTES,
        io_write_bytes=stats.io_write_bytes or used.ru_oublock * _BLOCK_BYTES,
        oom_kills=stats.oom_kills,
    )


def processes_below(proc_fd: int, pid: int) -> list[int]:
    """A process and all that it and its children started, as far as they live; proc_fd: the host's /proc."""
    found = [pid]
    for one in found:  # grows meanwhile
        with contextlib.suppress(OSError):
            tasks = os.open(f"{one}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
            try:
                for thread in os.listdir(tasks):  # noqa: PTH208  (by descriptor)
                    with contextlib.suppress(OSError):
                        found += map(int, files.read(tasks, f"{thread}/children").split())
            finally:
                os.close(tasks)
    return found


class NoGroup:
    into_fd = -1
    task_fds: Sequence[int] = ()

    def limit(self, limits: Limits) -> None:
        """Nothing to do: `HostReport.not_enforced` says so."""

    def stats(self) -> Stats:
        return Stats()

    def pids(self) -> list[int]:
        return []

    def is_frozen(self) -> bool:
        return False

    def kill(self) -> None:
        """The spawner's signal to PID 1 reaches all of a sandbox."""

    def release(self) -> None:
        """Nothing was made."""


class NoParent:
    version = 0
    controllers: frozenset[str] = frozenset()
    can_freeze = False

    def acquire(self, name: str) -> NoGroup:  # noqa: ARG002  (the verb's signature)
        return NoGroup()

    def tidy(self) -> bool:
        return True

    def freeze(self) -> None:
        """`can_freeze` is false: the spawner kills instead."""

    def is_frozen(self) -> bool:
        return False

    def thaw(self) -> None:
        """Nothing was frozen."""

    def kill(self) -> None:
        """The spawner's signal to each PID 1 reaches all."""

    def close(self) -> None:
        """Nothing was made."""
