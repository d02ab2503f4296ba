"""Scratch directories: made for a sandbox, removed with whatever it left there.

A task may leave a million files or directories nested without end, and the spawner has one thread. So removal goes in
small steps between other work: a directory that must go is renamed into the trash, and its subdirectories are renamed
into the trash too instead of being descended into; depth and descriptors stay constant, and no symbolic link is ever
followed.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

TRASH = ".trash"

#: Entries removed in one step: about a millisecond.
STEP_ENTRIES = 64


class ScratchRoot:
    """The directory that holds them all; names are sandbox ids."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(FileExistsError):
            os.mkdir(TRASH, 0o700, dir_fd=self.fd)
        self._trash = os.open(TRASH, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        self._next = 0
        self._queue: deque[str] = deque()
        # What an earlier run left: emptied like anything else.
        with os.scandir(self._trash) as entries:
            self._queue.extend(entry.name for entry in entries)
        with os.scandir(self.fd) as entries:
            names = [entry.name for entry in entries if entry.name != TRASH]
        for name in names:
            self._throw(name, self.fd)

    def make(self, name: str, uid: int) -> None:
        """An empty directory of that owner. Raises OSError."""
        os.mkdir(name, 0o700, dir_fd=self.fd)
        os.chown(name, uid, uid, dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Gone at once where it is empty, else handed to `tidy`."""
        try:
            os.rmdir(name, dir_fd=self.fd)
        except FileNotFoundError:
            return
        except OSError:
            self._throw(name, self.fd)

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

    def tidy(self) -> bool:
        """One short step of removal; True when nothing is left to do."""
        if not self._queue:
            return True
        name = self._queue[0]
        try:
            if self._empty_one(name):
                self._queue.popleft()
        except OSError:
            # A broken file system must not stop the spawner; the next start tries again.
            self._queue.popleft()
        return not self._queue

    def _empty_one(self, name: str) -> bool:
        """Removes up to STEP_ENTRIES of one trash entry; True when it is gone."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._trash)
        except NotADirectoryError:
            os.unlink(name, dir_fd=self._trash)
            return True
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return True
            os.unlink(name, dir_fd=self._trash)  # ELOOP: a symbolic link
            return True
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
        if len(entries) == STEP_ENTRIES:
            return False
        os.rmdir(name, dir_fd=self._trash)
        return True

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
        with contextlib.suppress(OSError):
            os.rmdir(TRASH, dir_fd=self.fd)
        os.close(self._trash)
        os.close(self.fd)
