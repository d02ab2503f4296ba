"""What the kernel keeps for a task, beyond the task's limit: `kernel_memory.py KIND MIB` (see `holding.py`).

The sizes are what the kernel keeps at least for each thing (Linux 6.x, 64 bits).
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from functools import partial

import attempts
from holding import BLOCK, KIND, PAGE, WANTED, anonymous, held, hold, killed, libc, more_descriptors, took

SMALL = BLOCK[: 64 << 10]
_MADV_NOHUGEPAGE = 15
_IPC_NEW = 0o1600
_SO_MEMINFO = 55
_SO_ATTACH_FILTER = 26
_F_SETPIPE_SZ = 1031
_CLOCK_MONOTONIC = 1


def send_all(end: socket.socket, data: bytes, each: int) -> None:
    """Until the socket has no more room; each datagram costs `each` bytes."""
    end.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent = end.send(data)
            took(max(each, sent))


def unix_sockets(kind: socket.SocketKind, data: bytes, each: int) -> None:
    more_descriptors()
    while True:
        pair = socket.socketpair(socket.AF_UNIX, kind)
        held.append(pair)
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            send_all(end, data, each)


def udp_sockets() -> None:
    """Datagrams on loopback that nobody reads."""
    more_descriptors()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    empty = 0
    while True:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        held.append(receiver)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.bind(("127.0.0.1", 0))
        before = -1
        while _queued(receiver) > before:
            before = _queued(receiver)
            sender.sendto(SMALL[: 32 << 10], receiver.getsockname())
            took(max(0, _queued(receiver) - before))
        empty += not before
        if empty > 8:
            raise OSError(errno.ENOBUFS, "the kernel drops what is sent")


def _queued(sock: socket.socket) -> int:
    """Bytes of memory that its receive queue takes (SK_MEMINFO_RMEM_ALLOC)."""
    return int(struct.unpack_from("I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0])


def tcp_sockets() -> None:
    """Connections on loopback whose other end does not read."""
    more_descriptors()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    while True:
        sender = socket.socket()
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        sender.connect(listener.getsockname())
        held.extend((sender, listener.accept()))
        send_all(sender, SMALL, 0)


def pipes() -> None:
    more_descriptors()
    while True:
        _, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(PermissionError):  # beyond what one user may have in all: the small size stays
            fcntl.fcntl(writer, _F_SETPIPE_SZ, 1 << 20)
        with contextlib.suppress(BlockingIOError):
            while True:
                took(os.write(writer, SMALL))


def sysv_memory() -> None:
    shmid = attempts.call("shmget", 0, ctypes.c_size_t(WANTED), _IPC_NEW)
    address = libc.shmat(shmid, None, 0)
    for at in range(0, WANTED, len(BLOCK)):
        ctypes.memmove(address + at, BLOCK, len(BLOCK))
        took(len(BLOCK))


def sysv_messages() -> None:
    """One namespace may have 32,000 queues of 16 KiB."""
    message = struct.pack("l", 1) + b"x" * 8192
    while True:
        queue = attempts.call("msgget", 0, _IPC_NEW)
        for _ in range(2):
            attempts.call("msgsnd", queue, message, ctypes.c_size_t(8192), 0o4000)
            took(8192)


def sysv_semaphores() -> None:
    """32,000 of them in a set, a cache line each."""
    while True:
        attempts.call("semget", 0, 32000, _IPC_NEW)
        took(32000 * 64)


def posix_queues() -> None:
    """One user may have RLIMIT_MSGQUEUE bytes."""
    attributes = struct.pack("8l", 0, 10, 8192, 0, 0, 0, 0, 0)
    number = 0
    while True:
        number += 1
        queue = attempts.call("mq_open", f"/q{number}".encode(), os.O_CREAT | os.O_RDWR, 0o600, attributes)
        for _ in range(10):
            attempts.call("mq_send", queue, BLOCK[:8192], ctypes.c_size_t(8192), 0)
            took(8192)


def page_tables() -> None:
    """One byte read in every 2 MiB: the page is the kernel's page of zeros, the table that it is found by is ours."""
    step = 2 << 20
    size = WANTED // PAGE * step
    area = anonymous(size)
    libc.madvise(ctypes.c_void_p(area), ctypes.c_size_t(size), _MADV_NOHUGEPAGE)
    for at in range(0, size, step):
        ctypes.string_at(area + at, 1)
        took(PAGE)


def in_children(fill_one: Callable[[], int]) -> None:
    """As many processes as it takes; each fills itself and says how many bytes that made."""
    while True:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, struct.pack("I", fill_one()))
            signal.pause()
        os.close(writer)
        answer = os.read(reader, 4)
        os.close(reader)
        if not answer:
            killed("a child")
        took(struct.unpack("I", answer)[0])


def _mappings() -> int:
    """Every other page with another protection: almost as many mappings as a process may have, 200 bytes each."""
    pages = 60_000
    area = anonymous(pages * PAGE)
    for at in range(0, pages, 2):
        attempts.call("mprotect", ctypes.c_void_p(area + at * PAGE), ctypes.c_size_t(PAGE), 1)
    return pages * 200


def _descriptors(make: Callable[[], object], each: int) -> int:
    more_descriptors()
    made = 0
    with contextlib.suppress(OSError):
        while made * each < WANTED:
            held.append(make())
            made += 1
    return made * each


def _files() -> int:
    return _descriptors(lambda: os.open("/dev/null", os.O_RDONLY), 256)


def _eventfds() -> int:
    return _descriptors(lambda: attempts.call("eventfd", 0, 0), 256)


def epolls() -> None:
    """Every epoll watches every source: 128 bytes for each pair."""
    more_descriptors()
    sources = [attempts.call("eventfd", 0, 0) for _ in range(1000)]
    while True:
        poll = select.epoll()
        held.append(poll)
        for source in sources:
            poll.register(source)
            took(128)


def inotifies() -> None:
    """A watch, and the directory that it keeps in memory."""
    watch = attempts.call("inotify_init")
    number = 0
    while True:
        os.mkdir(f"/tmp/{number}")
        attempts.call("inotify_add_watch", watch, f"/tmp/{number}".encode(), 0xFFF)
        number += 1
        took(1024)


def file_locks() -> None:
    """One byte in two, so that they cannot be joined; few in each file, since the kernel looks through all of them.

    The kernel counts them as nobody's memory.
    """
    more_descriptors()
    while True:
        fd = os.memfd_create("locked")
        for at in range(0, 1000, 2):
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, at)
            took(192)


def pending_signals() -> None:
    """Real-time signals, blocked and queued; one user may have RLIMIT_SIGPENDING."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    while True:
        attempts.call("sigqueue", os.getpid(), int(signal.SIGRTMIN), None)
        took(80)


def posix_timers() -> None:
    """Each sets a pending signal aside."""
    place = ctypes.c_void_p()
    while True:
        attempts.call("timer_create", _CLOCK_MONOTONIC, None, ctypes.byref(place))
        took(256)


def filters() -> None:
    """Programs that look at what a socket receives."""
    more_descriptors()
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0, 0, 0, 1) * 4000 + struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    wanted = struct.pack("HxxxxxxP", 4001, ctypes.addressof(program))
    while True:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        held.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, wanted)
        took(32 << 10)


def processes() -> None:
    """Stacks, page tables and all else that the kernel has for a process: far more than this much for each."""
    while True:
        if os.fork() == 0:
            signal.pause()
        if os.waitpid(-1, os.WNOHANG) != (0, 0):
            killed("a child")
        took(128 << 10)


KINDS: dict[str, Callable[[], object]] = {
    "unix_streams": partial(unix_sockets, socket.SOCK_STREAM, SMALL, 0),
    "unix_datagrams": partial(unix_sockets, socket.SOCK_DGRAM, b"x", 768),
    "udp_sockets": udp_sockets,
    "tcp_sockets": tcp_sockets,
    "pipes": pipes,
    "sysv_memory": sysv_memory,
    "sysv_messages": sysv_messages,
    "sysv_semaphores": sysv_semaphores,
    "posix_queues": posix_queues,
    "page_tables": page_tables,
    "mappings": partial(in_children, _mappings),
    "files": partial(in_children, _files),
    "eventfds": partial(in_children, _eventfds),
    "epolls": epolls,
    "inotifies": inotifies,
    "file_locks": file_locks,
    "pending_signals": pending_signals,
    "posix_timers": posix_timers,
    "filters": filters,
    "processes": processes,
}

if KIND:
    hold(KINDS)
