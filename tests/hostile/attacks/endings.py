"""Commands that end, or go on, in odd ways: `endings.py KIND`."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from attempts import libc, say, syscall

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
ROUND = int(sys.argv[2]) if len(sys.argv) > 2 else 0

_X86 = os.uname().machine == "x86_64"
SYS_EXIT = 60 if _X86 else 93
LIMIT_S = 1000
AGAIN = [sys.executable, "-S", "-B", *sys.argv[:2]]


def chatter() -> None:
    """Writes to what it got as output for as long as it lives."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        os.write(1, b"still here\n")
        time.sleep(0.001)


def daemon() -> None:
    """Twice forked, in a session of its own, ignoring all that it can; the command ends when it is on its way."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            os.write(writer, b"x")
            chatter()
        os._exit(0)
    os.read(reader, 1)
    os._exit(4)


def group() -> None:
    """Children in the command's own group that hold all that it holds."""
    for _ in range(5):
        if os.fork() == 0:
            chatter()
    os._exit(4)


def deserted() -> None:
    """The command leaves its group and session; what is sent to its group must reach it."""
    if os.fork() != 0:
        # The command itself stays in its session as leader, and cannot leave it; a child goes on without it.
        # Not a handler and a sleep: a signal that comes right before the sleep would not end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        say(KIND, "ready")
        if signal.sigtimedwait({signal.SIGTERM}, LIMIT_S) is not None:
            os._exit(4)
    os.setsid()
    chatter()


def no_descriptors() -> None:
    os.closerange(0, 1 << 20)
    time.sleep(0.1)
    os._exit(6)


def exec_loop() -> None:
    """Another image again and again, for ever: every one is the command."""
    if ROUND == 0:
        say(KIND, "ready")
    os.execv(AGAIN[0], [*AGAIN, str(ROUND + 1)])


def exec_then_exit() -> None:
    """The third one is what ends."""
    if ROUND == 3:
        os._exit(8)
    os.execv(AGAIN[0], [*AGAIN, str(ROUND + 1)])


def exec_from_a_thread() -> None:
    """It takes over the process, with its number."""
    threading.Thread(target=lambda: os.execv("/bin/sh", ["sh", "-c", "exit 9"])).start()
    time.sleep(LIMIT_S)


def thread_outlives_main() -> None:
    """The first thread ends, the process does not; its status is the last one's (Linux 5.17 and later)."""

    def later() -> None:
        time.sleep(0.5)
        os.write(1, b"later: SUCCEEDED\n")
        syscall(SYS_EXIT, 3)

    threading.Thread(target=later).start()
    time.sleep(0.1)
    libc.syscall(ctypes.c_long(SYS_EXIT), ctypes.c_long(5))


def thread_ends_all() -> None:
    threading.Thread(target=lambda: os._exit(10)).start()
    time.sleep(LIMIT_S)


def stopped_children() -> None:
    """The command ends by itself; children that are stopped do not hold it up."""
    for _ in range(5):
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
    for _ in range(5):
        os.waitpid(-1, os.WUNTRACED)
    os._exit(11)


def killed_by_child() -> None:
    if os.fork() == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    time.sleep(LIMIT_S)


def kills_everybody() -> None:
    """Also itself: kill(2) with -1 spares the sender on Linux, and PID 1."""
    for _ in range(5):
        if os.fork() == 0:
            time.sleep(LIMIT_S)
            os._exit(0)
    os.kill(-1, signal.SIGKILL)
    os._exit(12)


def stop_then_exit_clean() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    say(KIND, "ready")
    time.sleep(LIMIT_S)


def writes_to_a_full_pipe() -> None:
    """Blocked in a write that nobody takes."""
    _, writer = os.pipe()
    say(KIND, "ready")
    while True:
        os.write(writer, b"x" * 65536)


KINDS: list[Callable[[], None]] = [daemon, group, deserted, no_descriptors, exec_loop, exec_then_exit]
KINDS += [exec_from_a_thread, thread_outlives_main, thread_ends_all, stopped_children, killed_by_child]
KINDS += [kills_everybody, stop_then_exit_clean, writes_to_a_full_pipe]

if KIND:
    {kind.__name__: kind for kind in KINDS}[KIND]()
