"""Leaves behind whatever a task can: `leave.py [KIND]`, all kinds by default. Ends with 0, and lets go of nothing."""

import contextlib
import ctypes
import os
import socket
import sys
import time

from attempts import call, libc, say

IPC_CREAT, IPC_PRIVATE = 0o1000, 0


def processes() -> None:
    """Daemons: twice forked, in sessions of their own, deaf to all signals that one can be deaf to."""
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in range(1, 32):
                    if number not in (9, 19):
                        libc.signal(number, ctypes.c_void_p(1))
                while True:
                    time.sleep(100)
            os._exit(0)


def files() -> None:
    for place in (".", "/tmp"):
        os.makedirs(f"{place}/deep/er/est", exist_ok=True)
        with open(f"{place}/left", "w") as file:
            file.write("left behind")
        os.symlink("/etc/passwd", f"{place}/link")
        os.mkfifo(f"{place}/fifo")
        for name in ("x" * 255, "new\nline", "\udcff\udcfe", "-rf", "*", " ", "\\", "\x1b[31m"):
            with open(os.path.join(place, name), "w"):
                pass
        os.mkdir(f"{place}/closed")
        with open(f"{place}/closed/file", "w"):
            pass
        os.chmod(f"{place}/closed", 0)
    os.setxattr(".", "user.message", b"from the last one")
    os.chmod(".", 0o1777)


def objects() -> None:
    call("shmget", 0x1234, ctypes.c_size_t(4096), IPC_CREAT | 0o666)
    call("msgget", 0x1234, IPC_CREAT | 0o666)
    call("semget", 0x1234, 4, IPC_CREAT | 0o666)
    libc.mq_open(b"/left", os.O_CREAT | os.O_RDWR, 0o666, None)


def network() -> None:
    """Connections closed by us stay in TIME_WAIT; names that are bound; packets that were counted."""
    server = socket.create_server(("127.0.0.1", 7777))
    for _ in range(5):
        client = socket.create_connection(("127.0.0.1", 7777))
        accepted, _ = server.accept()
        accepted.close()  # the side with the known port waits
        client.recv(1)
        client.close()
    held = socket.socket(socket.AF_UNIX)
    held.bind("\0left")
    held.listen()


def descriptors() -> None:
    libc.inotify_init()
    libc.eventfd(0, 0)
    libc.timerfd_create(1, 0)
    os.memfd_create("left")


def log() -> None:
    """On an empty output: a name to read."""
    with contextlib.suppress(OSError):  # files in memory have none on older kernels
        os.setxattr(2, "user.message-to-the-next", b"x")


KINDS = {f.__name__: f for f in (processes, files, objects, network, descriptors, log)}


def main() -> None:
    wanted = sys.argv[1:] or list(KINDS)
    for name in wanted:
        KINDS[name]()
    say("left", " ".join(wanted))


main()
