"""Takes all the processor time there is, for some seconds: `cpu.py KIND COUNT SECONDS`."""

import ctypes
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable

from attempts import attempt, call, syscall

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
COUNT, SECONDS = (int(sys.argv[2]), float(sys.argv[3])) if KIND else (0, 0.0)
END = time.monotonic() + SECONDS

SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE = 1, 2, 3, 5, 6
SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}[os.uname().machine]
_PRIO_PROCESS, _PRIO_USER = 0, 2


def spin() -> None:
    while time.monotonic() < END:
        pass


def processes() -> None:
    """This one and COUNT - 1 more."""
    for _ in range(COUNT - 1):
        if os.fork() == 0:
            spin()
            os._exit(0)
    spin()


def threads() -> None:
    """Of one process; what they do needs no lock of the interpreter."""

    def busy() -> None:
        while time.monotonic() < END:
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2000)

    for _ in range(COUNT - 1):
        threading.Thread(target=busy, daemon=True).start()
    busy()
    os._exit(0)


def orphans() -> None:
    """Grandchildren in sessions of their own, which nobody waits for; the command itself sleeps."""
    for _ in range(COUNT):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                spin()
            os._exit(0)
    time.sleep(max(0.0, END - time.monotonic()))


def bursts() -> None:
    """Idle, then everything at once, in the hope of what was saved up."""
    for _ in range(COUNT - 1):
        if os.fork() == 0:
            break
    while time.monotonic() < END:
        time.sleep(0.3)
        stop = min(END, time.monotonic() + 0.3)
        while time.monotonic() < stop:
            pass


def short_ones() -> None:
    """Processes that live for a moment: their time must not be lost with them."""
    for _ in range(COUNT - 1):
        if os.fork() == 0:
            break
    while time.monotonic() < END:
        if os.fork() == 0:
            stop = time.monotonic() + 0.002
            while time.monotonic() < stop:
                pass
            os._exit(0)
        os.wait()


def better() -> None:
    """Ways to be preferred to others, one attempt each; what only makes it worse is allowed."""

    def policy(number: int, priority: int) -> Callable[[], object]:
        return lambda: os.sched_setscheduler(0, number, os.sched_param(priority))

    attempt("nice -1", lambda: os.nice(-1))
    attempt("nice of PID 1", lambda: os.setpriority(_PRIO_PROCESS, 1, -1))
    attempt("nice of the user", lambda: os.setpriority(_PRIO_USER, 0, -20))
    attempt("fifo", policy(SCHED_FIFO, 1))
    attempt("round robin", policy(SCHED_RR, 99))
    deadline = ctypes.create_string_buffer(48)
    ctypes.memmove(deadline, bytes(ctypes.c_uint32(48)) + bytes(ctypes.c_uint32(SCHED_DEADLINE)) + bytes(16), 24)
    ctypes.memmove(ctypes.addressof(deadline) + 24, b"".join(bytes(ctypes.c_uint64(10**7)) for _ in range(3)), 24)
    attempt("deadline", lambda: syscall({"x86_64": 314, "aarch64": 274}[os.uname().machine], 0, deadline, 0))
    attempt("io priority", lambda: syscall(SYS_IOPRIO_SET, 1, 0, 1 << 13))
    attempt("policy of PID 1", lambda: os.sched_setscheduler(1, SCHED_BATCH, os.sched_param(0)))
    attempt("locked in memory", lambda: call("mlockall", 3))
    attempt("batch", policy(SCHED_BATCH, 0))
    attempt("idle", policy(SCHED_IDLE, 0))
    attempt("nice 5", lambda: os.nice(5))


KINDS = {kind.__name__: kind for kind in (processes, threads, orphans, bursts, short_ones, better)}

if KIND:
    KINDS[KIND]()
