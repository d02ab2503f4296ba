"""The socket on which the PID 1s of all sandboxes ring when their commands were executed (`notes.py`).

One pair for all: children ring on REPORT_FD, and see end of file there when the spawner is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from isolation.plan import REPORT_FD

#: Below it are descriptors with a fixed meaning.
_FIRST_FREE_FD = 10
_RING = struct.Struct("=I")
_RINGS_BYTES = 1024 * _RING.size
_SO_SNDBUFFORCE = 32
#: A ring takes about 800 bytes of it.
_BUFFER_BYTES = 16 * 1024 * 1024


def make() -> socket.socket:
    """The spawner's end; the other is REPORT_FD from now on."""
    ours, theirs = (move_up(end.detach()) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    # Room for the rings of every sandbox that there may be: a PID 1 that waits for room looks at no deadline.
    with contextlib.suppress(PermissionError):  # needs CAP_NET_ADMIN
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
    os.dup2(theirs.fileno(), REPORT_FD, inheritable=False)
    theirs.close()
    return ours


def numbers(ours: socket.socket) -> Iterator[int]:
    """Of the notes that were rung for, as many as one look gives. Raises BlockingIOError where there are none."""
    return (number for (number,) in _RING.iter_unpack(ours.recv(_RINGS_BYTES, socket.MSG_DONTWAIT)))


def move_up(fd: int) -> socket.socket:
    """A socket on a descriptor above those with a fixed meaning."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    os.close(fd)
    return socket.socket(fileno=moved)
