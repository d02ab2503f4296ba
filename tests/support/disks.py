"""A disk of limited size for each node of a laboratory: to be filled up and freed, without touching the machine's own.

An ext4 image in a sparse file, mounted by a loop device: what a node meets when it is full is what a real disk says,
with delayed allocation, journal and fsync. (A tmpfs would do none of that, and the kernel would count the output of a
task as the task's own memory.) It is filled by fallocate, which takes blocks without writing them, so that a full disk
costs the machine neither room nor time.

What may leak is a mount: it outlives a killed laboratory, and the next one takes it away (`unmount_below`). The loop
device goes with its mount (autoclear, see losetup(8)).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = ("mount", "umount", "mkfs.ext4", "losetup")
#: etcd's log alone takes some 64 MiB pieces ahead, and a node takes snapshots only while 1 GiB stays free.
SIZE_BYTES = 2 << 30
#: fallocate gives what it is asked for, or nothing: it is asked for less and less.
_PIECES = tuple(1 << power for power in range(28, 11, -1))
_UNMOUNT_S = 10.0


class DiskError(Exception):
    """A disk could not be made; the text has what the program said."""


def find_lack() -> str | None:
    """What this machine lacks for disks, in words; None where nothing is missing."""
    if os.geteuid() != 0:
        return "mounting a disk image needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found (packages mount and e2fsprogs)"
    return None if Path("/dev/loop-control").exists() else "no loop devices (/dev/loop-control is missing)"


class Disk:
    """One disk, mounted at `path` from its making to `end`."""

    def __init__(self, path: Path, size_bytes: int = SIZE_BYTES) -> None:
        """Makes and mounts it; `path` and the image beside it must not be there. Raises DiskError."""
        self.path = path
        self._image = path.with_name(f"{path.name}.image")
        self._ballast = path / "ballast"
        path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        # Nothing is kept back for root, who would otherwise never meet a full disk; nothing is written in advance.
        _run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(self._image))
        # What is deleted gives its room back to the machine.
        _run("mount", "-o", "loop,noinit_itable,discard,nosuid,nodev", str(self._image), str(path))

    @property
    def free_bytes(self) -> int:
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    @property
    def is_filled(self) -> bool:
        """Whether `fill` was called, and not undone."""
        return self._ballast.exists()

    def fill(self) -> None:
        """Takes every block that is free now. What is deleted later can be used again, as on any full disk."""
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = os.fstat(descriptor).st_size
            for piece in _PIECES:
                while _is_taken(descriptor, end, piece):
                    end += piece
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Undoes `fill`."""
        self._ballast.unlink(missing_ok=True)

    def end(self) -> None:
        """Unmounts and removes it. Nobody may use it any more; who does nevertheless keeps it busy, unseen."""
        unmount(self.path)
        self._image.unlink(missing_ok=True)


def _is_taken(descriptor: int, offset: int, size: int) -> bool:
    try:
        os.posix_fallocate(descriptor, offset, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DiskError(f"{' '.join(command)}: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    """Waits a moment until nobody uses it; after that it is only taken out of sight, and ends with its last user."""
    deadline = time.monotonic() + _UNMOUNT_S
    while os.path.ismount(path):
        force = ("--lazy",) if time.monotonic() > deadline else ()
        done = subprocess.run(["umount", *force, str(path)], capture_output=True, check=False)
        if done.returncode:
            time.sleep(0.1)


def unmount_below(directory: Path) -> None:
    """Every mount below a directory, whoever made it, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    inside = [place for line in lines if directory in (place := Path(line.split(" ")[4])).parents]
    for place in sorted(inside, reverse=True):
        unmount(place)
