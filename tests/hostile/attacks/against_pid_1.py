"""The task against PID 1 of its own sandbox, which runs as the same user: `against_pid_1.py [exit | spin]`.

PID 1 is what notices the command's end, the spawner's death and the deadline: a task that could hold it up would
outlive them.
"""

import ctypes
import os
import resource
import sys
import time

from attempts import attempt, say, syscall

SCHED_IDLE = 5
_PRIO_PROCESS, _PRIO_USER = 0, 2
_IOPRIO_IDLE = 3 << 13
_X86 = os.uname().machine == "x86_64"
SYS_PRLIMIT64 = 302 if _X86 else 261
SYS_IOPRIO_SET = 251 if _X86 else 30
SYS_SCHED_SETATTR = 314 if _X86 else 274


def bound(which: int, value: int) -> None:
    _, hard = resource.prlimit(1, which)
    resource.prlimit(1, which, (value, hard))


def write(path: str) -> None:
    """A value that all of these files take."""
    with open(path, "w") as file:
        file.write("1000")


def set_attributes() -> None:
    """Slower by the newest call."""
    attributes = b"".join(bytes(ctypes.c_uint32(word)) for word in (48, SCHED_IDLE)) + bytes(40)
    syscall(SYS_SCHED_SETATTR, 1, ctypes.create_string_buffer(attributes), 0)


attempt("descriptors", lambda: bound(resource.RLIMIT_NOFILE, 0))
attempt("its memory", lambda: bound(resource.RLIMIT_AS, 0))
attempt("its signals", lambda: bound(resource.RLIMIT_SIGPENDING, 0))
attempt(
    "its limits read", lambda: syscall(SYS_PRLIMIT64, 1, resource.RLIMIT_NOFILE, 0, ctypes.create_string_buffer(16))
)
attempt("idle", lambda: os.sched_setscheduler(1, SCHED_IDLE, os.sched_param(0)))
attempt("idle by attributes", set_attributes)
attempt("nice", lambda: os.setpriority(_PRIO_PROCESS, 1, 19))
attempt("one processor", lambda: os.sched_setaffinity(1, {min(os.sched_getaffinity(0))}))
attempt("io class", lambda: syscall(SYS_IOPRIO_SET, 1, 1, _IOPRIO_IDLE))
attempt("nice of all of its user", lambda: os.setpriority(_PRIO_USER, os.getuid(), 19))
for file in ("oom_score_adj", "autogroup", "timerslack_ns", "comm", "coredump_filter"):
    attempt(f"its {file}", lambda path=f"/proc/1/{file}": write(path))
say("done", "SUCCEEDED")

if sys.argv[1:] == ["exit"]:
    os._exit(5)
if sys.argv[1:] == ["spin"]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    end = time.monotonic() + 1000
    for _ in range(40):
        if os.fork() == 0:
            break
    while time.monotonic() < end:
        pass
