"""Whether a file is a whole backup: told before anything is made or changed, and without etcd.

A backup is etcd's snapshot: its database (bbolt, a file of pages), and behind it the SHA-256 of that. etcd's program
compares it too (`unpack.py`), but only once a place is made for the data, and in words about its own flags.

Must not do: open the database. Of which cluster it is, is found when it is unpacked.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from node.datadir import DataDirError

#: Of the database's first page, behind the header that each page has (bbolt's page.go and db.go), as this machine
#: writes numbers or as one of the other kind does.
_MAGIC: Final = 0xED0CDAED
_MAGICS: Final = (_MAGIC.to_bytes(4, "little"), _MAGIC.to_bytes(4, "big"))
_MAGIC_AT: Final = 16
_DIGEST_BYTES: Final = 32
#: The database's size is a multiple of this, whatever the size of its pages is.
_BLOCK_BYTES: Final = 512
_PART_BYTES: Final = 1 << 20

_ADVICE_OTHER: Final = "Give it a file that node backup wrote, or one from snapshots/ of a node's data directory"
_ADVICE_DAMAGED: Final = (
    "Copy it again from where it was made, byte for byte, or take another: every node has some in snapshots/"
)


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A backup whose checksum was compared."""

    path: Path
    size_bytes: int
    #: Unix seconds; of the file, which a copy may have made younger than what it holds.
    written_at: float


def check_backup(file: Path, tell: Callable[[int], None] = lambda _read: None) -> BackupFile:
    """Reads all of it. Raises DataDirError, which says what is wrong with it and what to do.

    tell: given the bytes read so far, each time.
    """
    try:
        # Without O_NONBLOCK a named pipe that nobody writes to would be waited for.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as source:
            found = os.fstat(source.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _unfit(file, "it is no plain file", _ADVICE_OTHER)
            _check_content(file, source, found.st_size, tell)
    except OSError as error:
        raise DataDirError(f"{file} cannot be read: {error.strerror or error}") from error
    return BackupFile(file, found.st_size, found.st_mtime)


def _check_content(file: Path, source: BinaryIO, size: int, tell: Callable[[int], None]) -> None:
    if size == 0:
        raise _unfit(file, "it is empty", _ADVICE_OTHER)
    if source.read(_MAGIC_AT + 4)[_MAGIC_AT:] not in _MAGICS:
        raise _unfit(file, "it is no backup", _ADVICE_OTHER)
    if size % _BLOCK_BYTES != _DIGEST_BYTES:
        why = "it is cut off, or a copy of etcd's own files: it does not end with its checksum"
        raise _unfit(file, why, _ADVICE_DAMAGED)
    source.seek(0)
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES
    while left and (part := source.read(min(_PART_BYTES, left))):
        digest.update(part)
        left -= len(part)
        tell(size - left)
    if left or source.read(_DIGEST_BYTES) != digest.digest():
        raise _unfit(file, "it is damaged or cut off: it does not fit its checksum", _ADVICE_DAMAGED)


def _unfit(file: Path, why: str, advice: str) -> DataDirError:
    return DataDirError(f"{file} cannot be restored: {why}. {advice}")
