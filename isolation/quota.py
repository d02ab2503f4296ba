"""Exact limits of scratch directories, where their file system is mounted with project quotas (ext4, XFS: prjquota).

Every directory gets a project id of its own, which what is made in it inherits, and the kernel refuses to let the
project have more than its limit: the task's write fails with EDQUOT (Disk quota exceeded), and the task goes on. So
nothing has to be measured, nobody is ended, and a file without a name counts like any other.

The owner of a file may change its project (ioctl_xfs_fsgetxattr(2); the kernel forbids it in a user namespace alone),
and so leave it: the system call filter refuses that to tasks (`seccomp.py`), and the watch (`scratch_watch.py`) is on
here too.

Ids are taken in turn from a range of our own, beginning anywhere, so that several nodes that share a file system do
not meet; one that has anything is passed over. They are not derived from the user id, since what a sandbox left is
still being removed, and counts, when its user is another's.

quotactl_fd(2), from Linux 5.14 on; linux/quota.h, linux/fs.h, linux/dqblk_xfs.h
"""

from __future__ import annotations

import fcntl
import random
import struct

from isolation import _sandbox as sys_
from isolation.scratch_policy import Space

#: The range: 2^28 ids that start with these four bits.
_IDS_FIRST = 0x5000_0000
_IDS_COUNT = 0x1000_0000
_TRIES = 64

#: The same on every architecture (it is newer than the tables' unification).
_SYS_QUOTACTL_FD = 443
_PROJECT = 2
_GET_STATE = 0x5808  # Q_XGETQSTATV
_GET = 0x800007  # Q_GETQUOTA
_SET = 0x800008  # Q_SETQUOTA
#: FS_QUOTA_PDQ_ENFD: limits of projects are enforced, not only counted.
_ENFORCED = 1 << 5
#: struct fs_quota_statv: version, pad, flags, ...
_STATE = struct.Struct("=bBH")
_STATE_BYTES = 256
_STATE_VERSION = 1
#: struct if_dqblk: hard and soft limit of blocks (KiB), used bytes, the same of files, two times, which are valid.
_BLOCK = struct.Struct("=8QI4x")
_LIMITS_VALID = 1 | 4  # QIF_BLIMITS, QIF_ILIMITS
_UNIT = 1024

#: FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR; struct fsxattr: flags, extent size, extents, project, hint, padding.
_GET_ATTRIBUTES = 0x801C581F
_SET_ATTRIBUTES = 0x401C5820
_ATTRIBUTES = struct.Struct("=5I8x")
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT


def are_enforced(fd: int) -> bool:
    """Whether the file system of this descriptor enforces project quotas."""
    state = bytearray(_STATE_BYTES)
    state[0] = _STATE_VERSION
    try:
        _quotactl(fd, _GET_STATE, 0, state)
    except OSError:
        return False  # no quotas, a kernel before 5.14, or no privilege to use them
    _, _, flags = _STATE.unpack_from(state)
    return bool(flags & _ENFORCED)


class Projects:
    """Gives projects to directories of one file system."""

    def __init__(self, fd: int) -> None:
        """fd: of any directory there; the caller's."""
        self._fd = fd
        self._next = random.randrange(_IDS_COUNT)  # noqa: S311  (not for secrets)

    def check(self) -> None:
        """Raises OSError where no limit can be set."""
        self._set(self._take(), Space(0, 0))

    def bound(self, directory_fd: int, limit: Space) -> int:
        """Puts an empty directory under a limit and gives the id of its project. Raises OSError."""
        project = self._take()
        self._set(project, limit)
        set_project(directory_fd, project)
        return project

    def release(self, project: int) -> None:
        """Lifts the limit; what is left in the directory may then be moved and removed. Raises OSError."""
        self._set(project, Space(0, 0))

    def used(self, project: int) -> Space:
        """What it has now. Raises OSError."""
        block = bytearray(_BLOCK.size)
        _quotactl(self._fd, _GET, project, block)
        _, _, size, _, _, files, *_ = _BLOCK.unpack(block)
        return Space(size, files)

    def _take(self) -> int:
        for _ in range(_TRIES):
            self._next = (self._next + 1) % _IDS_COUNT
            project = _IDS_FIRST + self._next
            if self.used(project) == Space(0, 0):
                return project
        raise OSError(f"{_TRIES} project ids in a row are in use")

    def _set(self, project: int, limit: Space) -> None:
        """0: no limit."""
        blocks = -(-limit.bytes // _UNIT)
        data = _BLOCK.pack(blocks, 0, 0, limit.files, 0, 0, 0, 0, _LIMITS_VALID)
        _quotactl(self._fd, _SET, project, bytearray(data))


def set_project(directory_fd: int, project: int) -> None:
    """Of a directory, and of what is made in it from now on; 0: of no project. Raises OSError."""
    data = bytearray(_ATTRIBUTES.size)
    fcntl.ioctl(directory_fd, _GET_ATTRIBUTES, data)
    flags, extent_size, extents, _, hint = _ATTRIBUTES.unpack(data)
    flags = flags | _INHERIT if project else flags & ~_INHERIT
    fcntl.ioctl(directory_fd, _SET_ATTRIBUTES, _ATTRIBUTES.pack(flags, extent_size, extents, project, hint))


def project_of(fd: int) -> int:
    """Raises OSError."""
    data = bytearray(_ATTRIBUTES.size)
    fcntl.ioctl(fd, _GET_ATTRIBUTES, data)
    return int(_ATTRIBUTES.unpack(data)[3])


def _quotactl(fd: int, command: int, project: int, data: bytearray) -> None:
    sys_.syscall(_SYS_QUOTACTL_FD, fd, command << 8 | _PROJECT, project, data)


def find(fd: int) -> Projects | None:
    """Projects of the file system of this directory, which stays open; None where quotas are not enforced, or not ours
    to set."""
    if not are_enforced(fd):
        return None
    projects = Projects(fd)
    try:
        projects.check()
    except OSError:
        return None
    return projects
