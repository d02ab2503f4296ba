"""Who sandboxes run as: a user of its own for each, from a range that no account on the host has.

What a user of its own buys: the kernel counts much per user (inotify instances, pipe buffers, pending signals, message
queues, keys), and a task must not use up another's share; and a task owns nothing of another's, wherever the two meet:
over a writable share, a socket, the host's network. The group is one for all, so that a writable share can be opened
to tasks by `chgrp` and `chmod g+w`.

A user id is used again last: the one that has been unused longest goes first, and only when nothing of its sandbox
runs any more. Files that a task left in a writable share stay its user's, so after a whole round of the range another
task may own them; a round is 65,536 tasks long, and starts anywhere, so that a restart does not begin with the ids of
those before it.

This module hands out numbers; it changes nobody's identity (`isolation/plan.py` has that step).
"""

from __future__ import annotations

import errno
import os
from array import array

from isolation.config import NOBODY, SpawnerConfig
from isolation.errors import StepFailed


class Users:
    """Invariant: an id is either in the ring between head and tail, or with exactly one sandbox."""

    def __init__(self, first: int, count: int, gid: int, *, start: int = 0) -> None:
        """`start`: index of the id that goes first. A count of 1 means: the same for all, at the same time."""
        self.gid = gid
        ids = range(first, first + count)
        # Four bytes an id: a deque of 65,536 numbers would be a sixth of the whole spawner.
        self._ring: array[int] = array("I", (*ids[start:], *ids[:start]))
        self._head = self._tail = 0
        self._free_count = count

    @property
    def is_shared(self) -> bool:
        return len(self._ring) == 1

    def take(self) -> int:
        """The id that has been unused longest. Raises StepFailed."""
        if self.is_shared:
            return self._ring[0]
        if not self._free_count:
            raise StepFailed("user", errno.EAGAIN, "", "every user id of the range is in use: make `--uids` larger")
        uid = self._ring[self._head]
        self._head = (self._head + 1) % len(self._ring)
        self._free_count -= 1
        return uid

    def give_back(self, uid: int) -> None:
        """Nothing of its sandbox runs any more."""
        if self.is_shared:
            return
        self._ring[self._tail] = uid
        self._tail = (self._tail + 1) % len(self._ring)
        self._free_count += 1


def find_users(config: SpawnerConfig, proc_fd: int) -> tuple[Users, tuple[str, ...]]:
    """The range of the configuration where this user namespace has it, else nobody for all, and what that means.

    `proc_fd`: /proc. Inside of a container, often only 65,536 ids are mapped (user_namespaces(7)): setresuid(2) to
    any other answers EINVAL.
    """
    first, count, gid = config.uid_base, config.uid_count, config.gid
    if _maps(_read("self/uid_map", proc_fd), first, count) and _maps(_read("self/gid_map", proc_fd), gid, 1):
        return Users(first, count, gid, start=int.from_bytes(os.urandom(4), "big") % count), ()
    missing = (
        f"a user of its own for each task (user ids {first} to {first + count - 1} are not mapped in this user "
        f"namespace: all tasks run as {NOBODY}; name a range that is, with `--uids FIRST:COUNT`)"
    )
    return Users(NOBODY, 1, NOBODY), (missing,)


def _read(name: str, dir_fd: int) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _maps(id_map: str, first: int, count: int) -> bool:
    """Whether all of these ids are in a uid_map or gid_map: lines of first id inside, first outside, length."""
    reached = first
    for inside, _, length in sorted(tuple(map(int, line.split())) for line in id_map.splitlines()):
        if inside <= reached < inside + length:
            reached = inside + length
    return reached >= first + count
