"""How much a scratch directory holds: counted in small steps, while its task goes on.

The task may do anything to the tree meanwhile. So: no symbolic link is followed, no other file system is entered; two
descriptors are open, however deep it is; the way up is checked, so that a directory that is moved leads nowhere else;
and every name that is looked at counts against the limit of files, so that the walk has an end whatever is done.

What counts: blocks on the disk (not the length: a sparse file counts what it has) of every file and directory; of a
file with several names once; as files every name. Files without a name that processes have open or mapped are looked
for in /proc (`Nameless`). Of files in messages that nobody has received it is only known how many there are
(proc(5), fdinfo: scm_fds). What lies in other mounts does not count.

A tree that is changed while it is walked may be counted as more or less than it ever was, by what was moved. A count
that is over is therefore taken again by the caller before it means anything; one that is too low is taken again soon
enough. Nothing but project quotas (`quota.py`) is exact.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from isolation import _sandbox as sys_
from isolation.scratch_policy import Space
from isolation.syscalls import numbers

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 512

#: Entries looked at in one step: about half a millisecond.
STEP_ENTRIES = 128
#: What an open costs, in entries.
_OPEN_COSTS = 4
#: Files that are remembered, so that they do not count again under another name.
_REMEMBERED_MAX = 50_000
#: A file of at least this part of the limit is remembered too: renamed during the walk, it may be met again.
_LARGE_PART = 1000
#: Where a moved directory made the way up wrong, the way is walked again from the top, for so many levels.
_WAY_MAX = 4096
#: Descriptors of processes looked at in one measurement.
_DESCRIPTORS_MAX = 100_000
_MAPS_BYTES_MAX = 1 << 20

_SYS_KCMP = numbers(os.uname().machine)["kcmp"]
_KCMP_FILES = 2


class Measuring(Protocol):
    """Something that is counted in steps."""

    def step(self) -> bool:
        """True when it is done. Raises OSError."""

    def close(self) -> None:
        """At any time."""


@dataclass(slots=True)
class Count:
    """What was found so far."""

    limit: Space
    device: int = 0
    bytes: int = 0
    files: int = 0
    #: Files that lie in messages, of any file system; and one each for descriptors and mappings that were too many to
    #: look at.
    in_flight: int = 0
    _seen: set[int] = field(default_factory=set)

    @property
    def used(self) -> Space:
        return Space(self.bytes, self.files)

    @property
    def is_over(self) -> bool:
        return self.used.is_over(self.limit)

    def add(self, found: os.stat_result) -> None:
        """Another name, or a file that has none."""
        self.files += 1
        size = found.st_blocks * _BLOCK_BYTES
        is_directory = stat.S_ISDIR(found.st_mode)
        if not is_directory and (found.st_nlink != 1 or size * _LARGE_PART >= self.limit.bytes):
            if found.st_ino in self._seen:
                return
            if len(self._seen) < _REMEMBERED_MAX:
                self._seen.add(found.st_ino)
        self.bytes += size


@dataclass(slots=True)
class _Level:
    name: str
    inode: int
    #: Subdirectories that were not gone into yet.
    waiting: list[str] = field(default_factory=list)


class Tree:
    """One walk through one directory."""

    def __init__(self, dir_fd: int, name: str, count: Count) -> None:
        """Raises OSError. Ended by `close`."""
        self._count = count
        self._top = os.open(name, _FLAGS, dir_fd=dir_fd)
        self._fd = self._top
        #: Of the directory that it is in; None when they were all seen.
        self._entries: Iterator[os.DirEntry[str]] | None = None
        try:
            found = os.fstat(self._top)
            count.device = found.st_dev
            self._levels = [_Level(name, found.st_ino)]
            self._enter()
        except OSError:
            self.close()
            raise

    def step(self) -> bool:
        """Looks at some more; True when everything was seen, or the limit is passed. Raises OSError."""
        budget = STEP_ENTRIES
        while budget > 0:
            if self._count.is_over:
                return True
            if self._entries is not None:
                entry = next(self._entries, None)
                if entry is None:
                    self._leave()
                else:
                    self._look_at(entry)
                budget -= 1
            elif self._levels[-1].waiting:
                self._go_down(self._levels[-1].waiting.pop())
                budget -= _OPEN_COSTS
            elif len(self._levels) == 1:
                return True
            else:
                self._go_up()
                budget -= _OPEN_COSTS
        return False

    def close(self) -> None:
        self._leave()
        self._stand_in(self._top)
        if self._top >= 0:
            os.close(self._top)
        self._top = self._fd = -1

    def _enter(self) -> None:
        self._entries = os.scandir(self._fd)

    def _leave(self) -> None:
        if self._entries is not None:
            self._entries.close()  # type: ignore[attr-defined]  # of scandir's iterator, which has no name of its own
            self._entries = None

    def _look_at(self, entry: os.DirEntry[str]) -> None:
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            self._count.files += 1  # gone by now; it must cost something, or the walk might have no end
            return
        if found.st_dev != self._count.device:
            return
        self._count.add(found)
        if stat.S_ISDIR(found.st_mode):
            self._levels[-1].waiting.append(entry.name)

    def _go_down(self, name: str) -> None:
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return  # gone, or something else by now
        found = os.fstat(fd)
        if found.st_dev != self._count.device:
            os.close(fd)
            return
        self._stand_in(fd)
        self._levels.append(_Level(name, found.st_ino))
        self._enter()

    def _go_up(self) -> None:
        self._levels.pop()
        fd = os.open("..", _FLAGS, dir_fd=self._fd)
        if self._is(fd, self._levels[-1]):
            self._stand_in(fd)
        else:
            os.close(fd)
            self._walk_the_way_again()

    def _walk_the_way_again(self) -> None:
        """What we are in was moved: back to where we came from as far as that is still there."""
        self._stand_in(self._top)
        way, self._levels = self._levels, self._levels[:1]
        for level in way[1:_WAY_MAX]:
            try:
                fd = os.open(level.name, _FLAGS, dir_fd=self._fd)
            except (FileNotFoundError, NotADirectoryError):
                return
            if not self._is(fd, level):
                os.close(fd)
                return
            self._stand_in(fd)
            self._levels.append(level)

    def _is(self, fd: int, level: _Level) -> bool:
        found = os.fstat(fd)
        return (found.st_dev, found.st_ino) == (self._count.device, level.inode)

    def _stand_in(self, fd: int) -> None:
        if self._fd not in (self._top, fd):
            os.close(self._fd)
        self._fd = fd


class Nameless:
    """Files of one device that have no name any more, and that processes have open or mapped."""

    def __init__(self, proc_fd: int, pids: list[int], count: Count) -> None:
        """proc_fd: the host's /proc. To be walked after the tree, whose device it takes."""
        self._proc_fd = proc_fd
        self._pids = pids
        self._count = count
        self._left = _DESCRIPTORS_MAX
        self._places: Generator[str, None, None] = self._nothing()

    def step(self) -> bool:
        """As `Tree.step`; a process that is gone, or may not be looked into, has none."""
        budget = STEP_ENTRIES
        while budget > 0:
            if self._left <= 0:
                # Or a task could hide anything behind a hundred thousand descriptors of nothing.
                self._count.in_flight += 1
                return True
            if self._count.is_over:
                return True
            place = next(self._places, None)
            if place is None:
                if not self._pids:
                    return True
                self._places = self._places_of(self._pids.pop())
                budget -= _OPEN_COSTS
                continue
            budget -= 1
            self._left -= 1
            with contextlib.suppress(OSError):
                self._look_at(place)
        return False

    def _look_at(self, place: str) -> None:
        found = os.stat(place, dir_fd=self._proc_fd)
        if found.st_dev == self._count.device and not found.st_nlink and stat.S_ISREG(found.st_mode):
            self._count.add(found)
        elif stat.S_ISSOCK(found.st_mode):
            self._count.in_flight += self._in_messages(place.replace("/fd/", "/fdinfo/"))

    def _in_messages(self, place: str) -> int:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
        with os.fdopen(fd, "rb") as info:
            for line in info.read(_MAPS_BYTES_MAX).splitlines():
                if line.startswith(b"scm_fds:"):
                    return int(line.partition(b":")[2])
        return 0

    def close(self) -> None:
        self._places.close()
        self._pids = []

    @staticmethod
    def _nothing() -> Generator[str, None, None]:
        yield from ()

    def _places_of(self, pid: int) -> Generator[str, None, None]:
        """Lazily: a process may have half a million descriptors.

        By threads, which proc(5) has under their own numbers too: one may have been cloned with descriptors of its
        own; and the first may have ended, and has neither descriptors nor memory then, while the others go on.
        """
        threads: list[int] = []
        with contextlib.suppress(OSError):
            threads = [int(name) for name in self._names_in(f"{pid}/task")]
        seen: list[int] = []
        for thread in threads:
            if any(_share_descriptors(thread, other) for other in (*seen[:1], *seen[-1:])):
                continue
            seen.append(thread)
            with contextlib.suppress(OSError):
                for name in self._names_in(f"{thread}/fd"):
                    yield f"{thread}/fd/{name}"
        for thread in threads:
            with contextlib.suppress(OSError):
                if maps := self._maps(thread):
                    for span in _nameless(maps):
                        yield f"{thread}/map_files/{span}"
                    break  # memory is that of all threads

    def _names_in(self, place: str) -> Iterator[str]:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc_fd)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            os.close(fd)

    def _maps(self, pid: int) -> list[bytes]:
        fd = os.open(f"{pid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc_fd)
        with os.fdopen(fd, "rb") as maps:
            text = maps.read(_MAPS_BYTES_MAX)
        if len(text) == _MAPS_BYTES_MAX:
            self._count.in_flight += 1  # there is more; as with too many descriptors
        return text.splitlines()


def _nameless(maps: list[bytes]) -> list[str]:
    """proc(5): START-END, hexadecimal, of mappings of files that were removed."""
    spans = (line.split(b" ", 1)[0].split(b"-") for line in maps if line.endswith(b" (deleted)"))
    return [f"{int(start, 16):x}-{int(end, 16):x}" for start, end in spans]


def _share_descriptors(one: int, other: int) -> bool:
    """Whether two threads have the same table of descriptors, as almost all of a process have; False: not, or the
    kernel does not say (kcmp(2) may be forbidden in a container)."""
    try:
        return sys_.syscall(_SYS_KCMP, one, other, _KCMP_FILES, 0, 0) == 0
    except OSError:
        return False
