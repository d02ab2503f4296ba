"""The data directory: everything that a node keeps, and the right to be that node.

One data directory, one node: `DataDir.open` takes its lock before anything else is read or written, and the kernel
gives the lock back when the process dies, however it dies. The directory is 0700 and belongs to the user that the
node runs as, since the unix socket in it is the local administrator's door and `pki/` holds the cluster's keys.

    lock               flock(2); holds the pid, for people
    spawner.lock       the same of the spawner, which may outlive the node for a moment (isolation/succession.py)
    host_id            a UUID, made once: finds this host's logs again after a restart
    incarnation.json   the last run: what the next one has to make sure is gone
    cluster.json       the cluster that this host belongs to, and where it is (node/joining/cluster_memory.py)
    node.toml          settings (optional, the administrator's)
    node.sock          the API
    etcd/ pki/ logs/ scratch/ snapshots/

Must not do: start, clean up or interpret anything; what the last incarnation left is for node/app.py to settle.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from node.files import TEMPORARY_PREFIX, write_atomic
from node.host_lock import HostIdBusy, HostLock, runtime_directory

_SUBDIRECTORIES: Final = ("etcd", "pki", "logs", "scratch", "snapshots")
_FILES: Final = ("lock", "spawner.lock", "host_id", "incarnation.json", "cluster.json", "node.toml", "node.sock")

_MACHINE_ID: Final = Path("/etc/machine-id")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class DataDirError(Exception):
    """The directory cannot be used; the text says why and what to do."""


class DataDirBusy(DataDirError):  # noqa: N818  (named after what is so, as in the conventions)
    """Another node has this directory."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"the node with pid {pid}" if pid is not None else "another node"
        #: For those who cannot have a directory of their own.
        self.reason = f"{path} is in use by {who}"
        super().__init__(f"{self.reason}: stop it, or give this one a --data-dir of its own")
        self.path = path
        #: None: the other one has the lock, but has not written its pid yet.
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One run of the node process, kept so that the next run on this host can clear up after it.

    Its lease may only be revoked by the directory that it was written in, on the same machine since the same boot: a
    copied directory must not revoke the lease of a node that lives, elsewhere or here (design, section 4).
    """

    node_id: str
    lease_id: int
    machine_id: str
    boot_id: str
    #: `DataDir.identity` of the directory that it was written in.
    directory: str

    @property
    def is_of_this_boot(self) -> bool:
        """Made on this machine since it was started, as far as both can be told."""
        return self.boot_id != "" and (self.machine_id, self.boot_id) == (machine_id(), boot_id())


def machine_id() -> str:
    """Of systemd's machine-id(5); empty where there is none."""
    return _read_id(_MACHINE_ID)


def boot_id() -> str:
    """The kernel's, new at each boot (random(4)); empty where it cannot be read."""
    return _read_id(_BOOT_ID)


def _read_id(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def check_free(path: Path) -> bool:
    """Whether there is a directory at `path`; if so, it is no node's that runs, nor somebody else's.

    For what only looks: unlike `DataDir.open` it makes, writes and keeps nothing, so that a node may start at any
    moment. Raises DataDirBusy, DataDirError.
    """
    try:
        path = path.absolute()
        if not path.exists():
            return False
        if not path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        _check_ours(path)
        _check_unlocked(path)
    except OSError as error:
        raise DataDirError(explain(path, error)) from error
    return True


def check_can_make(path: Path) -> None:
    """Whether this user could make `path`, which is not there. Raises DataDirError; makes nothing."""
    try:
        above = next(parent for parent in path.absolute().parents if parent.exists())
        code = errno.ENOTDIR if not above.is_dir() else 0 if os.access(above, os.W_OK | os.X_OK) else errno.EACCES
    except OSError as error:
        raise DataDirError(explain(path, error)) from error
    if code:
        raise DataDirError(explain(above, OSError(code, os.strerror(code))))


class DataDir:
    """An opened data directory; it is this process's alone until `close`.

    Made by `open`. The lock's descriptor is close-on-exec, so that no child can keep a dead node's lock.
    """

    def __init__(self, path: Path, lock_fd: int, host_id: str, host_lock: HostLock | None) -> None:
        self.path = path
        self.host_id = host_id
        self._lock_fd: int | None = lock_fd
        found = os.fstat(lock_fd)
        #: Tells this directory from its copies: device and inode of its lock file.
        self.identity = f"{found.st_dev}:{found.st_ino}"
        self._host_lock = host_lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Makes the tree where it is missing, takes the lock and reads or makes the host id.

        Raises DataDirBusy, and DataDirError for whatever else prevents it (somebody else's directory, read-only,
        no space, something in it that is not Pilfer's).
        """
        try:
            path = path.absolute()
            _make_private(path)
            lock_fd = _take_lock(path)
            try:
                for name in _SUBDIRECTORIES:
                    (path / name).mkdir(mode=0o700, exist_ok=True)
                host_id = _host_id(path / "host_id")
                return cls(path, lock_fd, host_id, _take_host_lock(path, host_id))
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            raise DataDirError(explain(path, error)) from error

    def close(self) -> None:
        """Gives the lock back. Again: does nothing. The lock file stays: removing it would let two nodes in."""
        if self._host_lock is not None:
            self._host_lock.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wrote(self, last: Incarnation) -> bool:
        """Whether the last run was in this very directory, on this machine, since its boot: then this is no copy."""
        return last.is_of_this_boot and last.directory == self.identity

    @property
    def spawner_lock(self) -> Path:
        return self.path / "spawner.lock"

    @property
    def socket(self) -> Path:
        return self.path / "node.sock"

    @property
    def etcd(self) -> Path:
        return self.path / "etcd"

    @property
    def pki(self) -> Path:
        return self.path / "pki"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def _incarnation(self) -> Path:
        return self.path / "incarnation.json"

    def find_incarnation(self) -> Incarnation | None:
        """The last run; None where there was none, or where it cannot be read (a lease
        that is not revoked runs out by itself, so that nothing is lost but seconds). Raises DataDirError (disk)."""
        try:
            fields = json.loads(self._incarnation.read_bytes())
            return Incarnation(
                node_id=str(uuid.UUID(fields["node_id"])),
                lease_id=int(fields["lease_id"]),
                machine_id=str(fields["machine_id"]),
                boot_id=str(fields["boot_id"]),
                directory=str(fields["directory"]),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        except OSError as error:
            raise DataDirError(explain(self._incarnation, error)) from error

    def write_incarnation(self, incarnation: Incarnation) -> None:
        """Durable when it returns. Raises DataDirError; then the old one is still there."""
        try:
            write_atomic(self._incarnation, json.dumps(asdict(incarnation), indent=2).encode() + b"\n")
        except OSError as error:
            raise DataDirError(explain(self._incarnation, error)) from error


def _make_private(path: Path) -> None:
    """Leaves a directory at `path` that is ours, 0700, and holds nothing that is not Pilfer's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_ours(path)
    if stat.S_IMODE(path.stat().st_mode) != 0o700:
        path.chmod(0o700)


def _check_ours(path: Path) -> None:
    """Raises DataDirError where the directory is another user's, or holds what is not Pilfer's."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise DataDirError(
            f"{path} belongs to uid {found.st_uid}, this node runs as uid {os.geteuid()}: "
            "run it as its owner, or give it another --data-dir"
        )
    if not (path / "host_id").exists() and stat.S_IMODE(found.st_mode) & 0o077:
        # Closing a directory to everybody else would break what uses it: think of --data-dir /tmp.
        foreign = sorted(entry.name for entry in path.iterdir() if not _is_ours(entry.name))
        if foreign:
            raise DataDirError(
                f"{path} is not empty and not Pilfer's (it holds {foreign[0]}): give the node a directory of its own"
            )


def _is_ours(name: str) -> bool:
    # lost+found: a file system of its own for the data directory is good practice.
    return name in _SUBDIRECTORIES or name in _FILES or name == "lost+found" or name.startswith(TEMPORARY_PREFIX)


def _take_lock(path: Path) -> int:
    """The descriptor that holds the lock. Raises DataDirBusy, OSError."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise DataDirBusy(path, holder) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_unlocked(path: Path) -> None:
    """Raises DataDirBusy, OSError."""
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # Shared: two that look do not meet. A node that starts in these microseconds is refused; it may try again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataDirBusy(path, _holder(descriptor)) from None
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> int | None:
    written = os.pread(descriptor, 32, 0).strip()
    return int(written) if written.isdigit() else None


def _take_host_lock(path: Path, host_id: str) -> HostLock | None:
    """Raises DataDirError where a node of this host id lives on this machine, in another directory."""
    try:
        return HostLock.take(host_id, runtime_directory())
    except HostIdBusy as busy:
        raise DataDirError(
            f"{path} has the host id of a node that runs here in another directory ({busy}): was the data directory "
            "copied? Two nodes must not share a host id: give this one an empty --data-dir and join with a token"
        ) from None


def _host_id(path: Path) -> str:
    """Read, or made once. Raises DataDirError when it cannot be read as a UUID: a new one would orphan the logs."""
    with contextlib.suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        try:
            return str(uuid.UUID(text))
        except ValueError:
            raise DataDirError(
                f"{path} holds no UUID: restore it, or remove it (the node then counts as a new host)"
            ) from None
    host_id = str(uuid.uuid4())
    write_atomic(path, host_id.encode() + b"\n")
    return host_id


_ADVICE: Final = {
    errno.EACCES: "this user may not write there: run as its owner, or give another --data-dir",
    errno.EPERM: "this user may not write there: run as its owner, or give another --data-dir",
    errno.EROFS: "the file system is read-only: give another --data-dir",
    errno.ENOSPC: "the file system is full: make room, or give another --data-dir",
    errno.EDQUOT: "the disk quota is used up: make room, or give another --data-dir",
    errno.ENOTDIR: "part of the path is not a directory",
    errno.EEXIST: "it is there and not a directory",
}


def explain(path: Path, error: OSError) -> str:
    """What cannot be used, why, and what to do about it. path: what it was about, where the error does not say so
    itself (a name that is relative to an open directory says little)."""
    where = error.filename if isinstance(error.filename, str) and Path(error.filename).is_absolute() else path
    advice = _ADVICE.get(error.errno or 0)
    reason = error.strerror or str(error)
    return f"cannot use {where}: {reason}" + (f"; {advice}" if advice else "")
