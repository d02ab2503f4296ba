"""NodeService, Backup: the cluster's data as they are at one moment.

etcd's own snapshot is taken whole and checked before the first byte leaves, so that what a client gets is sound or
ends with an error. It lies on this host's disk meanwhile, in a file that has no name.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from etcd.port import Etcd
from node.api.errors import streams
from node.files import TEMPORARY_PREFIX
from pilfer.v1 import nodes_pb2

CHUNK_BYTES = 256 * 1024


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
        file = await self._snapshot()
        try:
            size = os.fstat(file).st_size
            offset = 0
            while data := await asyncio.to_thread(os.pread, file, CHUNK_BYTES, offset):
                offset += len(data)
                yield nodes_pb2.BackupChunk(data=data, size_bytes=size)
        finally:
            os.close(file)

    async def _snapshot(self) -> int:
        """A descriptor of the only way to it. Raises StoreError, OSError (no space)."""
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=self._directory) as directory:
            file = Path(directory, "snapshot")
            await self._etcd.snapshot(file)
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
