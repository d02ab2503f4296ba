"""What of the host's file systems goes into an ordinary user's view otherwise than into root's (`isolation/mounts.py`).

* A device node cannot be made (mknod(2) in a user namespace: EPERM), so the host's are bound, one by one.
* /sys shows the network of who mounts it, and an ordinary user has no way back into the host's network namespace: a
  child mounts it. Where that is refused (a container), the host's cannot be bound without what is mounted in it, since
  for a mount namespace that was made by an ordinary user the mounts of its parent are locked together
  (mount_namespaces(7)): it is bound whole, and what was mounted in it covered.
* /proc: the kernel mounts a fresh one only where a whole one can be seen (mount_too_revealing in fs/namespace.c), so
  the host's is in the spawner's view, and each sandbox mounts its own over it before anything of the task's runs. The
  cover is locked as any mount of a sandbox is out of reach for a task: it has no capabilities.
* Tasks have the user's own id, and so his rights to files: his home, wherever it is, is covered.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from isolation import _sandbox as sys_
from isolation import kernel

_DEVICE_ATTRIBUTES = sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NOEXEC


def device_trees(names: Iterable[str]) -> dict[str, int]:
    """Detached trees of the host's own nodes; those that it lacks (a container) are left out."""
    found: dict[str, int] = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            tree = kernel.open_tree(kernel.AT_FDCWD, f"/dev/{name}", recursive=False)
            kernel.set_attributes(tree, _DEVICE_ATTRIBUTES, recursive=False)
            found[name] = tree
    return found


def mount_sys() -> None:
    """A fresh /sys over the host's, which shows no interface but a loopback. Raises OSError."""
    pid = os.fork()  # it has our mount namespace, and a network namespace of its own
    if pid == 0:
        try:
            kernel.unshare(sys_.CLONE_NEWNET)
            kernel.mount("sysfs", "/sys", "sysfs", sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if number := os.waitstatus_to_exitcode(status):
        raise OSError(number, os.strerror(abs(number)), "/sys")


def put_devices(trees: dict[str, int], directory: Path) -> None:
    """Attaches each on an empty file in a directory of ours, and closes it."""
    for name, tree in trees.items():
        place = directory / name
        place.touch()
        kernel.move_mount(tree, str(place))
        os.close(tree)


def homes(uid: int) -> list[str]:
    """The home directory of this user, whose files tasks could read, where that is a directory of his own."""
    with contextlib.suppress(KeyError, OSError):
        home = Path(pwd.getpwuid(uid).pw_dir).resolve()
        # Not what several share, such as the root or /usr/sbin of the system's own accounts.
        if home.stat().st_uid == uid:
            return [str(home)]
    return []


def mounted_below(top: str, mountinfo: str) -> list[str]:
    """The mount points below a directory, none of which lies in another, from the text of a mountinfo file."""
    points = {line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()}
    found: list[str] = []
    for point in sorted(points):
        if point.startswith(top + "/") and not (found and point.startswith(found[-1] + "/")):
            found.append(point)
    return found
