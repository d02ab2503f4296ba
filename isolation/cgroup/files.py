"""Reading and writing the small files of a group, by directory descriptor.

By descriptor, because the spawner leaves the file system in which it opened the directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

#: `cgroup.procs` of a group with 100,000 processes; everything else is far smaller.
READ_BYTES_MAX = 1024 * 1024

_REMOVE_TRIES = 50
_REMOVE_RETRY_S = 0.002

#: Holds the parent groups of all nodes on this host.
TOP = "pilfer"


#: What the kernel says of a group that was removed: at the open of its files, or at the use of one that is open.
GONE = (errno.ENOENT, errno.ENODEV)


@contextlib.contextmanager
def unless_gone() -> Iterator[None]:
    """Does nothing to a group that was removed by somebody else: nothing is in it, since one in use cannot be."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise


def read(dir_fd: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return read_fd(fd)
    finally:
        os.close(fd)


def read_fd(fd: int) -> str:
    """The whole file from its beginning; a group's file gives at most a page at a time."""
    parts: list[bytes] = []
    offset = 0
    while offset < READ_BYTES_MAX and (part := os.pread(fd, 65536, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts).decode("utf-8", "replace")


def write(dir_fd: int, name: str, value: str | int) -> None:
    # O_TRUNC means nothing to the kernel's files and keeps plain ones honest.
    fd = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def has(dir_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True


def keyed(text: str) -> dict[str, int]:
    """`key value` lines as a mapping; other lines are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].isdigit():
            found[parts[0]] = int(parts[1])
    return found


def open_dir(path: str | Path, dir_fd: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)


def make_dir(name: str, dir_fd: int) -> int:
    """Makes a directory unless it is there, and opens it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    return open_dir(name, dir_fd)


def make_parent(base: Path, host_id: str) -> tuple[int, int, int]:
    """`pilfer/HOST_ID` below a group: descriptors of base, `pilfer` and the parent itself."""
    base_fd = open_dir(base)
    for _ in range(10):
        # Another node that closes removes an empty `pilfer` at any time.
        with contextlib.suppress(FileNotFoundError):
            top = make_dir(TOP, base_fd)
            try:
                return base_fd, top, make_dir(host_id, top)
            except FileNotFoundError:
                os.close(top)
                raise
    os.close(base_fd)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(base / TOP))


def remove_parent(base_fd: int, top_fd: int, host_id: str) -> None:
    """The reverse of `make_parent`, as far as the directories are empty; closes both."""
    with contextlib.suppress(OSError):
        os.rmdir(host_id, dir_fd=top_fd)
    for _ in range(_REMOVE_TRIES):
        # Another node's parent may be in it. A child that is gone holds its parent for a moment on version 2.
        if child_names(top_fd) or remove_dir(TOP, base_fd):
            break
        time.sleep(_REMOVE_RETRY_S)
    os.close(top_fd)
    os.close(base_fd)


def remove_dir(name: str, dir_fd: int) -> bool:
    """Removes a group; False where the kernel is not done with it yet (EBUSY), to be tried again."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in GONE:
            return True
        if error.errno in (errno.EBUSY, errno.EAGAIN, errno.EINTR):
            return False
        raise
    return True


def child_names(dir_fd: int) -> list[str]:
    """Names of the groups directly below."""
    names: list[str] = []
    with unless_gone(), os.scandir(dir_fd) as entries:
        names += (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return sorted(names)


def pids_below(dir_fd: int) -> Iterator[int]:
    """Every process in the group and below; what disappears meanwhile is left out, and so is what cannot be looked at
    (no descriptors left): whoever kills goes on with the others."""
    with contextlib.suppress(OSError):
        yield from (int(word) for word in read(dir_fd, "cgroup.procs").split() if word != "0")
    with contextlib.suppress(OSError):
        for name in child_names(dir_fd):
            with contextlib.suppress(FileNotFoundError):
                fd = open_dir(name, dir_fd)
                try:
                    yield from pids_below(fd)
                finally:
                    os.close(fd)


def kill_below(dir_fd: int) -> int:
    """SIGKILL to every process in the group and below; gives how many were seen there. Never raises.

    By cgroup.kill where there is one (version 2, since Linux 5.14): it reaches also what is forked meanwhile.
    """
    pids = list(pids_below(dir_fd))
    try:
        write(dir_fd, "cgroup.kill", 1)
    except OSError:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    return len(pids)
