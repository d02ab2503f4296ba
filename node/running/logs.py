"""Output of tasks: two plain files per attempt, written by the task itself, read by whoever asks.

The node opens the files and passes them down; no byte goes through Python on its way in, and what was written
survives every process here. Layout: `logs/SHARD/TASK_ID.ATTEMPT.stdout` and `.stderr`, SHARD the last two hex digits
of the id (random in a UUIDv7, so that no directory grows large). A file that is not there is an empty one.

Files are opened without following links. A task holds descriptors that only append. It may also open them again by
/dev/stdout and /dev/stderr, as scripts do (`echo oops >/dev/stderr`), and so the files may be written, not read, by
everybody; the 0700 directories keep everybody else away. Opened so with `>`, what was written before is cut off, as
with any other file: `>>` keeps it.

Making or naming a file waits for the journal of the file system, which etcd's fsyncs keep busy (measured: 2.7 ms for
an attempt's two, which held up the loop and every task behind it). So files are made ahead, unnamed, in `logs/spare/`,
by a thread; they get their names while the task runs, and at the latest before its end is recorded. An attempt that is
lost with its node in its first NAMED_AFTER_S leaves no log.

Of long output the beginning and the end are kept: `log_watch.py` holds files to the limit while they are written, and
`log_reader.py` tells readers what is missing.

Files that stayed empty are used again. Removing and making them is dear at some hundred tasks a second: ext4 does not
give out an inode again within 5 s of its removal, and looks for another past all of those (measured: 0.65 ms of CPU a
file, against 0.02). A file is used again only where nobody but the node can have it open, or a task that was handed
another's descriptor (over a socket in a shared directory) could write into a third one's output. A write lease tells:
the kernel grants it only on a file that nobody else has open (fcntl(2), F_SETLEASE).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from node.running.log_reader import LogReader
from node.running.log_watch import LogWatch, is_free

STREAMS = ("stdout", "stderr")

#: What is kept of the output of one attempt, both streams together, unless the configuration says otherwise.
LIMIT_BYTES = 256 * 1024 * 1024
#: An attempt that has run for so long gets its files named, so that they outlive the node.
NAMED_AFTER_S = 0.1
#: Files made ahead: up to the first number, again when fewer than the second are left.
SPARES_MAX = 128
SPARES_LOW = 64

_WRITE = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class OpenLog:
    """The two files of an attempt that runs. Made by `LogStore.open`, ended by `LogStore.settle`."""

    def __init__(self, spares: tuple[str, str], names: tuple[str, str]) -> None:
        """Raises OSError (no descriptors) and leaves nothing open."""
        self.spares = spares
        self.names = names
        self.is_named = False
        #: The thread has been asked to name it, and may not have done so yet.
        self.is_name_asked = False
        self.stdout = os.open(spares[0], _WRITE)
        try:
            self.stderr = os.open(spares[1], _WRITE)
        except OSError:
            os.close(self.stdout)
            raise
        self._naming: asyncio.TimerHandle | None = None

    def name_later(self, name: Callable[[OpenLog], None]) -> None:
        self._naming = asyncio.get_running_loop().call_later(NAMED_AFTER_S, name, self)

    def close(self) -> None:
        if self._naming is not None:
            self._naming.cancel()
        os.close(self.stdout)
        os.close(self.stderr)

    @property
    def fds(self) -> tuple[int, int]:
        return self.stdout, self.stderr

    @property
    def is_empty(self) -> bool:
        return not os.fstat(self.stdout).st_size and not os.fstat(self.stderr).st_size


class LogStore:
    """The log files of this host. Its thread is ended by `close`."""

    def __init__(self, root: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """Makes the directories, and removes what a dead node had made ahead. limit_bytes: what is kept of the output
        of one attempt (`log_watch.py`). Raises OSError."""
        self._root = root
        there = {entry.name for entry in os.scandir(root)}
        for name in ("spare", *(f"{number:02x}" for number in range(256))):
            if name not in there:
                (root / name).mkdir(mode=0o700)
        for entry in os.scandir(root / "spare"):
            Path(entry.path).unlink()
        self._numbers = itertools.count()
        self._spares: deque[str] = deque()
        self._is_making = False
        self._unneeded: list[str] = []
        #: By task id and attempt: files whose names may not be there yet.
        self._open: dict[tuple[str, int], OpenLog] = {}
        #: One thread: the order of its work is the order in which it was asked for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="logs")
        self._watch = LogWatch(root, limit_bytes)

    @property
    def limit_bytes(self) -> int:
        """What is kept of one attempt's output."""
        return self._watch.limit_bytes

    def path(self, task_id: str, attempt: int, stream: str) -> Path:
        return Path(self._name(task_id, attempt, stream))

    def _name(self, task_id: str, attempt: int, stream: str) -> str:
        return f"{self._root}/{task_id[-2:]}/{task_id}.{attempt}.{stream}"

    def open(self, task_id: str, attempt: int) -> OpenLog:
        """Files for an attempt that is about to start, empty. Raises OSError (no space, no descriptors)."""
        spares = (self._spare(), self._spare())
        log = OpenLog(spares, (self._name(task_id, attempt, "stdout"), self._name(task_id, attempt, "stderr")))
        log.name_later(self._name_soon)
        self._watch.add(log.fds)
        self._open[task_id, attempt] = log
        if len(self._spares) < SPARES_LOW and not self._is_making:
            self._is_making = True
            asyncio.get_running_loop().run_in_executor(self._thread, self._make_spares)
        return log

    async def settle(self, task_id: str, attempt: int) -> None:
        """The attempt is over, and no process of it is left. When this returns, what it wrote has its name.
        Raises OSError where it cannot be named: then its log is lost."""
        log = self._open.get((task_id, attempt))
        if log is None:
            return
        try:
            await self._watch.finish(log.fds)
            if log.is_name_asked or not log.is_empty:
                await asyncio.get_running_loop().run_in_executor(self._thread, _give_names, log)
        finally:
            del self._open[task_id, attempt]
            log.close()
            if log.is_named:
                self._watch.linger(log.names)
            else:
                for spare in log.spares:
                    self._use_again(spare)

    def _name_soon(self, log: OpenLog) -> None:
        log.is_name_asked = True
        asyncio.get_running_loop().run_in_executor(self._thread, _try_names, log)

    def _use_again(self, path: str) -> None:
        if len(self._spares) < SPARES_MAX and _is_as_new(path):
            self._spares.append(path)
            return
        self._unneeded.append(path)
        if len(self._unneeded) >= SPARES_LOW:
            unneeded, self._unneeded = self._unneeded, []
            asyncio.get_running_loop().run_in_executor(self._thread, _unlink_all, unneeded)

    def _spare(self) -> str:
        return self._spares.popleft() if self._spares else self._make_spare()

    def _make_spare(self) -> str:
        path = f"{self._root}/spare/{next(self._numbers)}"
        fd = os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(fd, 0o602)
        os.close(fd)
        return path

    def _make_spares(self) -> None:
        """In the thread. A full disk shows where a file is needed and cannot be had."""
        try:
            while len(self._spares) < SPARES_MAX:
                self._spares.append(self._make_spare())
        except OSError:
            return
        finally:
            self._is_making = False

    def find(self, task_id: str, attempt: int, stream: str) -> LogReader | None:
        """A reader of one stream, or None where this host has no such file: nothing was written, or not here."""
        log = self._open.get((task_id, attempt))
        places = [self._name(task_id, attempt, stream)]
        if log is not None:
            places.insert(0, log.spares[STREAMS.index(stream)])
        for place in places:
            try:
                return LogReader(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError:
                continue  # it has its name by now, or never was
        return None

    def remove(self, task_id: str) -> None:
        """Removes every attempt's files of a task; quiet where there are none."""
        for path in self._root.joinpath(task_id[-2:]).glob(f"{task_id}.*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Waits for what is under way."""
        self._watch.close()
        self._thread.shutdown()


def _is_as_new(path: str) -> bool:
    """Whether a file is like one that was made now, and nobody can write to it, or read it, any more."""
    try:
        fd = os.open(path, _WRITE)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        # Room that was reserved, or an attribute, would be a message from one task to the next.
        return is_free(fd) and not found.st_size and not found.st_blocks and not _attributes(fd)
    except OSError:
        return False
    finally:
        os.close(fd)


def _attributes(fd: int) -> list[str]:
    """Extended attributes, where the file system has them."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _give_names(log: OpenLog) -> None:
    """In the thread; the same log comes here once or twice."""
    if log.is_named:
        return
    for spare, name in zip(log.spares, log.names, strict=True):
        with contextlib.suppress(FileNotFoundError):  # named by a try that failed at the other one
            Path(spare).rename(name)
    log.is_named = True


def _try_names(log: OpenLog) -> None:
    """What cannot be named now is tried again, and told, when the attempt is over."""
    with contextlib.suppress(OSError):
        _give_names(log)


def _unlink_all(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # the next start removes what is left
            Path(path).unlink()
