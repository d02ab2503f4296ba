"""Small files that are there whole or not at all, whatever happens in between.

A file is written beside its place, made durable, and renamed over it: rename(2) replaces atomically, and the
directory is synced as well, since a rename lives in the directory. For files of kilobytes; blocks while it syncs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from pathlib import Path

#: Of the leftovers of a crash in the middle of a write; harmless, and swept by nobody but their owner
#: (`remove_temporaries`).
TEMPORARY_PREFIX = ".tmp-"


def write_atomic(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replaces the file at `path`, or makes it, with these bytes and this mode.

    Raises OSError (no space, read-only, not allowed); then the old content is still there, and nothing beside it.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}"
    # O_EXCL and O_NOFOLLOW: what lies there already is not ours, and is not written through.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # The umask may have taken bits away.
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def remove_temporaries(directory: Path) -> list[str]:
    """Removes what a crash left in this directory, not below it; gives the names. For whoever alone writes there, and
    does not yet. Raises OSError.

    Not for a directory whose files are exchanged: there such a name may be the only one (`exchange`).
    """
    found = [path for path in directory.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in found]


def sync_directory(path: Path) -> None:
    """Makes names that were made, replaced or removed in this directory durable. Raises OSError."""
    _sync(path, os.O_DIRECTORY)


def sync_tree(directory: Path) -> None:
    """Makes all in this directory durable, and itself. Raises OSError."""
    for path in (*directory.rglob("*"), directory):
        _sync(path)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Each takes the other's place, at once (renameat2(2), RENAME_EXCHANGE). On a file system that cannot, there is a
    moment in which `other` is not there. Raises OSError."""
    at_cwd, rename_exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc has it since 2.28
    if renameat2 and not renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange):
        return
    error = ctypes.get_errno() if renameat2 else errno.ENOSYS
    if error not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(error, os.strerror(error), str(other))
    between = other.with_name(f"{TEMPORARY_PREFIX}{other.name}")
    other.rename(between)
    one.rename(other)
    between.rename(one)
