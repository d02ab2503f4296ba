"""Scratch directories: made for a sandbox, removed with whatever it left there.

A task may leave a million files or directories nested without end, and the spawner has one thread. So removal goes in
small steps between other work: a directory that must go is renamed into the trash, and its subdirectories are renamed
into the trash too instead of being descended into; depth and descriptors stay constant, and no symbolic link is ever
followed.

A directory that comes back empty, and with nothing attached to it (mode, attributes), is kept for the next sandbox:
five times cheaper than rmdir and mkdir on ext4, which looks long for an inode that was not deleted lately.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from pathlib import Path

from isolation import quota
from isolation.scratch_policy import Space, default_bytes, limit_of

TRASH = ".trash"
SPARE = ".spare"

#: Empty directories kept for the next sandboxes.
SPARES_MAX = 64

#: Entries removed in one step: about a millisecond.
STEP_ENTRIES = 64
#: What opening and removing a directory costs, in entries: directories nested without end have one each.
_DIRECTORY_COSTS = 4

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ScratchRoot:
    """The directory that holds them all; names are sandbox ids, and no paths."""

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        """limit_bytes: what each directory may hold; None: a quarter of the file system. Raises OSError."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstatvfs(self.fd)
        self.limit_bytes = limit_bytes or default_bytes(found.f_blocks * found.f_frsize)
        #: None: the file system bounds nothing, and the directories are watched alone.
        self._projects = quota.find(self.fd)
        self._project_of: dict[str, int] = {}
        with contextlib.suppress(FileExistsError):
            os.mkdir(TRASH, 0o700, dir_fd=self.fd)
        #: All directories are below SPARE under a number of their own, in use or not: what changes hands is renamed
        #: nowhere, since a rename takes a lock of the whole file system, and longer than everything else here.
        self._spares: list[tuple[str, int]] = []
        self._in_use: dict[str, str] = {}
        self._trash = os.open(TRASH, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        self._next = 0
        self._queue: deque[str] = deque()
        #: Trash that could not be removed.
        self._stubborn: list[str] = []
        #: Directories in use by nobody that could not even be put into the trash.
        self._unthrown: list[str] = []
        # What an earlier run left: emptied like anything else.
        with os.scandir(self._trash) as entries:
            self._queue.extend(entry.name for entry in entries)
        with os.scandir(self.fd) as entries:
            names = [entry.name for entry in entries if entry.name != TRASH]
        for name in names:
            self._throw(name, self.fd)
        os.mkdir(SPARE, 0o700, dir_fd=self.fd)
        self._spare = os.open(SPARE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)

    def make(self, name: str, uid: int, gid: int, wanted_bytes: int | None = None) -> str:
        """An empty directory of that owner, bounded where the file system can do that: its path below the root.
        wanted_bytes: what it may hold, where that is less than each may. Raises OSError."""
        if name in self._in_use:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        directory, owner = self._spares.pop() if self._spares else self._new()
        try:
            if owner != uid:
                os.chown(directory, uid, gid, dir_fd=self._spare)
            if self._projects is not None:
                self._bound(self._projects, name, directory, limit_of(wanted_bytes, self.limit_bytes))
        except OSError:
            self._throw_away(directory)
            raise
        self._in_use[name] = directory
        return self.path_of(name)

    def path_of(self, name: str) -> str:
        """Below the root, of one that is in use."""
        return f"{SPARE}/{self._in_use[name]}"

    def _bound(self, projects: quota.Projects, name: str, directory: str, limit: Space) -> None:
        fd = os.open(directory, _DIRECTORY, dir_fd=self._spare)
        try:
            self._project_of[name] = projects.bound(fd, limit)
        finally:
            os.close(fd)

    def _new(self) -> tuple[str, int]:
        """A directory, and its owner, who is no sandbox's user."""
        self._next += 1
        os.mkdir(str(self._next), 0o700, dir_fd=self._spare)
        return str(self._next), -1

    def remove(self, name: str, *, may_keep: bool = True) -> None:
        """Out of sight at once: kept for the next one where it is empty and may be, else handed to `tidy`. Never
        raises: a disk that is full or broken is no reason to end the sandboxes of others.

        may_keep: nobody else can have been given a descriptor of it, by which he could look into the next one's.
        """
        self._unbound(name)
        self._queue.extend(self._stubborn)
        self._stubborn.clear()
        unthrown, self._unthrown = self._unthrown, []
        for one in unthrown:
            self._throw_away(one)
        directory = self._in_use.pop(name, None)
        if directory is None:
            return
        try:
            if not may_keep or len(self._spares) >= SPARES_MAX or not self._keep(directory):
                os.rmdir(directory, dir_fd=self._spare)
        except FileNotFoundError:
            return
        except OSError:
            self._throw_away(directory)

    def _throw_away(self, directory: str) -> None:
        """Into the trash, now or, where even that fails (no block left for the name, a file system that was made
        read-only), when the next sandbox is gone. Its name is given to nobody meanwhile."""
        try:
            self._throw(directory, self._spare)
        except OSError:
            self._unthrown.append(directory)

    def _unbound(self, name: str) -> None:
        """What is left in it counts until it is removed, against nothing."""
        project = self._project_of.pop(name, None)
        if project is not None and self._projects is not None:
            with contextlib.suppress(OSError):  # of a project that is never used again
                self._projects.release(project)

    def _keep(self, directory: str) -> bool:
        """Makes it a spare if nothing tells it from a new one. Raises OSError."""
        fd = os.open(directory, _DIRECTORY, dir_fd=self._spare)
        try:
            # An attribute, also an access list, would be a message from one task to the next.
            found = os.fstat(fd)
            if stat.S_IMODE(found.st_mode) != 0o700 or _attributes(fd) or not _is_empty(fd):
                return False
            if self._projects is not None:
                quota.set_project(fd, 0)
        finally:
            os.close(fd)
        self._spares.append((directory, found.st_uid))
        return True

    def _throw(self, name: str, dir_fd: int) -> None:
        while True:
            self._next += 1
            trash = f"t{self._next}"
            try:
                # A file of that name is no obstacle to find out about: rename(2) would replace it.
                os.stat(trash, dir_fd=self._trash, follow_symlinks=False)
            except FileNotFoundError:
                break
        os.rename(name, trash, src_dir_fd=dir_fd, dst_dir_fd=self._trash)
        self._queue.append(trash)

    @property
    def has_trash(self) -> bool:
        """Whether `tidy` has something to do."""
        return bool(self._queue)

    def tidy(self) -> bool:
        """One short step of removal; True when nothing is left to do."""
        budget = STEP_ENTRIES
        while self._queue and budget > 0:
            try:
                removed = self._empty_one(self._queue[0])
            except OSError:
                # A broken file system, or a task that was lent the directory and fills it while it is emptied: neither
                # must hold the spawner up. Tried again when the next sandbox is gone, which may be that task's.
                removed = 0
                self._stubborn.append(self._queue.popleft())
            else:
                if removed < STEP_ENTRIES:
                    self._queue.popleft()
            budget -= removed + _DIRECTORY_COSTS
        return not self._queue

    def _empty_one(self, name: str) -> int:
        """Removes up to STEP_ENTRIES of one trash entry, and gives how many; less: it is gone."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._trash)
        except NotADirectoryError:
            os.unlink(name, dir_fd=self._trash)
            return 0
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return 0
            os.unlink(name, dir_fd=self._trash)  # ELOOP: a symbolic link
            return 0
        try:
            entries: list[tuple[str, bool]] = []
            with os.scandir(fd) as found:
                for entry in found:
                    entries.append((entry.name, entry.is_dir(follow_symlinks=False)))
                    if len(entries) == STEP_ENTRIES:
                        break
            for entry_name, is_dir in entries:
                if is_dir:
                    self._discard(entry_name, fd)
                else:
                    os.unlink(entry_name, dir_fd=fd)
        finally:
            os.close(fd)
        if len(entries) < STEP_ENTRIES:
            os.rmdir(name, dir_fd=self._trash)
        return len(entries)

    def _discard(self, name: str, dir_fd: int) -> None:
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError:
            self._throw(name, dir_fd)

    def close(self, *, patience_steps: int = 1000) -> None:
        """Removes what is left as far as that goes quickly; the next start goes on."""
        for _ in range(patience_steps):
            if self.tidy():
                break
        for spare, _ in self._spares:
            with contextlib.suppress(OSError):
                os.rmdir(spare, dir_fd=self._spare)
        with contextlib.suppress(OSError):
            os.rmdir(SPARE, dir_fd=self.fd)
        os.close(self._spare)
        with contextlib.suppress(OSError):
            os.rmdir(TRASH, dir_fd=self.fd)
        os.close(self._trash)
        os.close(self.fd)


def _attributes(fd: int) -> list[str]:
    """Extended attributes, where the file system has them."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _is_empty(fd: int) -> bool:
    with os.scandir(fd) as entries:
        return next(entries, None) is None
