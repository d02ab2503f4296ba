"""Fills the scratch directory: `fill_scratch.py KIND MIB`, with that many MiB, or 1,000 files for each.

Says so when it has all that it wanted, and stays until it is ended.
"""

import array
import ctypes
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from attempts import attempt, say

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
MIB = int(sys.argv[2]) if len(sys.argv) > 2 else 0
FILES = MIB * 1000

BLOCK = b"x" * (1 << 20)

#: What is held open.
held: list[object] = []


def create(name: str) -> int:
    return os.open(name, os.O_CREAT | os.O_RDWR, 0o600)


def fill(fd: int, mib: int) -> None:
    for _ in range(mib):
        os.write(fd, BLOCK)


def one_file() -> None:
    fill(create("a"), MIB)


def many_files() -> None:
    for number in range(MIB * 16):
        fd = create(str(number))
        os.write(fd, BLOCK[: 64 << 10])
        os.close(fd)


def children() -> None:
    """A part each."""
    for number in range(8):
        if os.fork() == 0:
            fill(create(str(number)), MIB // 8)
            time.sleep(1000)
    for _ in range(8):
        os.wait()


def empty_files() -> None:
    for number in range(FILES):
        os.close(create(str(number)))


def directories() -> None:
    for number in range(FILES):
        os.mkdir(str(number))


def deep() -> None:
    """One directory in the other: no path is long enough to name it."""
    for _ in range(FILES):
        os.mkdir("d")
        os.chdir("d")


def symlinks() -> None:
    for number in range(FILES):
        os.symlink("x" * 1000, str(number))


def hard_links() -> None:
    """Names, which take room in their directory; a file may have 65,000 at most (ext4)."""
    for number in range(FILES):
        if number % 30_000 == 0:
            os.close(create(f"file{number}"))
            source = f"file{number}"
        os.link(source, str(number))


def reserved() -> None:
    os.posix_fallocate(create("a"), 0, MIB << 20)


def holes() -> None:
    """Every other block of a file."""
    fd = create("a")
    for at in range(0, MIB << 21, 8192):
        os.pwrite(fd, BLOCK[:4096], at)


def deleted() -> None:
    """Files without a name."""
    for _ in range(MIB):
        fd = create("a")
        os.unlink("a")
        os.write(fd, BLOCK)
        held.append(fd)


def without_name() -> None:
    """Never had one."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    fill(fd, MIB)


def mapped() -> None:
    """No name and no descriptor: only a mapping holds it."""
    fd = create("a")
    fill(fd, MIB)
    libc = ctypes.CDLL(None)
    libc.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), 1, 1, fd, ctypes.c_long(0))
    os.unlink("a")
    os.close(fd)


def in_flight() -> None:
    """No name, no descriptor, no mapping: they lie in messages that nobody has taken. One at a time, and small."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    held.append(ends)
    for _ in range(MIB * 4):
        fd = create("a")
        os.unlink("a")
        os.write(fd, BLOCK[: 256 << 10])
        ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)


def in_thread() -> None:
    """The first thread has ended, and with it what the number of the process leads to in /proc; another goes on."""

    def hold() -> None:
        without_name()
        say(KIND, "SUCCEEDED")
        time.sleep(1000)

    threading.Thread(target=hold).start()
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2), of one thread


def moving() -> None:
    """Files that change their directories all the time, so that whoever counts them one by one misses some."""
    for side in ("a", "b"):
        os.mkdir(side)
    for number in range(MIB):
        fd = create(f"a/{number}")
        os.write(fd, BLOCK)
        os.close(fd)
    end = time.monotonic() + 1000
    while time.monotonic() < end:
        for source, target in (("a", "b"), ("b", "a")):
            for number in range(MIB):
                os.rename(f"{source}/{number}", f"{target}/{number}")


def attributes() -> None:
    """Blocks of extended attributes, 4 KiB for each file."""
    for number in range(MIB * 256):
        os.close(create(str(number)))
        os.setxattr(str(number), "user.x", BLOCK[:3900])


KINDS: list[Callable[[], None]] = [one_file, many_files, children, empty_files, directories, deep, symlinks]
KINDS += [hard_links, reserved, holes, deleted, without_name, mapped, in_flight, in_thread, moving]
KINDS += [attributes]

if KIND:
    attempt(KIND, {kind.__name__: kind for kind in KINDS}[KIND])
    time.sleep(1000)
