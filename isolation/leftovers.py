"""Ends what an earlier run of this node left in its cgroups, before anything else is done.

A spawner that was killed takes its sandboxes with it, except frozen ones: on version 1 a frozen process does not die
of SIGKILL. So every process below our own parents is signaled while it is frozen, then thawed (thawing first would
let it move on), then the groups are removed. Another node's groups are never touched: they have another host id.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from isolation.cgroup import files, find

#: For processes to die and groups to become empty; more means that one sits in the kernel (a dead disk or server).
PATIENCE_S = 5.0
_LOOK_S = 0.002


def clean(host_id: str) -> tuple[int, list[Path]]:
    """Kills, thaws and removes; gives the number of processes found and the groups that would not go."""
    parents = list(find.parents_of(host_id))
    killed = sum(kill(parent) for parent in parents)
    for parent in parents:
        thaw(parent)
    deadline = time.monotonic() + PATIENCE_S
    left = [parent for parent in parents if not remove(parent)]
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        for parent in left:  # one may have been forked, or thawed by another's hand, in between
            kill(parent)
            thaw(parent)
        left = [parent for parent in left if not remove(parent)]
    return killed, left


def kill(parent: Path) -> int:
    """SIGKILL to everything in a group and below."""
    try:
        fd = files.open_dir(parent)
    except FileNotFoundError:
        return 0
    try:
        return files.kill_below(fd)
    finally:
        os.close(fd)


def thaw(parent: Path) -> None:
    """Thaws a group and all below; quiet where there is nothing to thaw."""
    for directory, _, names in os.walk(parent):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if name in names:
                with contextlib.suppress(OSError):
                    Path(directory, name).write_text(value)


def remove(parent: Path) -> bool:
    """Removes a group and those below, deepest first; False where one is still in use."""
    done = True
    for directory, _, _ in os.walk(parent, topdown=False):
        try:
            Path(directory).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            done = False
    return done
