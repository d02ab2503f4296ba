"""The kernel's calls that Python 3.11 has no function for, by their own names.

Thin: each function is one system call. Numbers and flags come from the C extension, and so from the headers of the
machine that built it. Used by the spawner alone, which is single-threaded; all raise OSError.
"""

from __future__ import annotations

import os
import struct

from isolation import _sandbox as sys_

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MNT_DETACH = 2
CLOCK_BOOTTIME = 7
TFD_TIMER_ABSTIME = 1

#: prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

#: keyctl(2)
KEYCTL_JOIN_SESSION_KEYRING = 1

_TREE_FLAGS = sys_.OPEN_TREE_CLONE | sys_.OPEN_TREE_CLOEXEC

#: Of a bound tree: no setuid programs, no device nodes (mount_setattr(2)).
SAFE = sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NODEV
SAFE_READ_ONLY = SAFE | sys_.MOUNT_ATTR_RDONLY


def unshare(flags: int) -> None:
    sys_.syscall(sys_.SYS_unshare, flags)


def setns(fd: int, kind: int) -> None:
    sys_.syscall(sys_.SYS_setns, fd, kind)


def mount(source: str, target: str, fstype: str, flags: int, options: str = "") -> None:
    sys_.syscall(sys_.SYS_mount, source.encode(), os.fsencode(target), fstype.encode(), flags, options.encode())


def open_tree(dir_fd: int, path: str, *, recursive: bool) -> int:
    """A detached copy of the mount at a path, as a descriptor; it disappears when the last one is closed."""
    flags = _TREE_FLAGS | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return sys_.syscall(sys_.SYS_open_tree, dir_fd, os.fsencode(path), flags)


def move_mount(tree_fd: int, target: str) -> None:
    sys_.syscall(sys_.SYS_move_mount, tree_fd, b"", AT_FDCWD, os.fsencode(target), sys_.MOVE_MOUNT_F_EMPTY_PATH)


def set_attributes(tree_fd: int, attributes: int, *, recursive: bool) -> None:
    """Sets mount attributes (MOUNT_ATTR_*) on a tree; what is set already stays set."""
    attr = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    sys_.syscall(sys_.SYS_mount_setattr, tree_fd, b"", flags, attr, len(attr))


def open_without_links(dir_fd: int, path: str, flags: int) -> int:
    """openat2(2) with RESOLVE_NO_SYMLINKS: ELOOP where any component is a symbolic link."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, sys_.RESOLVE_NO_SYMLINKS | sys_.RESOLVE_NO_MAGICLINKS)
    return sys_.syscall(sys_.SYS_openat2, dir_fd, os.fsencode(path), how, len(how))


def pivot_root_here() -> None:
    """Makes the current directory, a mount point, the root, and lets go of the old one (pivot_root(2), NOTES)."""
    sys_.syscall(sys_.SYS_pivot_root, b".", b".")
    sys_.syscall(sys_.SYS_umount2, b".", MNT_DETACH)
    os.chdir("/")


def signal_fd(*signals: int) -> int:
    """A non-blocking descriptor that becomes readable with one of these signals, which must be blocked."""
    mask = sum(1 << (number - 1) for number in signals).to_bytes(8, "little")
    return sys_.syscall(sys_.SYS_signalfd4, -1, mask, len(mask), sys_.SFD_CLOEXEC | sys_.SFD_NONBLOCK)


def timer_fd() -> int:
    """On CLOCK_BOOTTIME, which counts while the machine is suspended; poll's own timeouts do not."""
    return sys_.syscall(sys_.SYS_timerfd_create, CLOCK_BOOTTIME, sys_.TFD_CLOEXEC | sys_.TFD_NONBLOCK)


def arm_timer(fd: int, at_ns: int) -> None:
    """Fires once at a CLOCK_BOOTTIME instant; 0 disarms."""
    spec = struct.pack("qqqq", 0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
    sys_.syscall(sys_.SYS_timerfd_settime, fd, TFD_TIMER_ABSTIME, spec, None)
