"""What a test may leave behind by mistake: threads, file descriptors, child processes, mounts.

Control groups are not compared: other nodes on this machine make theirs at the same time. `cgroups_of` finds those of
one host id, for tests that know theirs.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: Made once by grpc and asyncio for the whole process and kept (epoll, eventfd, timerfd); nothing can be said by them.
_UNTOLD = "anon_inode:"


@dataclass(frozen=True)
class Belongings:
    """What this process has at one moment."""

    threads: frozenset[threading.Thread]
    #: What each descriptor refers to, with how many do.
    descriptors: Counter[str]
    #: pid and start time, since a pid may come again.
    children: frozenset[tuple[int, float]]
    mounts: frozenset[str]
    _names: dict[tuple[int, float], str] = field(default_factory=dict, compare=False)

    @classmethod
    def now(cls) -> Belongings:
        # What is only kept alive by a cycle is not leaked; asyncio's transports close that way.
        gc.collect()
        children: dict[tuple[int, float], str] = {}
        for child in psutil.Process().children(recursive=True):
            try:
                children[(child.pid, child.create_time())] = " ".join(child.cmdline()) or child.name()
            except psutil.NoSuchProcess:
                continue
        return cls(
            threads=frozenset(filter(_is_told, threading.enumerate())),
            descriptors=_descriptors(),
            children=frozenset(children),
            mounts=frozenset(_mount_points()),
            _names=children,
        )

    def leaked_since(self, before: Belongings) -> list[str]:
        """In words, what is there now and was not before."""
        leaks = [f"thread {thread.name}" for thread in self.threads - before.threads]
        leaks += [f"descriptor of {what}" for what in self.descriptors - before.descriptors]
        leaks += [f"process {pid[0]}: {self._names[pid]}" for pid in self.children - before.children]
        leaks += [f"mount at {place}" for place in self.mounts - before.mounts]
        return sorted(leaks)


def _is_told(thread: threading.Thread) -> bool:
    # asyncio's executor ends with its loop, which pytest-asyncio closes after the fixtures.
    return not thread.daemon and not thread.name.startswith("asyncio_")


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (names alone are wanted)
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115  (may be no path: socket:[123])
        except OSError:
            # The descriptor of the listing itself.
            continue
        if not target.startswith(_UNTOLD):
            # Numbers of sockets and pipes are new each time; their count is what may grow.
            found[target.partition(":[")[0]] += 1
    return found


def _mount_points() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line.split(" ")[4] for line in lines]


def cgroups_of(host_id: str) -> list[Path]:
    """Every control group directory, of any hierarchy and depth, with this host id in its path."""
    found: list[Path] = []
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found += [Path(directory) / name for name in names if host_id in f"{directory}/{name}"]
    return found
