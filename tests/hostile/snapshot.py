"""What a machine has that a task could leave behind, at one moment, and what of it is new.

Others work on the same machine while tests run, so that only what is told to be ours counts: processes, groups and
namespaces of the spawner, files of its directories. What has no owner to be known by (System V objects, loop devices,
mounts of the first namespace, memory) is compared where the machine is ours alone (`ten_thousand.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from isolation.client import SpawnerConfig
from tests.support.leaks import cgroups_of

_KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
#: Groups and namespaces are kept for the next tasks: as many as ever ran at once, and a few more.
POOL = 80


@dataclass(frozen=True)
class Snapshot:
    #: Below the spawner.
    processes: frozenset[int]
    #: Mount points in the spawner's view.
    mounts: tuple[str, ...]
    descriptors: int
    groups: int
    #: Of all processes of the machine whose ancestor is the spawner.
    namespaces: frozenset[str]
    #: Names below the scratch root.
    files: frozenset[str]

    @classmethod
    def of(cls, spawner_pid: int, config: SpawnerConfig) -> Snapshot:
        spawner = psutil.Process(spawner_pid)
        pids = frozenset(child.pid for child in spawner.children(recursive=True))
        return cls(
            processes=pids,
            mounts=tuple(sorted(Path(f"/proc/{spawner_pid}/mountinfo").read_text().splitlines())),
            descriptors=spawner.num_fds(),
            groups=len(cgroups_of(config.host_id)),
            namespaces=frozenset(namespaces_of((spawner_pid, *pids))),
            files=frozenset(_files(config.scratch_root)),
        )

    def left_since(self, before: Snapshot) -> list[str]:
        """In words."""
        left = [f"process {pid}" for pid in self.processes - before.processes]
        left += [f"mount {line}" for line in self.mounts if line not in before.mounts]
        left += [f"namespace {name}" for name in self.namespaces - before.namespaces]
        left += [f"file {name}" for name in self.files - before.files]
        if self.descriptors > before.descriptors + POOL:
            left.append(f"{self.descriptors - before.descriptors} descriptors")
        if self.groups > before.groups + POOL:
            left.append(f"{self.groups - before.groups} groups")
        return left


def namespaces_of(pids: Iterable[int]) -> set[str]:
    """Of these processes, as far as they are still there."""
    found: set[str] = set()
    for pid in pids:
        for kind in _KINDS:
            with contextlib.suppress(OSError):
                found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
    return found


def _files(root: Path) -> Iterable[str]:
    for directory, _, names in os.walk(root):
        # Spare directories are empty and kept.
        if os.path.relpath(directory, root).startswith(".spare"):
            continue
        yield from (os.path.relpath(f"{directory}/{name}", root) for name in names)
