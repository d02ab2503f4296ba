"""Removes the logs of tasks that are forgotten, on the hosts that did not forget them.

Which task is forgotten is decided on one node (`node/retention.py`), which removes its own logs of it; a host that ran
an attempt hears nothing of that. So each host looks through its own log files, one directory of 256 at a time, and
asks for the records: what has none, and was not written to for some minutes, goes. A record is there before its task's
log and for as long as the task; the age is for what nobody thought of.

Costs: point reads without values, a hundred in one call; every file is asked for about once an hour.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from etcd import keys
from etcd.errors import StoreError
from etcd.port import Etcd, Range, RangeResult, Txn
from node.running.logs import LogStore

log = logging.getLogger(__name__)

#: A file that was written to since is left alone.
MIN_AGE_S = 600.0
#: Between two directories: all of them in about an hour.
LOOK_EVERY_S = 15.0
#: Records asked for in one call, and files removed before others get their turn.
BATCH = 100
SHARDS = 256
TIMEOUT_S = 10.0


class LogSweep:
    """The duty of each host for its own files."""

    def __init__(
        self,
        etcd: Etcd,
        logs: LogStore,
        root: Path,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """root: the directory of `logs`. clock: Unix seconds, as the times of files."""
        self._etcd = etcd
        self._logs = logs
        self._root = root
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Ends when cancelled. Errors cost a directory its turn, not the node."""
        while True:
            for shard in range(SHARDS):
                await self._sleep(LOOK_EVERY_S)
                try:
                    removed = await self.look(shard)
                except (StoreError, OSError) as error:
                    log.warning("logs of forgotten tasks could not be removed, trying again later: %s", error)
                else:
                    if removed:
                        log.info("logs of %d forgotten tasks removed", removed)

    async def look(self, shard: int) -> int:
        """Looks through one directory; gives the number of tasks whose logs were removed."""
        directory = self._root / f"{shard:02x}"
        old = await asyncio.to_thread(_tasks_in, directory, self._clock() - MIN_AGE_S)
        removed = 0
        for start in range(0, len(old), BATCH):
            for task_id in await self._without_record(old[start : start + BATCH]):
                self._logs.remove(task_id)
                removed += 1
            await asyncio.sleep(0)
        return removed

    async def _without_record(self, task_ids: list[str]) -> list[str]:
        ops = tuple(Range(keys.task(task_id), count_only=True) for task_id in task_ids)
        result = await self._etcd.txn(Txn(success=ops), timeout_s=TIMEOUT_S)
        counts = [one.count for one in result.results if isinstance(one, RangeResult)]
        return [task_id for task_id, count in zip(task_ids, counts, strict=True) if not count]


def _tasks_in(directory: Path, before_s: float) -> list[str]:
    """In a thread: the tasks all of whose files were last written to before that time (Unix seconds)."""
    newest: dict[str, float] = {}
    for entry in os.scandir(directory):
        task_id = entry.name.partition(".")[0]
        if keys.is_task_id(task_id):
            try:
                written_at = entry.stat(follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            newest[task_id] = max(newest.get(task_id, 0.0), written_at)
    return sorted(task_id for task_id, written_at in newest.items() if written_at < before_s)
