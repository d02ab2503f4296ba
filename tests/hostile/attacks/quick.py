"""Short attacks for a crowd: `quick.py KIND`. Each ends within a second or two by itself, by its limits or by its
timeout; what must come of it stands in `tests/hostile/crowd.py`."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import time

from attempts import attempt, call, libc, say


def forks() -> None:
    """As many processes as there may be, which go on trying; killed by the timeout."""
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.05)


def hog() -> None:
    held = []
    while True:
        held.append(bytearray(b"x" * (4 << 20)))


def tmp_hog() -> None:
    with open("/tmp/hog", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * (1 << 20))


def grandchild_hog() -> None:
    """What it died of is told by the group alone: the command itself ends with a code of its own."""
    if os.fork() == 0:
        if os.fork() == 0:
            hog()
        _, status = os.wait()
        os._exit(3 if status else 0)
    _, status = os.wait()
    sys.exit(os.waitstatus_to_exitcode(status))


def descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = 0
    try:
        while held < 20_000:
            os.open("/dev/null", os.O_RDONLY)
            held += 1
    except OSError:
        pass
    say("held", str(held))


def deaf() -> None:
    """Must be killed: no other signal is heard, and nobody waits for anybody."""
    for number in range(1, 65):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_IGN)
    for _ in range(5):
        with contextlib.suppress(OSError):  # as many as there may be
            if os.fork() == 0:
                os.setsid()
    while True:
        time.sleep(10)


def stopped() -> None:
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def abort() -> None:
    os.abort()


def fault() -> None:
    ctypes.string_at(8)


def suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def everyone() -> None:
    """All that may be signalled, oneself as well."""
    attempt("all others", lambda: os.kill(-1, signal.SIGKILL))
    os.killpg(0, signal.SIGKILL)


def deep() -> None:
    for _ in range(500):
        os.mkdir("d")
        os.chdir("d")


def names() -> None:
    for number in range(300):
        with open(f"{number}" + "n" * 240, "w"):
            pass
    os.symlink("/", "root")
    os.symlink("../../../../../../../etc", "etc")
    os.mkfifo("fifo")
    os.chmod(".", 0)


def sparse() -> None:
    """A file that looks huge; and one that would take room without being written, which is refused."""
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    with open("reserved", "wb") as file:
        attempt("reserve", lambda: call("fallocate", file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(128 << 20)))


def noise() -> None:
    """Two megabytes of everything that a byte can be, on both streams, without a newline."""
    block = bytes(range(256)).replace(b"\n", b"") * 256
    for _ in range(16):
        os.write(1, block)
        os.write(2, block)


def cut() -> None:
    """One's own output, over and over: emptied, filled, a hole in it."""
    for _ in range(20):
        with open("/dev/stdout", "w") as file:
            file.write("x" * 1000)
        os.ftruncate(2, 0)


def sockets() -> None:
    held = [socket.socketpair() for _ in range(200)]
    server = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(server.getsockname()) for _ in range(50)]
    for one, other in held:
        # A ring of descriptors in flight: the kernel's own collector has to find it.
        socket.send_fds(one, [b"x"], [one.fileno(), other.fileno()])
    say("held", str(len(held) + len(clients)))
    os._exit(0)


def namespaces() -> None:
    for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
        attempt(f"unshare {flag:#x}", lambda flag=flag: call("unshare", flag))
    attempt("mount", lambda: call("mount", b"x", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None))
    attempt("ptrace", lambda: call("ptrace", 16, 1, None, None))
    attempt("chroot", lambda: os.chroot("/tmp"))


def objects() -> None:
    for number in range(50):
        libc.shmget(number + 1, ctypes.c_size_t(4096), 0o1666)
        libc.msgget(number + 1, 0o1666)
        libc.semget(number + 1, 2, 0o1666)
        libc.mq_open(f"/q{number}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)


KINDS = {
    **{f.__name__: f for f in (forks, hog, tmp_hog, grandchild_hog, descriptors, deaf, stopped, abort, fault, suicide)},
    **{f.__name__: f for f in (everyone, deep, names, sparse, noise, cut, sockets, namespaces, objects)},
}


def main() -> None:
    KINDS[sys.argv[1]]()


main()
