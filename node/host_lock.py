"""One node per host id on this machine: a lock beside that of the data directory.

The data directory's lock goes with the directory; a copy of the directory has a lock of its own, but the same host id.
Started on the same machine, it would take the control groups of the living original for leftovers of its own last run
(they are named by host id), end all its tasks, and revoke its lease as that of its own last run. So the host id is
locked too, in a place that belongs to the machine. On another machine nothing is to be protected, and etcd's guard on
the host's record keeps the copy out.

The file is removed when the lock is given back, while it is still held; who opened it before that finds another file,
or none, in its place, and tries again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)


class HostIdBusy(Exception):  # noqa: N818  (named after what is so, as in the conventions)
    """Another process on this machine is the node of this host id."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"pid {pid}" if pid is not None else "unknown pid")
        self.pid = pid


def runtime_directory(environ: Mapping[str, str] = os.environ, *, uid: int | None = None) -> Path:
    """Where this machine keeps what lasts until its next boot, for this user."""
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return Path("/run/pilfer")
    base = environ.get("XDG_RUNTIME_DIR", "")
    # Without a session (cron, su) a plain user has nothing better than a directory that anybody could have made:
    # `HostLock.take` looks whose it is.
    return Path(base) / "pilfer" if base.startswith("/") else Path(f"/tmp/pilfer-{uid}")  # noqa: S108  (as said)


class HostLock:
    """Holds the host id until `close`, or until the process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, host_id: str, directory: Path) -> HostLock | None:
        """None where there is no place for it, which is told. Raises HostIdBusy."""
        path = directory / f"{host_id}.lock"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory.lstat().st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another user", str(directory))
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                if _locked(descriptor, path):
                    return cls(path, descriptor)
                os.close(descriptor)
        except OSError as error:
            log.warning("a copy of the data directory could be started beside it: no lock in %s: %s", directory, error)
            return None

    def close(self) -> None:
        """Gives it back. Again: does nothing."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _locked(descriptor: int, path: Path) -> bool:
    """Whether it is locked, and still the file that others will find. Raises HostIdBusy, with the descriptor closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), path.stat())
    except BlockingIOError:
        written = os.pread(descriptor, 32, 0).strip()
        os.close(descriptor)
        raise HostIdBusy(int(written) if written.isdigit() else None) from None
    except BaseException:
        os.close(descriptor)
        raise
    return False
