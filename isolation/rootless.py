"""Sandboxes of an ordinary user: by user namespaces, in which that user has every capability and over which it has
none outside.

Two levels. The spawner enters a user namespace of its own once, and a mount namespace that belongs to it; there it
makes the view as root does (`isolation/mounts.py`). Each sandbox is then cloned into a user namespace below that:

* everything that it can see was mounted above it, so the kernel locks those mounts for it (mount_namespaces(7)): what
  is covered stays covered, what is read-only stays so, even for who had all capabilities in the sandbox;
* the spawner's own namespaces are above it, and so out of its reach;
* the kernel counts the processes of a user per user namespace (since Linux 5.14), so that RLIMIT_NPROC, which is
  worthless against one user's other processes, is a limit of this sandbox alone.

The user's id is mapped to itself and nothing else is. To nobody's (65534) would be wrong: everything that belongs to
somebody who is not mapped shows as nobody's, and would look like the task's own.

What differs from root's plan: ids are mapped first; the network namespace is fresh (there is no way back into the
host's for who makes one ahead: setns(2) wants capabilities over the host's) and its loopback is set up in the child;
setresuid(2) to the same id drops no capability, so capset(2) does; groups cannot be dropped (setgroups(2) is refused
where a gid was mapped without privileges), which `NOT_ENFORCED` says.

user_namespaces(7), capabilities(7)
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from isolation import _sandbox as sys_
from isolation import kernel
from isolation.errors import HostLacks
from isolation.spec import Limits
from isolation.step import Call, Step

#: Of every sandbox, beside `namespaces.CLONE_FLAGS`.
CLONE_FLAGS = sys_.CLONE_NEWUSER

_CAP_SYS_ADMIN = 21
_MS_SLAVE = 1 << 19  # linux/mount.h
#: linux/capability.h: version 3, this thread; then no bit in two times effective, permitted, inheritable.
_CAP_HEADER = struct.pack("Ii", 0x20080522, 0)
_NO_CAPABILITIES = bytes(24)

_AF_INET, _SOCK_DGRAM = 2, 2
_SIOCSIFFLAGS = 0x8914
_LOOPBACK_UP = struct.pack("16sh14x", b"lo", 1)
_ALL_FDS = 2**32 - 1

_RLIMIT_DATA = 2
_RLIMIT_NPROC = 6

_CHILD_OK = 0

#: Each of these is so for an ordinary user on any host.
NOT_ENFORCED = (
    "a user of its own for each task (the node does not run as root: tasks run as its user and with its groups, and "
    "can read whatever that user can read outside of the hidden places)",
)

_NO_GROUP = "no control group that is this user's"

#: What is not enforced for an ordinary user without groups: what it is about -> in words.
WITHOUT_GROUPS = {
    "cpu": f"cpu limits ({_NO_GROUP}: tasks share the cpus as any processes do)",
    "memory": f"memory limits of a task as a whole ({_NO_GROUP}: each process alone is held to it, and /tmp, and what "
    "runs out of it gets an error, which is not told as out of memory)",
    "pids": f"limits on the number of processes ({_NO_GROUP}, and the kernel is older than 5.14)",
    "io": f"disk io limits ({_NO_GROUP})",
    "freezer": f"freezing at the fence deadline ({_NO_GROUP}: tasks are killed instead)",
    "usage": f"exact usage ({_NO_GROUP}: what was not waited for is missing, and peak memory is the largest process')",
}

#: sysctls that forbid it: file, the value that does, what to do.
_SYSCTLS = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "an AppArmor profile that allows `userns` to the node's Python, or "
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


@dataclass(frozen=True, slots=True)
class UserSteps:
    """What a sandbox's plan has more, or instead, for an ordinary user."""

    #: Before all but `cgroup`.
    map_ids: list[Step]
    #: When the descriptors of the sandbox are set up and nothing else is open; empty for the host's network.
    loopback: list[Step]
    limits: list[Step]
    #: Instead of a change of user.
    drop: list[Step]
    #: Of /tmp, which no group counts; None where one does, or no limit was asked for.
    tmp_bytes: int | None


@dataclass(frozen=True, slots=True)
class Rootless:
    """The user whose sandboxes these are, from `enter`."""

    uid: int
    gid: int
    #: /proc of the host.
    proc_fd: int
    #: How many capabilities this kernel knows.
    capabilities: int
    #: The kernel counts processes per user namespace.
    counts_processes: bool

    def steps(self, limits: Limits, *, host_network: bool, first_fd: int, in_force: frozenset[str]) -> UserSteps:
        """`in_force`: which limits the sandbox's group enforces. `first_fd`: the lowest descriptor that is free after
        `stdio`."""
        free_fd = os.dup(self.proc_fd)  # the lowest: what open(2) will give in the child
        os.close(free_fd)
        map_ids = [
            step
            for name, number in (("uid_map", self.uid), ("gid_map", self.gid))
            for step in self._map(name, f"{number} {number} 1".encode(), free_fd)
        ]
        memory_bytes = limits.memory_bytes if "memory" not in in_force else None
        bounds = [] if memory_bytes is None else [_bound("memory of a process", _RLIMIT_DATA, memory_bytes)]
        if "pids" not in in_force and self.counts_processes:
            bounds.append(_bound("processes", _RLIMIT_NPROC, limits.pids + 1))  # PID 1, which is ours
        loopback = [] if host_network else _loopback(first_fd)
        return UserSteps(map_ids, loopback, bounds, _drop(self.uid, self.capabilities), memory_bytes)

    def _map(self, name: str, text: bytes, free_fd: int) -> list[Step]:
        calls: list[Call] = [
            (0, sys_.SYS_openat, self.proc_fd, b"self/" + name.encode(), os.O_WRONLY | os.O_CLOEXEC, 0),
            (0, sys_.SYS_write, free_fd, text, len(text)),
            (0, sys_.SYS_close, free_fd),
        ]
        return [Step("user namespace", name, call) for call in calls]


@cache
def _drop(uid: int, capabilities: int) -> list[Step]:
    """A new user namespace comes with all capabilities, and a bounding set of them all."""
    subject = str(uid)
    empty = [
        Step("user", subject, (0, sys_.SYS_prctl, kernel.PR_CAPBSET_DROP, number, 0, 0, 0))
        for number in range(capabilities)
    ]
    return [*empty, Step("user", subject, (0, sys_.SYS_capset, _CAP_HEADER, _NO_CAPABILITIES))]


def _bound(subject: str, which: int, value: int) -> Step:
    # struct rlimit64 is two words, soft and hard.
    return Step("limits", subject, (0, sys_.SYS_prlimit64, 0, which, [value, value], 0))


def _loopback(fd: int) -> list[Step]:
    """Sets the loopback interface of a fresh network namespace up; `fd` is the lowest that is free."""
    calls: list[Call] = [
        (0, sys_.SYS_socket, _AF_INET, _SOCK_DGRAM, 0),
        (0, sys_.SYS_ioctl, fd, _SIOCSIFFLAGS, _LOOPBACK_UP),
        (0, sys_.SYS_close_range, fd, _ALL_FDS, 0),
    ]
    return [Step("network", "lo", call) for call in calls]


def is_needed() -> bool:
    """Whether this process lacks what root makes sandboxes with."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1]
    return not int(effective, 16) >> _CAP_SYS_ADMIN & 1


def is_confined() -> bool:
    """Whether this process is in a user namespace that does not have all users."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def enter(proc_fd: int) -> Rootless:
    """Takes this process, which has one thread, into its own user and mount namespace for good. Raises HostLacks.

    `proc_fd`: /proc.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        raise HostLacks(
            "this is root without CAP_SYS_ADMIN (a container?): root needs that capability to make namespaces and "
            "mounts; give it (docker run --cap-add SYS_ADMIN, or --privileged for cgroups too), or start the node as "
            "an ordinary user"
        )
    try:
        kernel.unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS)
        _write("self/setgroups", "deny", proc_fd)
        _write("self/uid_map", f"{uid} {uid} 1", proc_fd)
        _write("self/gid_map", f"{gid} {gid} 1", proc_fd)
        # The first use of a capability: AppArmor lets the namespace be made, and gives none in it.
        kernel.mount("", "/", "", sys_.MS_REC | _MS_SLAVE)
    except OSError as error:
        raise HostLacks(_refused(error)) from error
    capabilities = int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1
    return Rootless(uid, gid, proc_fd, capabilities, _counts_processes())


def _write(name: str, text: str, dir_fd: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _refused(error: OSError) -> str:
    words = (
        f"an ordinary user needs user namespaces to run sandboxes, and this host refuses them "
        f"({os.strerror(error.errno or 0)})"
    )
    for name, value, remedy in _SYSCTLS:
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == value:
                return f"{words}: {name.replace('/', '.')} is {value}; as root: {remedy}; or start the node as root"
    if error.errno == errno.EPERM:
        words += ": seccomp or a chroot forbids it (a container? docker run --security-opt seccomp=unconfined)"
    return f"{words}; or start the node as root"


def _counts_processes() -> bool:
    """Whether RLIMIT_NPROC counts per user namespace: tried in one, in which two processes are the limit. Where the
    user's processes are counted all together, the second cannot even be made: the spawner and the node count too."""
    pid = os.fork()
    if pid == 0:
        os._exit(_try_count())
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == _CHILD_OK


def _try_count() -> int:
    """In a child: 0 where the second process can be made and the third cannot."""
    try:
        kernel.unshare(sys_.CLONE_NEWUSER)
        resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
        pid = os.fork()
    except OSError:
        return 1
    if pid == 0:
        try:
            third = os.fork()
        except BlockingIOError:  # EAGAIN
            os._exit(_CHILD_OK)
        if third:
            os.waitpid(third, 0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
