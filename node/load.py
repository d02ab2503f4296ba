"""What this host lends to tasks, and how much of it is lent."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from node.core.model import Capacity

#: Share of the host's memory that tasks may have where nothing else is set; the rest is for the node and the system.
MEMORY_SHARE = 0.9

#: Share of a file system that one task's scratch may take: tasks are few, and a hog must leave room for the node.
SCRATCH_SHARE = 0.25


def host_capacity(cpu: float | None, memory_bytes: int | None, *, scratch: Path, scratch_bytes: int | None) -> Capacity:
    """The set values, or what the host has: CPUs this process may use, nine tenths of the memory it may use, and for
    the scratch directory of each task a quarter of the file system of `scratch`."""
    if cpu is None:
        cpu = float(len(os.sched_getaffinity(0)))
    if memory_bytes is None:
        memory_bytes = int(min(psutil.virtual_memory().total, _cgroup_memory_limit()) * MEMORY_SHARE)
    if scratch_bytes is None:
        scratch_bytes = int(psutil.disk_usage(str(scratch)).total * SCRATCH_SHARE)
    return Capacity(cpu=cpu, memory_bytes=memory_bytes, scratch_bytes=scratch_bytes)


def _cgroup_memory_limit() -> int:
    """The limit of the cgroup that the node was started in, v1 or v2; a huge number where there is none."""
    unlimited = 1 << 62
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            file = Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
        elif controllers == "":
            file = Path(f"/sys/fs/cgroup{path}/memory.max")
        else:
            continue
        try:
            text = file.read_text().strip()
        except OSError:
            continue  # another mount layout: the host's own memory is the bound
        if text.isdigit():
            unlimited = min(unlimited, int(text))
    return unlimited
