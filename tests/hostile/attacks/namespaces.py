"""Attempts to get out of the view: mounts, roots and namespaces of every kind. Numbers are those of x86_64."""

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from attempts import attempt, attempt_aside, call, say, syscall

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 32, 4096, 16384, 1 << 18, 2
AT_FDCWD = -100
AT_RECURSIVE, OPEN_TREE_CLONE, AT_EMPTY_PATH = 0x8000, 1, 0x1000
FLAGS = {
    "time": 0x80,
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
PLACE = b"/tmp/attack"


def mount(source: bytes, target: bytes, kind: bytes, flags: int) -> int:
    return int(call("mount", source, target, kind, ctypes.c_ulong(flags), None))


def remount_root() -> None:
    """Makes the root of the view writable."""
    mount(b"", b"/", b"", MS_REMOUNT | MS_BIND)


def pivot_root() -> None:
    """Into a mount of its own, or, where it can make none, a mount that is there."""
    try:
        mount(b"own", PLACE, b"tmpfs", 0)
    except OSError:
        syscall(155, b"/tmp", PLACE)
        raise
    Path("/tmp/attack/old").mkdir()
    syscall(155, PLACE, b"/tmp/attack/old")


def with_mounts_of_its_own(try_it: Callable[[], object]) -> Callable[[], object]:
    """So that one attempt that succeeds does not spoil the place for the next one."""

    def try_apart() -> object:
        with contextlib.suppress(OSError):
            call("unshare", FLAGS["mnt"])
        return try_it()

    return try_apart


def own_namespace(kind: str) -> None:
    with open(f"/proc/self/ns/{kind}") as namespace:
        call("setns", namespace.fileno(), 0)


def namespace_of_pid_1(kind: str) -> None:
    with open(f"/proc/1/ns/{kind}") as namespace:
        call("setns", namespace.fileno(), 0)


def clone(flags: int) -> None:
    """By the raw call: the C library's wrapper wants a stack."""
    pid = syscall(56, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def clone3(flags: int) -> None:
    arguments = struct.pack("11Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = syscall(435, arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def new_mount() -> None:
    """A tmpfs by the new calls: context, settings, mount, attach."""
    context = syscall(430, b"tmpfs", 0)
    syscall(431, context, 6, 0, 0, 0)  # FSCONFIG_CMD_CREATE
    tree = syscall(432, context, 0, 0)
    syscall(429, tree, b"", AT_FDCWD, PLACE, 4)  # MOVE_MOUNT_F_EMPTY_PATH


MOUNTS: dict[str, Callable[[], object]] = {
    "mount tmpfs": lambda: mount(b"own", PLACE, b"tmpfs", 0),
    "mount proc": lambda: mount(b"own", PLACE, b"proc", 0),
    "bind mount": lambda: mount(b"/usr", PLACE, b"", MS_BIND | MS_REC),
    "make root private": lambda: mount(b"", b"/", b"", MS_PRIVATE),
    "remount root": remount_root,
    "umount": lambda: call("umount2", b"/proc", MNT_DETACH),
    "pivot_root": pivot_root,
    "chroot": lambda: os.chroot("/tmp"),
    "open_tree clone": lambda: syscall(428, AT_FDCWD, b"/usr", OPEN_TREE_CLONE | AT_RECURSIVE),
    "fsopen, fsmount, move_mount": new_mount,
}


def main() -> None:
    Path(os.fsdecode(PLACE)).mkdir(exist_ok=True)
    for name, try_it in MOUNTS.items():
        attempt_aside(name, with_mounts_of_its_own(try_it))
    for name, flag in FLAGS.items():
        attempt_aside(f"unshare {name}", lambda flag=flag: call("unshare", flag))
        attempt_aside(f"clone3 {name}", lambda flag=flag: clone3(flag))
        if name != "time":  # in clone that bit belongs to the exit signal
            attempt_aside(f"clone {name}", lambda flag=flag: clone(flag))
        attempt_aside(f"setns own {name}", lambda name=name: own_namespace(name))
        attempt_aside(f"setns pid 1's {name}", lambda name=name: namespace_of_pid_1(name))
    attempt("clone3 without flags", lambda: clone3(0))
    say("done", "yes")


if __name__ == "__main__":
    main()
