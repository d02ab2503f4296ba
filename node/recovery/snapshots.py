"""Rolling snapshots: every node keeps the newest few copies of the cluster's data on its own disk.

They are what `node backup` writes, and go back with `node restore`: for the day on which the disks of all voters are
gone. A snapshot that fails is tried again, and said; nothing else of the node depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from etcd.errors import StoreError
from etcd.port import Etcd
from node.core.snapshots import due_in_s, has_room, to_drop

log = logging.getLogger(__name__)

#: Their names tell when each was begun, and sort by it.
_NAME = "%Y%m%dT%H%M%SZ.db"
#: After one that failed.
RETRY_S = 60.0
#: Between two looks at least, and at most: the number of nodes changes what is due.
LOOK_MIN_S = 0.5
LOOK_MAX_S = 60.0


class Snapshots:
    """The snapshots of this host, in a directory of their own."""

    def __init__(
        self,
        etcd: Etcd,
        directory: Path,
        host_id: str,
        *,
        interval_s: float,
        count_nodes: Callable[[], int],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """interval_s: between two, in a cluster of few nodes; 0: none are taken. count_nodes: how many live now."""
        self._etcd = etcd
        self._directory = directory
        self._host_id = host_id
        self._interval_s = interval_s
        self._count_nodes = count_nodes
        self._wall_clock = wall_clock
        self._is_room_told = False

    async def run(self) -> None:
        """Ends when cancelled."""
        if self._interval_s <= 0:
            return
        clock = asyncio.get_running_loop().time  # not the wall's, which may be put right meanwhile
        began = clock()
        while True:
            wait_s = await self._turn(clock() - began)
            await asyncio.sleep(wait_s)

    async def _turn(self, up_s: float) -> float:
        """Takes one if it is due; seconds until the next look."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)  # an operator may have removed it, to make room
            self._tidy()
            due_s = self._due_in_s(up_s)
            if due_s > 0:
                return min(LOOK_MAX_S, max(LOOK_MIN_S, due_s))
            return LOOK_MIN_S if await self._take() else RETRY_S
        except (StoreError, OSError) as error:
            log.warning("no snapshot of the cluster's data could be taken, trying again in %.0f s: %s", RETRY_S, error)
            return RETRY_S

    def _due_in_s(self, up_s: float) -> float:
        ages = [self._wall_clock() - _begun_at(file) for file in self._files()]
        age_s = min((age for age in ages if age >= 0), default=None)  # those of a clock that was ahead tell nothing
        return due_in_s(age_s, up_s, self._host_id, interval_s=self._interval_s, nodes=self._count_nodes())

    async def _take(self) -> bool:
        """Whether it is there now."""
        files = self._files()
        free = shutil.disk_usage(self._directory).free
        if not has_room(free, files[-1].stat().st_size if files else 0):
            if not self._is_room_told:
                log.warning(
                    "no room for a snapshot of the cluster's data below %s: %d bytes free", self._directory, free
                )
            self._is_room_told = True
            return False
        self._is_room_told = False
        file = self._directory / datetime.fromtimestamp(self._wall_clock(), UTC).strftime(_NAME)
        size = await self._etcd.snapshot(file)
        log.info("snapshot of the cluster's data: %s, %d bytes", file.name, size)
        for name in to_drop([path.name for path in self._files()], file.name):
            (self._directory / name).unlink(missing_ok=True)
        return True

    def _files(self) -> list[Path]:
        """The oldest first."""
        return sorted(path for path in self._directory.iterdir() if _begun_at(path))

    def _tidy(self) -> None:
        """Removes what a killed node left half written."""
        for path in self._directory.iterdir():
            if path.name.endswith(".new"):
                path.unlink(missing_ok=True)


def _begun_at(file: Path) -> float:
    """Unix seconds; 0 for what is no snapshot."""
    try:
        return datetime.strptime(file.name, _NAME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
