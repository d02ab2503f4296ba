"""Keeps the output of attempts that run within its limit, without the tasks taking notice.

A task writes its output itself, as fast as it likes, into plain files. So the files are looked at, and where one holds
more than its share (`node/core/log_cap.py`), a hole is punched into its middle: the blocks are free again, the length
and every offset stay what they were, and the task's next write goes to the end as before. No record is kept of it:
readers ask the file system where the holes are (`log_reader.py`), which also holds after a crash.

When to look: at all files once a second, and at once when the file system has lost some MiB since (one statvfs(2)
each TICK_S tells, while anything runs); at those that grow fast each time. So a thousand idle tasks cost next to
nothing, and one that writes a GB/s is some TICK_S ahead of us. A last look when the attempt is over makes sure that a
finished log is within the limit.

A task may write into its holes, or reserve room behind its end (fallocate(2)). Its blocks tell: then the hole is
punched once more, and of what lies behind the end no more is left than its share; on a file system that keeps that, by
setting the length to what it is, which may cost such a task, and no other, what it writes in that very moment.

Where holes cannot be punched (NFS before 4.2, FAT), a log over its limit is cut off at its beginning: what comes then
is kept, what was before is not, and nothing tells how much it was. The node's log says so.

Must not do: read or parse output; block the loop: a punch waits for the file system, and so threads do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from node.core.log_cap import NO_HOLE, Output, Span, cuts, hidden, is_hiding, is_hoarding, shares

log = logging.getLogger(__name__)

#: Between two looks at the free space, while anything runs.
TICK_S = 0.1
#: All files are looked at so often.
ROUND_S = 1.0
#: Less free space than at the last round by so much: the next round is now.
FALLEN_BYTES = 8 * 1024 * 1024
#: A file that grew by so much between two looks is looked at at each tick.
FAST_BYTES = 256 * 1024
#: Holes begin and end at multiples of it, or of the file system's block where that is larger.
ALIGN_BYTES = 64 * 1024
#: The least limit, in units of what a hole is a multiple of.
LIMIT_MIN_BLOCKS = 16
#: The next look while a file grows fast.
FAST_TICK_S = 0.02
#: A punch waits for its file's pages that are on their way to the disk; others must not wait for it.
THREADS = 4
#: Outputs of ended attempts that others hold open, and that are watched on.
LINGERING_MAX = 128
#: After a punch that failed.
RETRY_S = 5.0

#: FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE (fallocate(2)).
_PUNCH_HOLE = 0x01 | 0x02
#: Of st_blocks (stat(2)), whatever the file system's own are.
_BLOCK_BYTES = 512
#: What may be appended between a look at the length and a punch behind it; a multiple of every block size.
_BEHIND_BYTES = 64 * 1024 * 1024
#: Beyond every file's end, and divisible by every block.
_FAR = 1 << 44


@dataclass(slots=True)
class Watched:
    """The two files of an attempt that runs."""

    #: Open for writing; the owner's, who ends the watch before it closes them.
    fds: tuple[int, int]
    #: Length and blocks (bytes) of each at a look that found nothing to do.
    seen: list[tuple[int, int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0, 0])
    #: What was cut out of each.
    holes: list[Span] = field(default_factory=lambda: [NO_HOLE, NO_HOLE])
    #: Hidden bytes that nothing could free: looked at again when there are more.
    stuck: list[int] = field(default_factory=lambda: [0, 0])
    is_fast: bool = False
    cutting: asyncio.Future[None] | None = None
    not_before_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Cut:
    stream: int
    #: Empty where nothing is to be punched, but something is to be let go behind the end.
    span: Span
    share: int


class LogWatch:
    """Watches files between `add` and `finish`. Its threads are ended by `close`."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """root: a directory of the file system that the files are on. limit_bytes: for both streams of an attempt
        together; 1 MiB (on file systems of large blocks: 16 of them) is the least. Raises OSError."""
        self._root = root
        self._align = max(root.stat().st_blksize, ALIGN_BYTES)
        self.limit_bytes = max(limit_bytes, LIMIT_MIN_BLOCKS * self._align)
        self._watched: dict[int, Watched] = {}
        #: Of attempts that are over, by the first descriptor; watched too.
        self._lingering: dict[int, tuple[int, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._round_at_s = 0.0
        self._free_at_round = 0
        self._is_any_fast = False
        self._is_told = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="log-watch")

    def add(self, fds: tuple[int, int]) -> None:
        """From now on: stdout and stderr of an attempt, empty, open for writing."""
        self._watched[fds[0]] = Watched(fds)
        if self._timer is None:
            self._tick_later()

    async def finish(self, fds: tuple[int, int]) -> None:
        """The last look: when this returns, the files are within the limit and the watch is over. To be called when no
        process of the attempt is left. Never raises for what the file system refuses (the node's log tells)."""
        watched = self._watched.pop(fds[0], None)
        if watched is None:
            return
        watched.not_before_s = 0.0
        # Twice: what is there may have been written while the cut before was made.
        for _ in range(2):
            await _settled(watched)
            self._look(watched)
        await _settled(watched)

    def linger(self, paths: tuple[str, str]) -> None:
        """The attempt is over, and these are its files, which nobody here has open for writing any more. Where anybody
        else has, to whom the task handed a descriptor, the watch goes on until he has closed it. At most LINGERING_MAX
        are watched so; then the oldest is let go, and the log tells."""
        with contextlib.suppress(OSError):  # no descriptors, or removed by now
            fds = _open_both(paths)
            if not any(_is_held(fd) for fd in fds):
                _close(fds)
                return
            if len(self._lingering) >= LINGERING_MAX:
                log.error("more than %d ended tasks' output is held open by others: one is not watched", LINGERING_MAX)
                self._let_linger_no_more(next(iter(self._lingering)))
            self._lingering[fds[0]] = fds
            self.add(fds)

    def _let_linger_no_more(self, first_fd: int) -> None:
        fds = self._lingering.pop(first_fd)
        watched = self._watched.pop(first_fd)
        if watched.cutting is None:
            self._look(watched)
        _close(fds)  # a cut has descriptors of its own

    def _look_after_lingering(self) -> None:
        for fds in list(self._lingering.values()):
            if self._watched[fds[0]].cutting is None and not any(_is_held(fd) for fd in fds):
                self._let_linger_no_more(fds[0])

    def close(self) -> None:
        """Waits for what is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._threads.shutdown()
        for fds in self._lingering.values():
            _close(fds)
        self._lingering.clear()

    # The looking

    def _tick_later(self) -> None:
        delay_s = FAST_TICK_S if self._is_any_fast else TICK_S
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._watched:
            return
        try:
            self._look_around()
        finally:
            self._tick_later()

    def _look_around(self) -> None:
        now = asyncio.get_running_loop().time()
        free = self._free_bytes()
        is_round = now - self._round_at_s >= ROUND_S or self._free_at_round - free >= FALLEN_BYTES
        if is_round:
            self._round_at_s, self._free_at_round = now, free
            self._look_after_lingering()
        for watched in self._watched.values():
            if is_round or watched.is_fast:
                self._look(watched)
        self._is_any_fast = any(watched.is_fast for watched in self._watched.values())

    def _free_bytes(self) -> int:
        found = os.statvfs(self._root)
        return found.f_bfree * found.f_frsize

    def _look(self, watched: Watched) -> None:
        if watched.cutting is not None:
            return
        found = [(one.st_size, one.st_blocks * _BLOCK_BYTES) for one in map(os.fstat, watched.fds)]
        if found == watched.seen:
            watched.is_fast = False
            return
        sizes = [size for size, _ in found]
        watched.is_fast = sum(sizes) - sum(watched.sizes) >= FAST_BYTES
        watched.sizes = sizes
        watched.holes = [_within(hole, size) for hole, size in zip(watched.holes, sizes, strict=True)]
        wanted = self._wanted(watched, [allocated for _, allocated in found])
        watched.seen = found if not wanted else []
        loop = asyncio.get_running_loop()
        if wanted and loop.time() >= watched.not_before_s:
            copies = [os.dup(watched.fds[cut.stream]) for cut in wanted]
            watched.cutting = loop.run_in_executor(self._threads, self._cut_all, watched, wanted, copies)
            watched.cutting.add_done_callback(lambda done: self._cut_done(watched, done))

    def _wanted(self, watched: Watched, allocated: list[int]) -> list[_Cut]:
        outputs = [Output(size, hole) for size, hole in zip(watched.sizes, watched.holes, strict=True)]
        allowed = shares([output.kept for output in outputs], self.limit_bytes)
        wanted = []
        for stream, span in enumerate(cuts(outputs, self.limit_bytes, self._align)):
            if span is not None:
                wanted.append(_Cut(stream, span, allowed[stream]))
            elif is_hiding(hidden(outputs[stream], allocated[stream]) - watched.stuck[stream], allowed[stream]):
                wanted.append(_Cut(stream, watched.holes[stream], allowed[stream]))
        return wanted

    def _cut_done(self, watched: Watched, done: asyncio.Future[None]) -> None:
        watched.cutting = None
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, OSError):
            watched.not_before_s = asyncio.get_running_loop().time() + RETRY_S
            log.error("an attempt's output is over its limit and cannot be cut, trying again: %s", error)
        elif error is not None:
            raise error

    # In a thread

    def _cut_all(self, watched: Watched, wanted: list[_Cut], fds: list[int]) -> None:
        try:
            for cut, fd in zip(wanted, fds, strict=True):
                if cut.span.length and self._punch(fd, cut.span):
                    watched.holes[cut.stream] = cut.span
                watched.stuck[cut.stream] = _let_go(fd, watched.holes[cut.stream], cut.share)
        finally:
            for fd in fds:
                os.close(fd)

    def _punch(self, fd: int, span: Span) -> bool:
        """False: this file system knows no holes, and the file is empty now."""
        try:
            punch(fd, span)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            os.ftruncate(fd, 0)
            if not self._is_told:
                self._is_told = True
                log.warning(
                    "the file system of %s cannot punch holes: of output that is longer than %d bytes only what came"
                    " after its limit was reached is kept. Have the data directory on ext4, XFS, Btrfs or tmpfs",
                    self._root,
                    self.limit_bytes,
                )
            return False
        return True


async def _settled(watched: Watched) -> None:
    """Waits until no cut is under way; how it went was told."""
    if watched.cutting is not None:
        await asyncio.wait([watched.cutting])


def is_free(fd: int) -> bool:
    """Whether nobody else has this file open, and that is known."""
    return _lease_refusal(fd) == 0


def _is_held(fd: int) -> bool:
    """Whether somebody else has this file open, and that is known."""
    return _lease_refusal(fd) == errno.EAGAIN


def _lease_refusal(fd: int) -> int:
    """0, or why there is no write lease (fcntl(2), F_SETLEASE): the kernel grants it only on a file that nobody else
    has open, and file systems without leases refuse it with another number than EAGAIN."""
    try:
        # Should somebody open it in this very moment, the kernel sends a signal, by default one that kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _open_both(paths: tuple[str, str]) -> tuple[int, int]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    first = os.open(paths[0], flags)
    try:
        return first, os.open(paths[1], flags)
    except OSError:
        os.close(first)
        raise


def _close(fds: tuple[int, int]) -> None:
    for fd in fds:
        os.close(fd)


def punch(fd: int, span: Span) -> None:
    """Frees the blocks of a span; its length stays. Raises OSError: EOPNOTSUPP where the file system cannot."""
    if _libc.fallocate(fd, _PUNCH_HOLE, span.start, span.length):
        number = ctypes.get_errno()
        raise OSError(number, f"fallocate: {os.strerror(number)}")


def _let_go(fd: int, hole: Span, share: int) -> int:
    """Frees what was reserved behind the end, where that is much. Gives the bytes that are hidden all the same.

    A file that is only written fast hides nothing: its length and its blocks are of one moment.
    """
    if is_hoarding(_hidden(fd, hole), share):
        with contextlib.suppress(OSError):
            # Enough on XFS. What a task appends meanwhile must not be hit.
            start = os.fstat(fd).st_size + _BEHIND_BYTES
            punch(fd, Span(start - start % _BEHIND_BYTES, _FAR))
    if is_hoarding(_hidden(fd, hole), share):
        # ext4 punches nothing there; a length that is set, even to what it is, makes it let go (ext4_setattr).
        os.ftruncate(fd, os.fstat(fd).st_size)
    left = _hidden(fd, hole)
    return left if is_hiding(left, share) else 0


def _hidden(fd: int, hole: Span) -> int:
    found = os.fstat(fd)
    return hidden(Output(found.st_size, hole), found.st_blocks * _BLOCK_BYTES)


def _within(hole: Span, size: int) -> Span:
    """What is left of a hole in a file that a task has cut off."""
    if size >= hole.end:
        return hole
    return Span(hole.start, size) if size > hole.start else NO_HOLE


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
