"""Runs a command as an ordinary user, who has nothing but what everybody may: `python -m tests.support.ordinary_user`.

    python ordinary_user.py UID GID [--open PATH]... [--group DIRECTORY]... -- COMMAND...

The command keeps the pid. What it needs may lie where only root may go (a Python below /root): so in a mount namespace
of its own the way to each `--open` path is opened: the first directory on it that not everybody may enter is covered
with an empty one, in which the path is bound again.

It also enters control groups, which the user could not (`tests/support/delegated_groups.py`).

This must not: be run by who is no root, or leave anything: its mounts go with its mount namespace.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Belong to nobody on any Linux that these tests run on.
UID = GID = 54_321

_OTHERS = stat.S_IROTH | stat.S_IXOTH


def prefix(*more: Path, groups: Sequence[Path] = ()) -> list[str]:
    """What goes before a command; `more`: paths that it needs, beside this project, Python and what it is made of.
    `groups`: directories of control groups that it enters."""
    needed = dict.fromkeys([ROOT, Path(sys.prefix), Path(sys.base_prefix), *more])
    opened = [word for path in needed for word in ("--open", str(path.resolve()))]
    entered = [word for group in groups for word in ("--group", str(group))]
    return [sys.executable, str(Path(__file__).resolve()), str(UID), str(GID), *opened, *entered, "--"]


def environment(home: Path) -> dict[str, str]:
    """Of such a command, but for what it is about."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {
        "PATH": path,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "PATIENCE": os.environ.get("PATIENCE", "1"),
    }


def directory() -> Path:
    """A new one that belongs to that user and that he may reach; the caller removes it."""
    made = Path(tempfile.mkdtemp(prefix="pilfer-ordinary-"))
    os.chown(made, UID, GID)
    return made


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uid", type=int)
    parser.add_argument("gid", type=int)
    parser.add_argument("--open", type=Path, action="append", default=[])
    parser.add_argument("--group", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    for group in given.group:
        (group / "cgroup.procs").write_text("0")
    _open_ways(given.open)
    os.setgroups([])
    os.setresgid(given.gid, given.gid, given.gid)
    os.setresuid(given.uid, given.uid, given.uid)
    os.execvp(given.command[0], given.command)


def _open_ways(paths: Sequence[Path]) -> None:
    sys.path.insert(0, str(ROOT))
    from isolation import _sandbox as sys_
    from isolation import kernel

    kernel.unshare(sys_.CLONE_NEWNS)
    kernel.mount("", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)
    closed: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        for step in reversed((path, *path.parents)):
            if step.stat().st_mode & _OTHERS != _OTHERS:
                if step == path:
                    raise SystemExit(f"{path} is not for everybody: run this from a copy that is")
                closed[step].append(path)
                break
    for cover, inside in closed.items():
        # What lies in another of them comes with it: this project's Python may be a part of the project.
        outermost = [path for path in inside if not any(other in path.parents for other in inside)]
        trees = {path: kernel.open_tree(kernel.AT_FDCWD, str(path), recursive=True) for path in outermost}
        kernel.mount("cover", str(cover), "tmpfs", 0, "mode=755,size=1m")
        for path, tree in trees.items():
            path.mkdir(parents=True)
            kernel.move_mount(tree, str(path))
            os.close(tree)


if __name__ == "__main__":
    main(sys.argv[1:])
