"""TaskService.Watch: transitions as they happen, from etcd's own watch, in its order and with its revisions.

With ids, the present state of each comes first and the watch goes on from the revision at which it was read, so that
nothing between the two is missed. A few ids are watched one by one; many, or all, as the one range of all records.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from etcd import keys
from etcd.errors import RecordCorrupt
from etcd.port import Etcd, Event, KeyRange, Range, Txn
from node.api import without_stdin
from node.api_errors import invalid, not_found, streams
from node.core import ids
from node.core.validate import Violation
from pilfer.v1 import records_pb2, tasks_pb2

log = logging.getLogger(__name__)

#: Up to here a watch per id costs etcd less than sending every record's changes.
SINGLE_WATCHES_MAX = 64
ENDED = frozenset({records_pb2.TASK_STATUS_COMPLETE, records_pb2.TASK_STATUS_CANCELED, records_pb2.TASK_STATUS_FAILED})
#: Reads in one transaction (etcd's default limit of operations is 128).
READS_AT_ONCE = 100


class WatchCall:
    """The streaming call of TaskService that follows records."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd

    @streams
    async def Watch(  # noqa: N802  (gRPC's name)
        self, request: tasks_pb2.WatchRequest, _context: Any
    ) -> AsyncGenerator[tasks_pb2.WatchResponse, None]:
        wanted_ids = frozenset(request.ids)
        for task_id in wanted_ids:
            if not ids.is_task_id(task_id):
                raise invalid([Violation("ids", f"{task_id!r} is no full task id")])
        start = request.from_revision if request.HasField("from_revision") else None
        if start is not None and start < 1:
            raise invalid([Violation("from_revision", "must be 1 or more")])
        labels = dict(request.labels)
        newest: dict[str, int] = {}

        def is_wanted(response: tasks_pb2.WatchResponse) -> bool:
            task = response.task
            if (wanted_ids and task.id not in wanted_ids) or response.revision <= newest.get(task.id, 0):
                return False
            if response.deleted:
                return True
            return (_has_ended(response) or not request.ended_only) and labels.items() <= dict(task.spec.labels).items()

        has_present = bool(wanted_ids) and start is None
        if start is None and not has_present:
            start = await self._revision() + 1
        async with self._etcd.watch(_ranges(wanted_ids), start_revision=start) as batches:
            present: list[tasks_pb2.WatchResponse] = []
            if has_present:
                # Read once the watch stands: a watch from a revision that has passed is served only every 100 ms
                # (etcd's unsynced watchers), which a short task would wait for. What is told twice is left out.
                present, read_at = await self._present(list(request.ids))
                start = read_at + 1
                newest = {response.task.id: response.revision for response in present}
                if request.ended_only:
                    present = [response for response in present if _has_ended(response)]
            ready = tasks_pb2.WatchResponse(ready=True, revision=start or 0)
            for response in (*present, ready) if request.ended_only else (ready, *present):
                yield response
            async for batch in batches:
                for event in batch.events:
                    told = _response(event)
                    if told is not None and is_wanted(told):
                        yield told

    async def _revision(self) -> int:
        """etcd's newest; by a read of a key that is never there."""
        return (await self._etcd.range(Range(keys.all_tasks().key, keys_only=True))).revision

    async def _present(self, wanted: Sequence[str]) -> tuple[list[tasks_pb2.WatchResponse], int]:
        """The state of each id, in their order, and the oldest revision at which one was read."""
        found: list[tasks_pb2.WatchResponse] = []
        oldest: int | None = None
        for start in range(0, len(wanted), READS_AT_ONCE):
            some = wanted[start : start + READS_AT_ONCE]
            result = await self._etcd.txn(Txn(success=tuple(Range(keys.task(task_id)) for task_id in some)))
            oldest = result.revision if oldest is None else oldest
            for task_id, read in zip(some, result.results, strict=True):
                kvs = getattr(read, "kvs", ())
                if not kvs:
                    raise not_found(task_id)
                found.append(_of_record(kvs[0].value, kvs[0].mod_revision))
        return found, oldest or 0


def _ranges(wanted_ids: frozenset[str]) -> Sequence[KeyRange]:
    if wanted_ids and len(wanted_ids) <= SINGLE_WATCHES_MAX:
        return [KeyRange(keys.task(task_id)) for task_id in sorted(wanted_ids)]
    return [keys.all_tasks()]


def _has_ended(response: tasks_pb2.WatchResponse) -> bool:
    return response.task.status in ENDED


def _response(event: Event) -> tasks_pb2.WatchResponse | None:
    """None for what is no record of ours."""
    try:
        task_id = keys.parse_task(event.kv.key)
        if event.is_delete:
            gone = records_pb2.Task(id=task_id)
            return tasks_pb2.WatchResponse(task=gone, revision=event.kv.mod_revision, deleted=True)
        return _of_record(event.kv.value, event.kv.mod_revision)
    except (RecordCorrupt, DecodeError) as error:
        log.error("not told to watchers: %r: %s", event.kv.key, error)  # noqa: TRY400  (a stranger's key, no defect of ours)
        return None


def _of_record(value: bytes, revision: int) -> tasks_pb2.WatchResponse:
    return tasks_pb2.WatchResponse(task=without_stdin(records_pb2.Task.FromString(value)), revision=revision)
