"""Reads and writes a disk as fast as it gets: `disk.py KIND MIB PROCESSES`. Says how many seconds it took.

O_DIRECT, so that the disk and not the page cache is meant; in the scratch directory, which lies on it.
"""

import mmap
import os
import sys
import time
from collections.abc import Callable

from attempts import say

KIND = sys.argv[1] if len(sys.argv) > 1 else ""
MIB, PROCESSES = (int(sys.argv[2]), int(sys.argv[3])) if KIND else (0, 1)
SIZE = (MIB << 20) // PROCESSES


def aligned(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size)


def move(flags: int, at_once: int, do: Callable[[int, mmap.mmap], int]) -> None:
    """The whole size in steps, by every process in a file of its own."""
    names = [f"file{number}" for number in range(PROCESSES)]
    if KIND.startswith("read"):
        for name in names:
            make(name)
    began = time.monotonic()
    for name in names:
        if os.fork() == 0:
            fd = os.open(name, flags | os.O_CREAT, 0o600)
            buffer = aligned(at_once)
            done = 0
            while done < SIZE:
                done += do(fd, buffer)
            os._exit(0)
    for _ in names:
        os.wait()
    say(KIND, f"SUCCEEDED {time.monotonic() - began:.3f}")


def make(name: str) -> None:
    fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
    buffer = aligned(1 << 20)
    done = 0
    while done < SIZE:
        done += os.write(fd, buffer)
    os.fsync(fd)
    os.close(fd)


def write_and_sync(fd: int, buffer: mmap.mmap) -> int:
    """Through the page cache, and on the disk before it goes on."""
    size = os.write(fd, buffer)
    os.fsync(fd)
    return size


def read(fd: int, buffer: mmap.mmap) -> int:
    size = os.readv(fd, [buffer])
    if size == 0:
        raise RuntimeError("the file is shorter than it was made")
    return size


def sync_storm() -> None:
    """Asks for everything on the machine to be written, again and again."""
    end = time.monotonic() + MIB
    count = 0
    while time.monotonic() < end:
        with open("small", "wb") as file:
            file.write(b"x" * 4096)
        os.sync()
        count += 1
    say(KIND, f"SUCCEEDED {count}")


KINDS: dict[str, Callable[[], None]] = {
    "write": lambda: move(os.O_WRONLY | os.O_DIRECT, 1 << 20, os.write),
    "write_small": lambda: move(os.O_WRONLY | os.O_DIRECT, 4096, os.write),
    "write_and_sync": lambda: move(os.O_WRONLY, 1 << 20, write_and_sync),
    "write_buffered": lambda: move(os.O_WRONLY, 1 << 20, os.write),
    "read": lambda: move(os.O_RDONLY | os.O_DIRECT, 1 << 20, read),
    "read_small": lambda: move(os.O_RDONLY | os.O_DIRECT, 4096, read),
    "sync_storm": sync_storm,
}

if KIND:
    KINDS[KIND]()
