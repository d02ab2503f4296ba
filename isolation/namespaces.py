"""Which namespaces a sandbox gets, and the pool of network namespaces.

A fresh network namespace costs 300 to 540 us, entering a ready one 5 us. One namespace serves one sandbox at a time,
and only loopback is in it. The next sandbox may have it if nothing was sent in it and no socket of it is left: a socket
may live on with another task, handed over in a shared directory, and would then be in the next one's network; and what
was sent leaves ports that are taken for a minute (TIME_WAIT), counters, and what TCP remembers. Both are read from the
namespace's own /proc/net, by descriptors opened inside, at 4 us.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct

from isolation import _sandbox as sys_
from isolation import kernel
from isolation.errors import SpawnerLost

#: Of every sandbox, by clone3. The network comes by setns; the cgroup namespace after the child is in its group.
CLONE_FLAGS = sys_.CLONE_NEWPID | sys_.CLONE_NEWNS | sys_.CLONE_NEWUTS | sys_.CLONE_NEWIPC

POOL_MAX = 64

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


#: Of /proc/net/sockstat and of /proc/net/dev, in a namespace that is as new: no socket, and of the only interface no
#: byte and no packet received, which on loopback are those that were sent.
_NO_SOCKET = re.compile(rb"sockets: used 0\n")
_NO_TRAFFIC = re.compile(rb"[^\n]*\n[^\n]*\n *lo: +0 +0 [^\n]*\n")


class NetworkPool:
    """Network namespaces with nothing but a loopback interface, which is up."""

    def __init__(self, proc_fd: int) -> None:
        """`proc_fd`: /proc, where this process finds its own namespaces."""
        self._proc_fd = proc_fd
        self._own = self._open("ns/net")
        self._free: list[int] = []
        #: Namespace -> its /proc/net/sockstat and /proc/net/dev.
        self._statistics: dict[int, tuple[int, int]] = {}

    def _open(self, name: str) -> int:
        return os.open(f"self/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)

    def take(self) -> int:
        """A descriptor for setns. Raises OSError (EMFILE, ENOMEM, ENOSPC)."""
        return self._free.pop() if self._free else self._make()

    def give_back(self, fd: int, *, may_keep: bool = True) -> None:
        """The sandbox that used it is gone.

        may_keep: nobody else can have been given a descriptor of a file in its /proc/net, which no counter tells of,
        and in which he could read of the next one's sockets."""
        if may_keep and len(self._free) < POOL_MAX and self._is_as_new(fd):
            self._free.append(fd)
        else:
            self._close(fd)

    def _is_as_new(self, fd: int) -> bool:
        try:
            sockets, traffic = (os.pread(statistic, 4096, 0) for statistic in self._statistics[fd])
        except OSError:  # ENOMEM: it is not known
            return False
        return _NO_SOCKET.match(sockets) is not None and _NO_TRAFFIC.fullmatch(traffic) is not None

    def _close(self, fd: int) -> None:
        for one in (fd, *self._statistics.pop(fd)):
            os.close(one)

    def fill(self, count: int) -> None:
        """Makes namespaces ahead, so that the first sandboxes need not wait."""
        while len(self._free) < count:
            self._free.append(self._make())

    def _make(self) -> int:
        kernel.unshare(sys_.CLONE_NEWNET)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
            with contextlib.ExitStack() as undo:
                fds = []
                for name in ("ns/net", "net/sockstat", "net/dev"):
                    fds.append(self._open(name))
                    undo.callback(os.close, fds[-1])
                undo.pop_all()
            self._statistics[fds[0]] = (fds[1], fds[2])
            return fds[0]
        finally:
            self._come_back()

    def _come_back(self) -> None:
        """Raises SpawnerLost: a task with the host's network would get a stranger's."""
        try:
            kernel.setns(self._own, sys_.CLONE_NEWNET)
        except OSError as error:
            raise SpawnerLost(f"cannot leave a network namespace: {error}") from error

    def close(self) -> None:
        for fd in self._free:
            self._close(fd)
        self._free.clear()
        os.close(self._own)
