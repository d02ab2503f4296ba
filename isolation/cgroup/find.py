"""Where our groups go: below the group that this process was started in, per hierarchy.

Reads /proc/self/mountinfo (which hierarchies are mounted, and where) and /proc/self/cgroup (where we are in each).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isolation.cgroup import Parent, files, v1, v2
from isolation.cgroup.none import NoParent

#: Without these there is no limit worth the name, and the other version is tried.
NEEDED = frozenset({"memory", "pids"})

WORDS = {
    "memory": "memory limits",
    "pids": "limits on the number of processes",
    "cpu": "cpu limits",
    "cpuacct": "cpu accounting",
    "freezer": "freezing at the fence deadline (tasks are killed instead)",
    "blkio": "disk io limits",
    "io": "disk io limits",
}


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup file system."""

    version: int
    mount_point: Path
    #: Which group is at the mount point; others than `/` in a mount of a part.
    root: str
    #: Version 1: the controllers mounted here.
    controllers: frozenset[str]


def parse_mounts(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies in the text of a mountinfo file (proc(5)); of several mounts of one, the first."""
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kinds[2].split(",")) & frozenset(v1.CONTROLLERS)
        version = 2 if kinds[0] == "cgroup2" else 1
        point = Path(fields[4].encode().decode("unicode_escape"))
        hierarchy = Hierarchy(version, point, fields[3], controllers if version == 1 else frozenset())
        if not any(h.version == version and h.controllers == hierarchy.controllers for h in found):
            found.append(hierarchy)
    return found


def own_paths(proc_cgroup: str) -> dict[str, str]:
    """Controller -> our path in its hierarchy, from the text of /proc/self/cgroup; "" is version 2."""
    paths: dict[str, str] = {}
    for line in proc_cgroup.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def directory_of(hierarchy: Hierarchy, path: str) -> Path:
    """The directory of a group, given its path in the hierarchy."""
    root = hierarchy.root.rstrip("/")
    inside = path[len(root) :] if root and path.startswith(root) else path
    return hierarchy.mount_point / inside.lstrip("/")


def own_v1(mounted: Sequence[Hierarchy], paths: Mapping[str, str]) -> dict[str, Path]:
    """Controller -> our directory, for the controllers that are there, in the order in which children attach."""
    found: dict[str, Path] = {}
    for controller in v1.CONTROLLERS:
        for hierarchy in mounted:
            if hierarchy.version == 1 and controller in hierarchy.controllers and controller in paths:
                directory = directory_of(hierarchy, paths[controller])
                if os.access(directory, os.W_OK):
                    found[controller] = directory
    return found


def v2_base(mounted: Sequence[Hierarchy], paths: Mapping[str, str]) -> Path | None:
    """The nearest group, from our own upwards, that can hand memory and pids down to children.

    Only a group without processes of its own may (except the root): our own group holds the node, so it is usually
    its parent, unless the node was started in the root.
    """
    for hierarchy in mounted:
        if hierarchy.version != 2 or "" not in paths:
            continue
        directory = directory_of(hierarchy, paths[""])
        while directory.is_relative_to(hierarchy.mount_point):
            if _can_hand_down(directory):
                return directory
            directory = directory.parent
    return None


def _can_hand_down(directory: Path) -> bool:
    try:
        fd = files.open_dir(directory)
    except OSError:
        return False
    try:
        if not set(files.read(fd, "cgroup.controllers").split()) >= NEEDED or not os.access(directory, os.W_OK):
            return False
        for controller in sorted(NEEDED):
            files.write(fd, "cgroup.subtree_control", f"+{controller}")
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        os.close(fd)
    return True


def _could_hand_down(directory: Path) -> bool:
    """Whether a group has what is needed, and only its own processes are in the way."""
    with contextlib.suppress(OSError):
        there = (directory / "cgroup.controllers").read_text().split()
        return set(there) >= NEEDED and os.access(directory / "cgroup.subtree_control", os.W_OK)
    return False


def find_parent(host_id: str, *, memory_bytes: int | None, io_devices: Sequence[str]) -> tuple[Parent, tuple[str, ...]]:
    """The node's parent group, made if absent, and what it cannot enforce, in words."""
    mounted = parse_mounts(Path("/proc/self/mountinfo").read_text())
    paths = own_paths(Path("/proc/self/cgroup").read_text())
    own = own_v1(mounted, paths)
    if own.keys() >= NEEDED:
        parent = v1.V1Parent(own, host_id, memory_bytes=memory_bytes, io_devices=io_devices)
        return parent, tuple(WORDS[c] for c in v1.CONTROLLERS if c not in own)
    base = v2_base(mounted, paths)
    if base is not None:
        parent2 = v2.V2Parent(base, host_id, memory_bytes=memory_bytes, io_devices=io_devices)
        return parent2, tuple(WORDS[c] for c in v2.CONTROLLERS if c not in parent2.controllers)
    why = "no writable cgroups"
    if any(_could_hand_down(directory_of(h, paths[""])) for h in mounted if h.version == 2 and "" in paths):
        why = "the cgroup that the node was started in holds processes; start it in one of its own below that"
    return NoParent(), (f"cpu, memory, process and disk io limits, and freezing ({why})",)


def block_devices(paths: Sequence[Path]) -> tuple[str, ...]:
    """`MAJOR:MINOR` of the whole disks that hold these paths; empty where they lie on none (overlay, tmpfs)."""
    found: dict[str, None] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            device = path.stat().st_dev
            node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve(strict=True)
            disk = node.parent if (node / "partition").exists() else node
            found[(disk / "dev").read_text().strip()] = None
    return tuple(found)


def parents_of(host_id: str) -> Iterator[Path]:
    """Every `pilfer/HOST_ID` in any hierarchy: also below groups that earlier runs were started in."""
    for hierarchy in parse_mounts(Path("/proc/self/mountinfo").read_text()):
        for directory, names, _ in os.walk(hierarchy.mount_point):
            if Path(directory).name == files.TOP:
                names[:] = [name for name in names if name == host_id]
                yield from (Path(directory, name) for name in names)
                names.clear()
