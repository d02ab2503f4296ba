"""The key schema: the one place that builds and parses keys.

    /task/UUID                                  the record: the truth about one task
    /task/status/queued/UUID                    its index key while it is queued
    /task/status/running/NODE_ID/UUID           while it runs
    /task/status/complete|canceled|failed/EPOCH/UUID   when it has ended
    /node/NODE_ID                               a living node (leased)
    /cluster/...                                settings, hosts, duties

Ids are UUIDs in canonical lower-case text. EPOCH is the second in which the task ended (Unix time), zero-padded to
12 digits, so that the keys of a status sort by time. `/task/` is a prefix of `/task/status/`: all records and nothing
else are the range from `/task/0` to `/task/g`, since ids begin with a hexadecimal digit.

Nothing here does I/O or knows values. What cannot be parsed raises RecordCorrupt: somebody else wrote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from etcd.errors import RecordCorrupt
from etcd.port import KeyRange
from node.core.model import Status, Task

#: Digits of EPOCH: enough until the year 33658, and sorted as text.
EPOCH_DIGITS = 12
EPOCH_END = 10**EPOCH_DIGITS

_TASK = b"/task/"
_STATUS = b"/task/status/"
_QUEUED = b"/task/status/queued/"
_RUNNING = b"/task/status/running/"
_NODE = b"/node/"
_CLUSTER = b"/cluster/"
_TERMINAL = {s: _STATUS + s.value.encode() + b"/" for s in (Status.COMPLETE, Status.CANCELED, Status.FAILED)}
_TERMINAL_WORDS = {s.value.encode(): s for s in _TERMINAL}

_UUID_TEXT = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID = re.compile(_UUID_TEXT, re.ASCII)
_UUID_BYTES = re.compile(_UUID_TEXT.encode())
_ID_PREFIX = re.compile(r"[0-9a-f-]*", re.ASCII)
_EPOCH = re.compile(rb"[0-9]{12}")


# -- ids ----------------------------------------------------------------------------------------------------------


def is_id(text: str) -> bool:
    """Whether this is a UUID in canonical lower-case text, of any version."""
    return _UUID.fullmatch(text) is not None


def new_task_id(now: float, random: Random) -> str:
    """A UUIDv7 (RFC 9562): milliseconds of Unix time, then 12 bits of the fraction of that millisecond (method 3 of
    section 6.2), then 62 random bits. Ids of rising times sort in that order, down to a quarter of a microsecond."""
    ticks = int(now * 4_096_000)  # 1/4096 ms
    value = ticks >> 12 << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | random.getrandbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_task_ids(count: int, now: float, random: Random) -> list[str]:
    """Many ids of one moment, in the order in which the queue will have them."""
    return sorted(new_task_id(now, random) for _ in range(count))


def uuid7_time(task_id: str) -> float | None:
    """When a UUIDv7 was made (Unix seconds, to the millisecond); None for any other id."""
    if not is_id(task_id) or task_id[14] != "7":
        return None
    return int(task_id[:8] + task_id[9:13], 16) / 1000


# -- keys ---------------------------------------------------------------------------------------------------------


def record_key(task_id: str) -> bytes:
    return _TASK + _id(task_id)


def queued_key(task_id: str) -> bytes:
    return _QUEUED + _id(task_id)


def running_key(node_id: str, task_id: str) -> bytes:
    return b"%b%b/%b" % (_RUNNING, _id(node_id), _id(task_id))


def terminal_key(status: Status, ended_at: float, task_id: str) -> bytes:
    """The index key of a task that ended at this Unix time."""
    epoch_s = int(ended_at)
    if not 0 <= epoch_s < EPOCH_END:
        raise RecordCorrupt(f"task {task_id} ended at {ended_at}, which is no time")
    return b"%b%012d/%b" % (_TERMINAL[status], epoch_s, _id(task_id))


def node_key(node_id: str) -> bytes:
    return _NODE + _id(node_id)


def cluster_key(*parts: str) -> bytes:
    """`/cluster/PART/PART`: parts are ours, not a user's."""
    if not parts or not all(part and "/" not in part for part in parts):
        raise ValueError(f"not the parts of a key: {parts!r}")
    return _CLUSTER + "/".join(parts).encode()


def host_key(host_id: str) -> bytes:
    return b"%bhosts/%b" % (_CLUSTER, _id(host_id))


def duty_key(name: str) -> bytes:
    return cluster_key("duty", name)


def index_key(task: Task) -> bytes:
    """The one index key that this record must have."""
    if task.status is Status.QUEUED:
        return queued_key(task.id)
    if task.status is Status.RUNNING:
        if task.owner is None:
            raise RecordCorrupt(f"task {task.id} is running and has no owner")
        return running_key(task.owner, task.id)
    if task.finished_at is None:
        raise RecordCorrupt(f"task {task.id} is {task.status} and has no end")
    return terminal_key(task.status, task.finished_at, task.id)


# -- ranges -------------------------------------------------------------------------------------------------------

RECORDS = KeyRange(_TASK + b"0", _TASK + b"g")
QUEUED = KeyRange(_QUEUED, _QUEUED[:-1] + b"0")
RUNNING = KeyRange(_RUNNING, _RUNNING[:-1] + b"0")
NODES = KeyRange(_NODE, _NODE[:-1] + b"0")


def running_of(node_id: str) -> KeyRange:
    """The running keys of one node."""
    prefix = b"%b%b" % (_RUNNING, _id(node_id))
    return KeyRange(prefix + b"/", prefix + b"0")


def terminal(status: Status, *, until_s: float | None = None) -> KeyRange:
    """Everything that ended in this status; with `until_s` (Unix seconds) only what ended before that second."""
    prefix = _TERMINAL[status]
    if until_s is None:
        return KeyRange(prefix, prefix[:-1] + b"0")
    return KeyRange(prefix, b"%b%012d/" % (prefix, min(max(int(until_s), 0), EPOCH_END - 1)))


def find_records(id_prefix: str) -> KeyRange | None:
    """The records whose id begins with this text; None where no id can."""
    if not id_prefix:
        return RECORDS
    if len(id_prefix) > 36 or not _ID_PREFIX.fullmatch(id_prefix) or id_prefix[0] == "-":
        return None
    start = _TASK + id_prefix.encode()
    return KeyRange(start, start[:-1] + bytes([start[-1] + 1]))


# -- parsing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IndexKey:
    """What an index key tells."""

    status: Status
    task_id: str
    #: Of a running task.
    node_id: str | None = None
    #: Second in which it ended, of a terminal one.
    epoch_s: int | None = None


def parse_record_key(key: bytes) -> str:
    """The task id."""
    if not key.startswith(_TASK):
        raise _corrupt(key)
    return _parse_id(key, key[len(_TASK) :])


def parse_node_key(key: bytes) -> str:
    """The node id."""
    if not key.startswith(_NODE):
        raise _corrupt(key)
    return _parse_id(key, key[len(_NODE) :])


def parse_index_key(key: bytes) -> IndexKey:
    if key.startswith(_QUEUED):
        return IndexKey(Status.QUEUED, _parse_id(key, key[len(_QUEUED) :]))
    if not key.startswith(_STATUS):
        raise _corrupt(key)
    parts = key[len(_STATUS) :].split(b"/")
    if len(parts) != 3:
        raise _corrupt(key)
    word, middle, task_id = parts
    if word == b"running":
        return IndexKey(Status.RUNNING, _parse_id(key, task_id), node_id=_parse_id(key, middle))
    status = _TERMINAL_WORDS.get(word)
    if status is None or not _EPOCH.fullmatch(middle):
        raise _corrupt(key)
    return IndexKey(status, _parse_id(key, task_id), epoch_s=int(middle))


def _id(text: str) -> bytes:
    if not _UUID.fullmatch(text):
        raise ValueError(f"not a UUID in canonical lower-case text: {text!r}")
    return text.encode()


def _parse_id(key: bytes, raw: bytes) -> str:
    if not _UUID_BYTES.fullmatch(raw):
        raise _corrupt(key)
    return raw.decode()


def _corrupt(key: bytes) -> RecordCorrupt:
    return RecordCorrupt(f"no key of the schema: {key!r}")
