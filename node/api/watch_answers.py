"""What a watch asks for, and its answers: which transitions are told, and how many go into one message. No I/O.

A message costs the node and its client together about 0.3 ms, whatever is in it; a transition within one costs far
less. So whoever asks for groups gets what came together in one message, and under load what came within a few ms.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from etcd import keys
from etcd.errors import RecordCorrupt
from etcd.port import Event, KeyRange
from node.api.tasks import without_stdin
from pilfer.v1 import records_pb2, tasks_pb2

log = logging.getLogger(__name__)

#: Up to here a watch per id costs etcd less than sending every record's changes.
SINGLE_WATCHES_MAX = 64
ENDED = frozenset({records_pb2.TASK_STATUS_COMPLETE, records_pb2.TASK_STATUS_CANCELED, records_pb2.TASK_STATUS_FAILED})
#: In one message. The bytes may be passed by one transition's (a record has at most 1 MiB).
GROUP_MAX = 500
GROUP_MAX_BYTES = 1024 * 1024
#: Under load a call sends this often, ...
GROUP_EVERY_S = 0.005
#: ... after so many messages that went at once.
BURST = 8


@dataclass(frozen=True)
class Wanted:
    """What one call follows. ids empty: all tasks."""

    ids: frozenset[str] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)
    ended_only: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether a watch for each id alone would do."""
        return 0 < len(self.ids) <= SINGLE_WATCHES_MAX

    def ranges(self) -> Sequence[KeyRange]:
        """What to watch for it."""
        if self.is_narrow:
            return [KeyRange(keys.task(task_id)) for task_id in sorted(self.ids)]
        return [keys.all_tasks()]

    def has_id(self, task_id: str) -> bool:
        return not self.ids or task_id in self.ids

    def has(self, response: tasks_pb2.WatchResponse) -> bool:
        """Whether a transition of a task with a wanted id is told. That a task was deleted always is."""
        if response.deleted:
            return True
        if self.ended_only and not has_ended(response):
            return False
        return not self.labels or self.labels.items() <= dict(response.task.spec.labels).items()


class Pace:
    """How long the next message should wait, so that a lone transition goes at once and a stream of them in groups.

    A bucket of BURST messages, filled with one every GROUP_EVERY_S.
    """

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = 0.0

    def delay_s(self, now: float) -> float:
        """For one message that is ready now (seconds of a monotonic clock); counts it as sent after that."""
        self._left = min(float(BURST), self._left + (now - self._at) / GROUP_EVERY_S) - 1
        self._at = now
        return max(0.0, -self._left * GROUP_EVERY_S)


def has_ended(response: tasks_pb2.WatchResponse) -> bool:
    return response.task.status in ENDED


def id_of(event: Event) -> str | None:
    """None for a stranger's key."""
    try:
        return keys.parse_task(event.kv.key)
    except RecordCorrupt as error:
        _log_stranger(event, error)
        return None


def response_of(event: Event, task_id: str) -> tasks_pb2.WatchResponse | None:
    """None for what is no record of ours. task_id: of the event's key."""
    if event.is_delete:
        gone = records_pb2.Task(id=task_id)
        return tasks_pb2.WatchResponse(task=gone, revision=event.kv.mod_revision, deleted=True)
    try:
        return of_record(event.kv.value, event.kv.mod_revision)
    except DecodeError as error:
        _log_stranger(event, error)
        return None


def of_record(value: bytes, revision: int) -> tasks_pb2.WatchResponse:
    """Raises DecodeError."""
    return tasks_pb2.WatchResponse(task=without_stdin(records_pb2.Task.FromString(value)), revision=revision)


def responses_of(events: Iterable[Event], wanted: Wanted) -> list[tasks_pb2.WatchResponse]:
    """Those that are told, in order."""
    found = []
    for event in events:
        task_id = id_of(event)
        if task_id is not None and wanted.has_id(task_id):
            response = response_of(event, task_id)
            if response is not None and wanted.has(response):
                found.append(response)
    return found


def messages(responses: Sequence[tasks_pb2.WatchResponse], *, are_grouped: bool) -> Iterator[tasks_pb2.WatchResponse]:
    """The same in as few messages as the client takes, in order."""
    if not are_grouped:
        yield from responses
        return
    group: list[tasks_pb2.WatchResponse] = []
    size = 0
    for response in responses:
        group.append(response)
        size += response.ByteSize()
        if len(group) == GROUP_MAX or size >= GROUP_MAX_BYTES:
            yield _group(group)
            group, size = [], 0
    if group:
        yield _group(group)


def _group(group: Sequence[tasks_pb2.WatchResponse]) -> tasks_pb2.WatchResponse:
    return group[0] if len(group) == 1 else tasks_pb2.WatchResponse(group=group)


def _log_stranger(event: Event, error: Exception) -> None:
    log.error("not told to watchers: %r: %s", event.kv.key, error)
