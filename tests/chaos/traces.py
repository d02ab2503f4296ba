"""What a laboratory may leave on the machine when it has ended: processes, control groups, mounts, loop devices,
namespaces, files.

Others may be at work on the same machine, with laboratories of their own. So what is looked for is what has the name of
this one: its directory, and the ids of its hosts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.support.leaks import cgroups_of

RUNTIME = Path("/run/pilfer")


def left_behind(directory: Path, host_ids: Iterable[str]) -> list[str]:
    """NothingIsLeft: in words, what there is of a lab that has ended."""
    name, hosts = str(directory), sorted(filter(None, host_ids))
    found = [f"process {words}" for words in _processes(name, hosts)]
    for host_id in hosts:
        found += [f"control group {path}" for path in cgroups_of(host_id)]
        if RUNTIME.is_dir():
            found += [f"file {path}" for path in RUNTIME.iterdir() if host_id in path.name]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    found += [f"mount {line.split(' ')[4]}" for line in mounts if name in line]
    # The places of a lab have names that nobody gives to interfaces of the machine.
    found += [f"network interface {path.name}" for path in Path("/sys/class/net").glob("port[0-9]*")]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if name in backing.read_text():
                found.append(f"loop device {backing.parts[3]} of {backing.read_text().strip()}")
    if directory.exists():
        found.append(f"directory {directory}")
    return [f"NothingIsLeft: {words}" for words in found]


def _processes(name: str, hosts: list[str]) -> Iterable[str]:
    """Those that name the lab in their command or environment (tasks have the id of their node in theirs, and nodes
    and their children the lab's directory), or are in a group of one of its hosts."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            command = " ".join(process.cmdline())
            groups = Path(f"/proc/{process.pid}/cgroup").read_text()
            if name in command or any(host in groups for host in hosts):
                yield f"{process.pid} ({process.status()}): {command or process.name()}"
