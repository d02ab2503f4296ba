"""Attempts to read, write or steer other processes: PID 1 of the sandbox, and one's own child beside it.

Numbers are those of x86_64.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable

from attempts import attempt_aside, call, say, syscall

PTRACE_ATTACH, PTRACE_SEIZE, PTRACE_DETACH = 16, 0x4206, 17
PRIO_PROCESS, PRIO_USER = 0, 2
IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 1, 3 << 13
SECRET = ctypes.create_string_buffer(b"a word that only its owner should know")
TAKEN = ctypes.create_string_buffer(len(SECRET))


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def vector(buffer: object) -> Vector:
    return Vector(ctypes.addressof(buffer), ctypes.sizeof(buffer))  # type: ignore[arg-type]  # a ctypes buffer


def attach(pid: int) -> None:
    syscall(101, PTRACE_ATTACH, pid, 0, 0)
    os.waitpid(pid, 0)
    syscall(101, PTRACE_DETACH, pid, 0, 0)


def seize(pid: int) -> None:
    syscall(101, PTRACE_SEIZE, pid, 0, 0)


def read(pid: int) -> str:
    syscall(310, pid, ctypes.byref(vector(TAKEN)), 1, ctypes.byref(vector(SECRET)), 1, 0)
    return TAKEN.value.decode()


def write(pid: int) -> None:
    syscall(311, pid, ctypes.byref(vector(TAKEN)), 1, ctypes.byref(vector(SECRET)), 1, 0)


def read_by_file(pid: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(ctypes.addressof(SECRET))
        return memory.read(len(SECRET.value)).decode()


def take_descriptor(pid: int) -> None:
    syscall(438, os.pidfd_open(pid), 0, 0)


def take_descriptor_by_file(pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/fd/0", os.O_RDONLY))


def compare(pid: int) -> None:
    syscall(312, os.getpid(), pid, 0, 0, 0)


def trace_me(_: int) -> None:
    syscall(101, 0, 0, 0, 0)


ATTEMPTS: dict[str, Callable[[int], object]] = {
    "attach": attach,
    "seize": seize,
    "read memory": read,
    "write memory": write,
    "read memory by file": read_by_file,
    "take a descriptor": take_descriptor,
    "take a descriptor by file": take_descriptor_by_file,
    "compare": compare,
    "be traced": trace_me,
    "priority": lambda pid: call("setpriority", PRIO_PROCESS, pid, 19),
    "priority with all of the user's": lambda _: call("setpriority", PRIO_USER, 0, 19),
    "policy": lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    "policy by attributes": lambda pid: syscall(
        314, pid, struct.pack("IIQiI3Q", 48, os.SCHED_IDLE, 0, 0, 0, 0, 0, 0), 0
    ),
    "processors": lambda pid: os.sched_setaffinity(pid, {0}),
    "io priority": lambda pid: syscall(251, IOPRIO_WHO_PROCESS, pid, IOPRIO_IDLE),
    "limits": lambda pid: resource.prlimit(pid, resource.RLIMIT_STACK, (1 << 20, 1 << 20)),
    "name": lambda pid: open(f"/proc/{pid}/comm", "w").close(),
}


def sibling() -> int:
    """A child that waits, with the same memory as this."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        while True:
            signal.pause()
    return pid


def main() -> None:
    victim = 1 if sys.argv[1] == "pid-1" else sibling()
    if victim == os.getpid():  # where this is PID 1 itself, a child of it attacks
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
    for name, try_it in ATTEMPTS.items():
        attempt_aside(name, lambda try_it=try_it: try_it(victim))
    if victim != 1:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    say("done", "yes")


if __name__ == "__main__":
    main()
