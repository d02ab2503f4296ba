"""What keeps the database small, the logs in step with it, and copies of it at hand: compaction, retention, the removal
of logs whose tasks are forgotten, snapshots. Every node runs all of it; which steps are one node's alone, each part
asks by itself (`node/cluster/duties.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from etcd.maintenance import Maintenance
from node.recovery.snapshots import Snapshots
from node.retention import Retention
from node.running.log_sweep import LogSweep
from node.running.logs import LogStore

#: Files removed before others get their turn.
REMOVED_AT_ONCE = 50


class StoreDuties:
    """Runs the duties; says when the database is filling up."""

    def __init__(
        self,
        maintenance: Maintenance,
        retention: Retention,
        log_sweep: LogSweep | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._maintenance = maintenance
        self._retention = retention
        self._log_sweep = log_sweep
        self._snapshots = snapshots

    @property
    def refusal(self) -> str | None:
        """Why no submit is taken right now, or None."""
        if not self._maintenance.is_filling_up:
            return None
        return (
            "the cluster's database is over 80 % of its quota; nothing new is stored until finished tasks are "
            "deleted. Try again later, or change retention_count, retention_age or etcd_quota"
        )

    async def run(self) -> None:
        """Ends when cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._maintenance.run(), name="maintenance")
            group.create_task(self._retention.run(), name="retention")
            if self._log_sweep is not None:
                group.create_task(self._log_sweep.run(), name="log sweep")
            if self._snapshots is not None:
                group.create_task(self._snapshots.run(), name="snapshots")


async def remove_logs(logs: LogStore, task_ids: Sequence[str]) -> None:
    """Removes the logs of forgotten tasks, a few at a time."""
    for start in range(0, len(task_ids), REMOVED_AT_ONCE):
        for task_id in task_ids[start : start + REMOVED_AT_ONCE]:
            logs.remove(task_id)
        await asyncio.sleep(0)
