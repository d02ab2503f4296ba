"""Processes that multiply, hide, outlive, or do not want to die: `processes.py KIND`.

The kinds that fill up say how many there were when the kernel refused one more, and stay; the others say what came of
each attempt. Those that are to be killed by the test say `ready` first.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from attempts import attempt, libc, say, syscall

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 0

CLONE_VFORK, CLONE_PARENT = 0x4000, 0x8000
SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
SYS_TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
#: However the test goes, nothing here lives longer.
LIMIT_S = 1000


def stay() -> None:
    time.sleep(LIMIT_S)
    os._exit(0)


def until_refused(make: Callable[[], object]) -> None:
    """Says how many could be made; bounded, should nothing refuse."""
    made = 0
    while made < 20_000:
        try:
            make()
        except (OSError, RuntimeError) as error:  # of a thread: "can't start new thread"
            word = "EAGAIN" if isinstance(error, RuntimeError) or error.errno == 11 else str(error.errno)
            say(KIND, f"refused {word} after {made}")
            return
        made += 1
    say(KIND, f"SUCCEEDED {made}")


# ---- too many --------------------------------------------------------------------------------------------------------


def bomb() -> None:
    """Every process makes more of them, for ever; refused, it tries again."""
    say(KIND, "ready")
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.fork()


def sleepers() -> None:
    """As many as there may be, or COUNT of them."""

    def one() -> None:
        if os.fork() == 0:
            stay()

    if COUNT:
        for _ in range(COUNT):
            one()
        say(KIND, "ready")
    else:
        until_refused(one)
    stay()


def threads() -> None:
    threading.stack_size(64 << 10)
    until_refused(lambda: threading.Thread(target=stay, daemon=True).start())
    stay()


def zombies() -> None:
    """Children that have ended and that nobody waits for count, too."""

    def one() -> None:
        if os.fork() == 0:
            os._exit(0)

    until_refused(one)
    stay()


def orphans() -> None:
    """Grandchildren that end as children of PID 1: if it did not wait for them, it could not make a thousand."""
    refused = 0
    for _ in range(1000):
        try:
            pid = os.fork()
        except OSError:  # PID 1 waits for them a moment later
            refused += 1
            time.sleep(0.01)
            continue
        if pid == 0:
            with contextlib.suppress(OSError):
                os.fork()
            os._exit(0)
        os.waitpid(pid, 0)
    say(KIND, f"SUCCEEDED {refused} refused" if refused < 500 else f"refused EAGAIN {refused} times")


def respawning() -> None:
    """COUNT processes, each of which is another one a moment later: a list of pids is old when it is read."""
    started = 0
    while started < COUNT:
        with contextlib.suppress(OSError):  # the others have all that there may be for a moment
            if os.fork() == 0:
                _move_on()
            started += 1
    say(KIND, "ready")
    stay()


def _move_on() -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if os.fork() != 0:
                os._exit(0)


# ---- odd ones --------------------------------------------------------------------------------------------------------


def _clone(flags: int) -> int:
    return int(syscall(SYS_CLONE, flags, 0, 0, 0, 0))


def vfork_chain() -> None:
    """Each waits in the kernel for its child, uninterruptible; the last one stays."""
    for _ in range(COUNT):
        if _clone(CLONE_VFORK | signal.SIGCHLD) != 0:
            os._exit(0)
    say(KIND, "ready")
    stay()


def siblings() -> None:
    """Processes beside the command: their parent is PID 1 from the beginning."""
    for _ in range(COUNT):
        if _clone(CLONE_PARENT | signal.SIGCHLD) == 0:
            attempt("parent", os.getppid)
            stay()
    say(KIND, "ready")
    stay()


def odd_ends() -> None:
    """Ends of children that their parent is told of by another signal, or by none: PID 1 must reap them all the same.

    A child with such a signal starts another one beside it (CLONE_PARENT hands the signal on) and leaves it to PID 1.
    """
    for number in (0, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, 64):
        pid = os.fork()
        if pid == 0:
            for _ in range(20):
                if _clone(int(number)) == 0:
                    os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)
    end = time.monotonic() + 200
    while len(_others()) > 0 and time.monotonic() < end:
        time.sleep(0.01)
    say(KIND, f"SUCCEEDED {len(_others())} left")


def _others() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]


def groups() -> None:
    """Into the process group or session of somebody else."""
    attempt("setpgid of PID 1", lambda: os.setpgid(1, 0))
    attempt("into the group of PID 1", lambda: os.setpgid(0, 1))
    attempt("into no group", lambda: os.setpgid(0, 4_000_000))


def signals() -> None:
    """Every signal to PID 1 in every way, and to everybody: the command must end as it means to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {32, 33})
    for number in range(1, 65):
        libc.kill(1, number)
        libc.syscall(ctypes.c_long(SYS_TGKILL), 1, 1, number)
        libc.sigqueue(1, number, None)
        if number not in (signal.SIGKILL, signal.SIGSTOP):  # these two do not spare the sender's own children
            libc.kill(-1, number)
    say(KIND, "SUCCEEDED nothing happened")
    os._exit(7)


# ---- hard to kill ----------------------------------------------------------------------------------------------------


def deaf() -> None:
    """COUNT processes that ignore and block what can be, in sessions of their own, with no parent but PID 1."""
    for _ in range(COUNT):
        if os.fork() == 0:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            for number in set(range(1, 65)) - {9, 19, 32, 33}:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {32, 33})
            stay()
    for number in set(range(1, 65)) - {9, 17, 19, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    say(KIND, "ready")
    stay()


def stopped() -> None:
    """COUNT children and the command itself, all stopped."""
    for _ in range(COUNT):
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            stay()
    for _ in range(COUNT):
        os.waitpid(-1, os.WUNTRACED)
    say(KIND, "ready")
    os.killpg(0, signal.SIGSTOP)
    stay()


def continuing() -> None:
    """Two that wake each other up whenever one is stopped."""
    partner = os.fork()
    if partner == 0:
        partner = os.getppid()
        os.setsid()
    else:
        say(KIND, "ready")
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(ProcessLookupError):
            os.kill(partner, signal.SIGCONT)


KINDS = [bomb, sleepers, threads, zombies, orphans, respawning, vfork_chain, siblings, odd_ends, groups, signals]
KINDS += [deaf, stopped, continuing]

if KIND:
    {kind.__name__: kind for kind in KINDS}[KIND]()
