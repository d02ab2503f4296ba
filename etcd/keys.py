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
from functools import lru_cache
from urllib.parse import quote

from etcd.errors import RecordCorrupt
from etcd.port import KeyRange
from node.core import ids
from node.core.model import Status, Task

#: What an id looks like is the core's to say.
is_task_id = ids.is_task_id
is_id_prefix = ids.is_id_prefix
new_task_id = ids.new_task_id
new_task_ids = ids.new_task_ids
uuid7_time = ids.uuid7_time

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

_UUID_BYTES = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EPOCH = re.compile(rb"[0-9]{12}")


# -- keys ---------------------------------------------------------------------------------------------------------


def task(task_id: str) -> bytes:
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


def node(node_id: str) -> bytes:
    return _NODE + _id(node_id)


def cluster_key(*parts: str) -> bytes:
    """`/cluster/PART/PART`: parts are ours, not a user's."""
    if not parts or not all(part and "/" not in part for part in parts):
        raise ValueError(f"not the parts of a key: {parts!r}")
    return _CLUSTER + "/".join(parts).encode()


def cluster_id() -> bytes:
    return cluster_key("id")


def cluster_epoch() -> bytes:
    """A number that a restore raises; part of every fence token."""
    return cluster_key("epoch")


def host_key(host_id: str) -> bytes:
    return b"%bhosts/%b" % (_CLUSTER, _id(host_id))


def duty_key(name: str) -> bytes:
    return cluster_key("duty", name)


def drained_key(host_id: str) -> bytes:
    """There while the node of this host claims nothing."""
    return b"%bdrained/%b" % (_CLUSTER, _id(host_id))


def removed_key(host_id: str) -> bytes:
    """There when this host may not come back."""
    return b"%bremoved/%b" % (_CLUSTER, _id(host_id))


def token_key(token_id: str) -> bytes:
    return b"%btokens/%b" % (_CLUSTER, _id(token_id))


def name_key(name: str) -> bytes:
    """Who was given this name for a node; a user's text, and so percent-encoded."""
    return cluster_key("names", quote(name, safe=""))


def voters_key() -> bytes:
    """Written after every change of etcd's members: who watches it looks at the member list again."""
    return cluster_key("voters")


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

_ALL_TASKS = KeyRange(_TASK + b"0", _TASK + b"g")
_ALL_NODES = KeyRange(_NODE, _NODE[:-1] + b"0")
_ALL_QUEUED = KeyRange(_QUEUED, _QUEUED[:-1] + b"0")
_ALL_RUNNING = KeyRange(_RUNNING, _RUNNING[:-1] + b"0")


def all_tasks() -> KeyRange:
    """Every record, and no index key."""
    return _ALL_TASKS


def all_nodes() -> KeyRange:
    return _ALL_NODES


def queued() -> KeyRange:
    """Every queued key."""
    return _ALL_QUEUED


def running() -> KeyRange:
    """Every running key, by node."""
    return _ALL_RUNNING


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


def all_hosts() -> KeyRange:
    return _below("hosts")


def all_drained() -> KeyRange:
    return _below("drained")


def all_removed() -> KeyRange:
    return _below("removed")


def all_tokens() -> KeyRange:
    return _below("tokens")


def _below(part: str) -> KeyRange:
    prefix = b"%b%b" % (_CLUSTER, part.encode())
    return KeyRange(prefix + b"/", prefix + b"0")


def find_tasks(id_prefix: str) -> KeyRange | None:
    """The records whose id begins with this text; None where no id can."""
    if not id_prefix:
        return _ALL_TASKS
    if not is_id_prefix(id_prefix) or id_prefix != id_prefix.lower():
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


def parse_task(key: bytes) -> str:
    """The task id."""
    if not key.startswith(_TASK):
        raise _corrupt(key)
    return _parse_id(key, key[len(_TASK) :])


def parse_node(key: bytes) -> str:
    """The node id."""
    if not key.startswith(_NODE):
        raise _corrupt(key)
    return _parse_id(key, key[len(_NODE) :])


def parse_cluster_id(key: bytes) -> str:
    """The last part of a key of hosts, drained, removed or tokens: an id."""
    parts = key.split(b"/")
    if not key.startswith(_CLUSTER) or len(parts) != 4:
        raise _corrupt(key)
    return _parse_id(key, parts[3])


def parse_queued(key: bytes) -> str:
    """The task id."""
    if not key.startswith(_QUEUED):
        raise _corrupt(key)
    return _parse_id(key, key[len(_QUEUED) :])


def find_index_key(key: bytes) -> IndexKey | None:
    """As `parse_index_key`; None for a stranger's key."""
    try:
        return parse_index_key(key)
    except RecordCorrupt:
        return None


def find_node(key: bytes) -> str | None:
    """As `parse_node`; None for a stranger's key."""
    try:
        return parse_node(key)
    except RecordCorrupt:
        return None


def find_cluster_id(key: bytes) -> str | None:
    """As `parse_cluster_id`; None for a stranger's key."""
    try:
        return parse_cluster_id(key)
    except RecordCorrupt:
        return None


def parse_index_key(key: bytes) -> IndexKey:
    if key.startswith(_QUEUED):
        return IndexKey(Status.QUEUED, parse_queued(key))
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


@lru_cache(maxsize=16_384)
def _id(text: str) -> bytes:
    """Checked once for the many keys of one transition: measured, a sixth of its cost otherwise."""
    if not is_task_id(text):
        raise ValueError(f"not a UUID in canonical lower-case text: {text!r}")
    return text.encode()


def _parse_id(key: bytes, raw: bytes) -> str:
    if not _UUID_BYTES.fullmatch(raw):
        raise _corrupt(key)
    return raw.decode()


def _corrupt(key: bytes) -> RecordCorrupt:
    return RecordCorrupt(f"no key of the schema: {key!r}")
