"""Control groups that an ordinary user may use, as a system's manager hands them out (systemd: Delegate=yes).

Version 1: a directory of the user's in each hierarchy. Version 2: a directory of the user's with a leaf in it for the
processes, since a group that has children with controllers may hold none itself.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from isolation.cgroup import find, v2
from tests.support.wait import wait_until_sync

#: What the user needs to write in a group of version 2 that was handed to him (cgroup-v2.rst, Delegation).
_V2_FILES = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


@contextlib.contextmanager
def delegated_groups(uid: int, gid: int) -> Iterator[list[Path]]:
    """The groups to enter, below those of this process; empty where there can be none. Removed in the end."""
    name = f"pilfer-test-{uuid.uuid4()}"
    mounted = find.parse_mounts(Path("/proc/self/mountinfo").read_text())
    paths = find.own_paths(Path("/proc/self/cgroup").read_text())
    own = find.own_v1(mounted, paths)
    made: list[Path] = []
    try:
        if own.keys() >= find.NEEDED:
            _make_v1(list(dict.fromkeys(own.values())), name, uid, gid, made)
            yield list(made)
        else:
            base = find.v2_base(mounted, paths)
            yield [] if base is None else [_make_v2(base / name, uid, gid, made)]
    finally:
        for directory in reversed(made):
            wait_until_sync(partial(_is_removed, directory), what=f"{directory} can be removed")


def _make_v1(parents: list[Path], name: str, uid: int, gid: int, made: list[Path]) -> None:
    for parent in parents:
        directory = parent / name
        directory.mkdir()
        made.append(directory)
        _give(directory, uid, gid, ("cgroup.procs", "tasks"))


def _make_v2(top: Path, uid: int, gid: int, made: list[Path]) -> Path:
    for parent in (top.parent, top):
        if parent == top:
            top.mkdir()
            made.append(top)
            _give(top, uid, gid, _V2_FILES)
        there = (parent / "cgroup.controllers").read_text().split()
        for controller in sorted(set(v2.CONTROLLERS) & set(there)):
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    leaf = top / "leaf"
    leaf.mkdir()
    made.append(leaf)
    _give(leaf, uid, gid, _V2_FILES)
    return leaf


def _give(directory: Path, uid: int, gid: int, names: tuple[str, ...]) -> None:
    for path in (directory, *(directory / name for name in names)):
        os.chown(path, uid, gid)


def _is_removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
