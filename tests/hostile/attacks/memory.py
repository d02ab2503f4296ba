"""Memory of a task's own and files that lie in memory, beyond the limit: `memory.py KIND MIB` (see `holding.py`)."""

import ctypes
import functools
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable

import attempts
from holding import BLOCK, KIND, PAGE, WANTED, anonymous, held, hold, killed, more_descriptors, took


def fill(area: mmap.mmap) -> None:
    held.append(area)
    for at in range(0, len(area), len(BLOCK)):
        part = BLOCK[: len(area) - at]
        area[at : at + len(part)] = part
        took(len(part))


def pages() -> None:
    fill(mmap.mmap(-1, WANTED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def shared_pages() -> None:
    fill(mmap.mmap(-1, WANTED, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))


def children(count: int) -> None:
    """They hold a part each, at the same time."""
    readers = []
    for _ in range(count):
        reader, writer = os.pipe()
        readers.append(reader)
        if os.fork() == 0:
            area = mmap.mmap(-1, WANTED // count)
            for at in range(0, len(area), PAGE):
                area[at] = 1
            os.write(writer, b"+")
            signal.pause()
        os.close(writer)
    survived = sum(os.read(reader, 1) == b"+" for reader in readers)
    if survived < count:
        killed(f"{count - survived} of {count}")
    took(WANTED)


def grandchild() -> None:
    """The command lives and ends with 3."""
    pid = os.fork()
    if pid == 0:
        children(1)
    _, status = os.waitpid(pid, 0)
    if status == 3 << 8:
        os._exit(3)


def stack() -> None:
    """Deep recursion of C functions, on a stack whose own limit is taken off."""
    resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.setrecursionlimit(10**9)
    before = _resident()

    def deeper(depth: int, _: int) -> int:
        if depth % 1000 == 0 and _resident() - before > WANTED:
            took(WANTED)
        functools.reduce(deeper, (depth + 1, 0))
        return 0

    deeper(0, 0)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def locked() -> None:
    """Memory that the kernel cannot take back: there is a bound for it beside the limit."""
    attempts.call("mlock", ctypes.c_void_p(anonymous(WANTED)), ctypes.c_size_t(WANTED))
    took(WANTED)


# ---- files that lie in memory ----------------------------------------------------------------------------------------


def write_to(path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        while True:
            took(file.write(BLOCK) or 0)


def memfd() -> None:
    fd = os.memfd_create("hog")
    while True:
        took(os.write(fd, BLOCK))


def memfds() -> None:
    """Many small ones, which no process has mapped."""
    more_descriptors()
    while True:
        took(os.write(os.memfd_create("hog"), BLOCK[: 64 << 10]))


def deleted_files() -> None:
    """Files in /tmp without a name, held by a descriptor."""
    more_descriptors()
    while True:
        fd = os.open("/tmp/hog", os.O_CREAT | os.O_WRONLY, 0o600)
        os.unlink("/tmp/hog")
        took(os.write(fd, BLOCK[: 64 << 10]))


def preallocated() -> None:
    """Pages that were never written."""
    fd = os.open("/tmp/hog", os.O_CREAT | os.O_WRONLY, 0o600)
    for at in range(0, WANTED, len(BLOCK)):
        os.posix_fallocate(fd, at, len(BLOCK))
        took(len(BLOCK))


def names(make: Callable[[str], object], each: int) -> None:
    """No page of data, only what the kernel keeps for each name: at least `each` bytes."""
    number = 0
    while True:
        if number % 10_000 == 0:
            os.mkdir(f"/tmp/{number}")
            os.chdir(f"/tmp/{number}")
        make(str(number + 1))
        number += 1
        took(each)


def empty_file(name: str) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))


def deep() -> None:
    """One directory in the other."""
    os.chdir("/tmp")
    while True:
        os.mkdir("d")
        os.chdir("d")
        took(1024)


def hard_links() -> None:
    empty_file("/tmp/one")
    names(lambda name: os.link("/tmp/one", name), 192)


def sparse() -> None:
    """Files of a gigabyte with a byte in each: a page each."""
    names(_sparse_file, PAGE)


def _sparse_file(name: str) -> None:
    with open(name, "wb", buffering=0) as file:
        file.seek(1 << 30)
        file.write(b"x")


# ---- what can be taken back, and must not kill -----------------------------------------------------------------------


def page_cache() -> None:
    """A file on the disk: written, and read twice."""
    with open("big", "wb", buffering=0) as file:
        for _ in range(WANTED >> 20):
            file.write(BLOCK)
    for _ in range(2):
        with open("big", "rb", buffering=0) as file:
            while file.read(len(BLOCK)):
                pass
    took(WANTED)


def written_mapping() -> None:
    """A file on the disk, written through a mapping."""
    with open("big", "w+b") as file:
        file.truncate(WANTED)
        with mmap.mmap(file.fileno(), WANTED) as area:
            for at in range(0, WANTED, len(BLOCK)):
                area[at : at + len(BLOCK)] = BLOCK
    took(WANTED)


KINDS: dict[str, Callable[[], object]] = {
    "pages": pages,
    "shared_pages": shared_pages,
    "child": lambda: children(1),
    "children": lambda: children(8),
    "grandchild": grandchild,
    "stack": stack,
    "locked": locked,
    "tmp": lambda: write_to("/tmp/hog"),
    "shm": lambda: write_to("/dev/shm/hog"),
    "memfd": memfd,
    "memfds": memfds,
    "deleted_files": deleted_files,
    "preallocated": preallocated,
    "empty_files": lambda: names(empty_file, 1024),
    "directories": lambda: names(os.mkdir, 1024),
    "deep": deep,
    "symlinks": lambda: names(lambda name: os.symlink("x" * 1000, name), 2048),
    "hard_links": hard_links,
    "sparse": sparse,
    "page_cache": page_cache,
    "written_mapping": written_mapping,
}

if KIND:
    hold(KINDS)
