"""Attempts to become more than one is: identities, capabilities, bounds, priorities, programs with rights of their own.

Numbers are those of x86_64.
"""

import ctypes
import mmap
import os
import resource
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from attempts import attempt_aside, call, say, syscall

CAP_SYS_ADMIN, CAP_NET_RAW = 21, 13
PR_SET_SECCOMP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 22, 28, 38, 39
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_SET_MM = 23, 24, 47, 35
PR_SET_SECCOMP_OFF = 0
SCHED_FIFO, SCHED_RR, SCHED_DEADLINE = 1, 2, 6
IOPRIO_RT = 1 << 13
ADJ_FREQUENCY = 2


def all_capabilities(inheritable: int = 0) -> None:
    """Effective and permitted; of each the lower and the upper word."""
    words = struct.pack("6I", 0xFFFFFFFF, 0xFFFFFFFF, inheritable, 0x1FF, 0x1FF, 0)
    syscall(126, struct.pack("Ii", 0x20080522, 0), words)


def ambient() -> None:
    """Kept over exec, whatever the program."""
    all_capabilities(1 << CAP_NET_RAW)
    call("prctl", PR_CAP_AMBIENT, 2, CAP_NET_RAW, 0, 0)


def new_privileges() -> None:
    """prctl(2): cannot be unset; only a program that gets it back would tell."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)
    if call("prctl", PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0):
        raise PermissionError(1, "still set")


def no_filter() -> None:
    call("prctl", PR_SET_SECCOMP, PR_SET_SECCOMP_OFF, 0, 0, 0)


def bounding_set() -> str:
    left = [number for number in range(64) if call_or_none("prctl", PR_CAPBSET_READ, number, 0, 0, 0)]
    if not left:
        raise PermissionError(1, "empty")
    return f"{len(left)} capabilities can be had again"


def call_or_none(name: str, *args: object) -> int | None:
    try:
        return int(call(name, *args))
    except OSError:
        return None


def raise_limit(which: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(which, (0, 0))
        resource.setrlimit(which, (1, 1))
        return
    try:
        resource.setrlimit(which, (hard + 1, hard + 1))
    except ValueError as error:  # what Python makes of EPERM
        raise PermissionError(1, str(error)) from None


def deadline_policy() -> None:
    syscall(314, 0, struct.pack("IIQiI3Q", 48, SCHED_DEADLINE, 0, 0, 0, 10**7, 10**8, 10**8), 0)


def much_locked_memory() -> None:
    size = 64 << 20
    area = mmap.mmap(-1, size)
    call("mlock", ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area))), ctypes.c_size_t(size))


def own_setuid_copy() -> str:
    """Of a program that is ours: it runs as us, whoever starts it."""
    copy = Path("/tmp/own-copy")
    copy.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(copy, 0, 0)
    copy.chmod(0o6755)
    return run(str(copy))


def run(path: str) -> str:
    """Whom a program runs as; raises where it is still us."""
    done = subprocess.run([path, "-u"], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode or done.stdout.strip() == str(os.getuid()):
        raise PermissionError(1, f"{done.returncode} {done.stdout} {done.stderr}")
    return "as " + done.stdout


def setuid_program(path: str) -> str:
    """One of the machine's: asked for root's identity, without a password."""
    if not os.stat(path).st_mode & stat.S_ISUID:
        raise PermissionError(1, "not setuid")
    done = subprocess.run(
        [path, "-c", "id -u"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
    )
    if done.stdout.strip() != "0":
        raise PermissionError(1, done.stderr)
    return "as root"


def device(kind: int, major: int, minor: int) -> None:
    path = f"/tmp/device-{kind}-{major}-{minor}"
    os.mknod(path, kind | 0o666, os.makedev(major, minor))
    os.close(os.open(path, os.O_RDONLY))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "setuid": lambda: os.setuid(0),
    "setresuid": lambda: os.setresuid(0, 0, 0),
    "setresuid to a neighbour": lambda: os.setresuid(os.getuid() + 1, os.getuid() + 1, os.getuid() + 1),
    "setgid": lambda: os.setgid(0),
    "setgroups": lambda: os.setgroups([0]),
    "all capabilities": all_capabilities,
    "ambient capability": ambient,
    "capabilities to gain": bounding_set,
    "drop from the bounding set": lambda: call("prctl", PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0),
    "securebits": lambda: call("prctl", PR_SET_SECUREBITS, 1, 0, 0, 0),
    "new privileges again": new_privileges,
    "no filter again": no_filter,
    "own memory map": lambda: call("prctl", PR_SET_MM, 8, ctypes.c_ulong(0x1000), 0, 0),
    "su": lambda: setuid_program("/usr/bin/su"),
    "own setuid copy": own_setuid_copy,
    "chown to root": lambda: os.chown("/tmp", 0, 0),
    "nice": lambda: os.nice(-1),
    "fifo": lambda: os.sched_setscheduler(0, SCHED_FIFO, os.sched_param(1)),
    "round robin": lambda: os.sched_setscheduler(0, SCHED_RR, os.sched_param(1)),
    "deadline": deadline_policy,
    "real-time io": lambda: syscall(251, 1, 0, IOPRIO_RT),
    "locked memory": much_locked_memory,
    "block device": lambda: device(stat.S_IFBLK, 254, 0),
    "character device": lambda: device(stat.S_IFCHR, 1, 1),
    "kernel log": lambda: device(stat.S_IFCHR, 1, 11),
    "less out of memory": lambda: Path("/proc/self/oom_score_adj").write_text("-1000"),
    "clock": lambda: call("clock_adjtime", 0, struct.pack("I204x", ADJ_FREQUENCY)),
    "adjtimex": lambda: call("adjtimex", struct.pack("I204x", ADJ_FREQUENCY)),
}
LIMITS = ("CORE", "NOFILE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE")


def main() -> None:
    for name, try_it in ATTEMPTS.items():
        attempt_aside(name, try_it)
    for name in LIMITS:
        attempt_aside(f"limit {name}", lambda name=name: raise_limit(getattr(resource, f"RLIMIT_{name}")))
    say("done", "yes")


if __name__ == "__main__":
    main()
