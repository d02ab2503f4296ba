"""NodeService, Backup: the cluster's data as they are at one moment.

etcd's own snapshot is taken whole and checked before the first byte leaves, so that what a client gets is sound or
ends with an error. It lies on this host's disk meanwhile: while it is taken, in a directory that the next start removes
if this node is killed; then in a file that has no name. It is refused where the disk has no room for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc

from etcd.port import Etcd
from node.api.errors import ApiError, streams
from node.core.snapshots import RESERVE_BYTES, has_room
from node.files import TEMPORARY_PREFIX
from node.units import format_size
from pilfer.v1 import nodes_pb2

CHUNK_BYTES = 256 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class BackupCall:
    """Backup."""

    def __init__(self, etcd: Etcd, directory: Path) -> None:
        """directory: where the snapshot lies while it is sent; this process's alone."""
        self._etcd = etcd
        self._directory = directory

    @streams
    async def Backup(  # noqa: N802  (gRPC's name)
        self, _request: nodes_pb2.BackupRequest, _context: Any
    ) -> AsyncGenerator[nodes_pb2.BackupChunk, None]:
        database = (await self._etcd.status()).db_size_bytes
        self._check_room(database)
        try:
            file = await self._snapshot()
        except OSError as error:
            if error.errno in _FULL:  # others write to this disk, too
                raise self._no_room(database) from None
            raise
        try:
            size = os.fstat(file).st_size
            offset = 0
            while data := await asyncio.to_thread(os.pread, file, CHUNK_BYTES, offset):
                offset += len(data)
                yield nodes_pb2.BackupChunk(data=data, size_bytes=size)
        finally:
            os.close(file)

    def _check_room(self, database: int) -> None:
        """Before anything is written: what fills this disk stops etcd, which writes to it as well."""
        if not has_room(self._free(), database):
            raise self._no_room(database)

    def _no_room(self, database: int) -> ApiError:
        return ApiError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"no room for a backup on this node: its copy lies below {self._directory} while it is sent, and wants "
            f"twice the database's {format_size(database)} and {format_size(RESERVE_BYTES)} besides; "
            f"{format_size(self._free())} are free. Make room there, or ask another node (--address)",
        )

    def _free(self) -> int:
        return shutil.disk_usage(self._directory).free

    async def _snapshot(self) -> int:
        """A descriptor of the only way to it. Raises StoreError, OSError (no space)."""
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=self._directory) as directory:
            file = Path(directory, "snapshot")
            await self._etcd.snapshot(file)
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
