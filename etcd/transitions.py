"""Every write to a task, stated once, as data: its guards, its writes, and what to read when a guard fails.

`TABLE` is the design's table of transitions. A row names its guards (what must hold in etcd for the writes to be
applied), its writes and its reads by what they mean; `transition` turns a row and the values at hand into keys and
compares. docs/protocol.md tells for each guard the interleaving that it is there for.

Theory: the record is the truth and exactly one index key follows it. Whatever rewrites a record compares the record's
mod_revision with the one that it read, so that nothing is written on top of something unseen; the further guards say
whose right it is to write (a claim's identity is the create_revision of its running key, a living incarnation's that
of its node key). A lost transition changes nothing. Whether a lost one had been applied by an earlier try whose answer
was lost is told by its reads (`etcd/store.py`).

No I/O here, no decisions: which record comes next is `node/core/lifecycle.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from etcd import codec, keys
from etcd.identity import Identity
from etcd.port import Compare, Delete, Put, Range, Relation, Target
from node.core.errors import IllegalTransition
from node.core.lifecycle import story
from node.core.model import Status, Task


class Name(StrEnum):
    """The transitions."""

    SUBMIT = "submit"
    CLAIM = "claim"
    #: Complete, or failed where it could not be run.
    FINISH = "finish"
    GIVE_BACK = "give_back"
    CANCEL_QUEUED = "cancel_queued"
    REQUEST_CANCEL = "request_cancel"
    #: The node that runs it writes canceled once the processes are gone.
    CONFIRM_CANCEL = "confirm_cancel"
    REQUEUE = "requeue"
    #: Retention deletes a task that ended long ago.
    FORGET = "forget"


class Guard(StrEnum):
    """What must hold for the writes to be applied."""

    RECORD_ABSENT = "the record does not exist"
    RECORD_UNCHANGED = "the record has the mod_revision that was read"
    QUEUED_PRESENT = "the queued key is present"
    RUNNING_PRESENT = "the running key of the record's owner is present"
    CLAIM_MINE = "the own running key has the create_revision of this claim"
    NODE_MINE = "the own node key has the create_revision of this incarnation"
    OWNER_GONE = "the node key of the record's owner is absent"
    ENDED_SAME = "the terminal key has the create_revision that was listed"


class Write(StrEnum):
    """What is written when all guards hold."""

    REMOVE_INDEX = "delete the index key of the status before"
    ADD_INDEX = "put the index key of the status after"
    #: Its node watches its own running keys, and so learns of the request. The create_revision stays.
    TOUCH_RUNNING = "put the running key again"
    RECORD = "put the record"
    REMOVE_RECORD = "delete the record"


class Read(StrEnum):
    """What is read at the same revision: when a guard fails, or when all hold."""

    RECORD = "the record"
    OWN_RUNNING = "the own running key"
    OWNER_NODE = "the node key of the record's owner"
    EPOCH = "the cluster's epoch"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    #: Status before; None: no record.
    before: Status | None
    #: Status after, one of these; empty: no record.
    after: frozenset[Status]
    guards: tuple[Guard, ...]
    writes: tuple[Write, ...]
    reads: tuple[Read, ...]
    #: What is read, at the revision of the writes, when all guards hold.
    reads_applied: tuple[Read, ...] = ()


_MOVE = (Write.REMOVE_INDEX, Write.ADD_INDEX, Write.RECORD)
_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)
_AGAIN = frozenset({Status.QUEUED, Status.CANCELED, Status.FAILED})
_OWNER_READS = (Read.RECORD, Read.OWN_RUNNING)

TABLE: dict[Name, Row] = {
    Name.SUBMIT: Row(
        before=None,
        after=frozenset({Status.QUEUED}),
        guards=(Guard.RECORD_ABSENT,),
        writes=(Write.ADD_INDEX, Write.RECORD),
        reads=(Read.RECORD,),
    ),
    Name.CLAIM: Row(
        before=Status.QUEUED,
        after=frozenset({Status.RUNNING}),
        guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT, Guard.NODE_MINE),
        writes=_MOVE,
        reads=(Read.OWN_RUNNING,),
        # A node may live through a recovery of the cluster, which raises the epoch: what it read before is no more
        # than a guess. At the claim's own revision it is the epoch that the claim belongs to.
        reads_applied=(Read.EPOCH,),
    ),
    Name.FINISH: Row(
        before=Status.RUNNING,
        after=frozenset({Status.COMPLETE, Status.FAILED}),
        guards=_AS_OWNER,
        writes=_MOVE,
        reads=_OWNER_READS,
    ),
    Name.GIVE_BACK: Row(before=Status.RUNNING, after=_AGAIN, guards=_AS_OWNER, writes=_MOVE, reads=_OWNER_READS),
    Name.CANCEL_QUEUED: Row(
        before=Status.QUEUED,
        after=frozenset({Status.CANCELED}),
        guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT),
        writes=_MOVE,
        reads=(Read.RECORD,),
    ),
    Name.REQUEST_CANCEL: Row(
        before=Status.RUNNING,
        after=frozenset({Status.RUNNING}),
        guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT),
        writes=(Write.TOUCH_RUNNING, Write.RECORD),
        reads=(Read.RECORD,),
    ),
    Name.CONFIRM_CANCEL: Row(
        before=Status.RUNNING,
        after=frozenset({Status.CANCELED}),
        guards=_AS_OWNER,
        writes=_MOVE,
        reads=_OWNER_READS,
    ),
    Name.REQUEUE: Row(
        before=Status.RUNNING,
        after=_AGAIN,
        guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),
        writes=_MOVE,
        reads=(Read.RECORD, Read.OWNER_NODE),
    ),
    # Deletes, and so rewrites nothing: a terminal record never changes, and its index key's create_revision tells it
    # from a later task of the same id. `before` is any terminal status.
    Name.FORGET: Row(
        before=None,
        after=frozenset(),
        guards=(Guard.ENDED_SAME,),
        writes=(Write.REMOVE_INDEX, Write.REMOVE_RECORD),
        reads=(),
    ),
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One guarded write to one task, ready to be sent. Sending it again is harmless: at most one try is applied."""

    name: Name
    task_id: str
    compares: tuple[Compare, ...]
    writes: tuple[Put | Delete, ...]
    #: When a guard fails, and when all hold.
    reads: tuple[Range, ...]
    reads_applied: tuple[Range, ...]
    #: The record that it writes; empty where it deletes it.
    record: bytes

    @property
    def record_key(self) -> bytes:
        return keys.task(self.task_id)


@dataclass(frozen=True, slots=True)
class _Values:
    """What the guards and writes of a row are made of. Fields that a row does not need may be absent."""

    task_id: str
    after: Task | None
    record: bytes
    #: mod_revision of the record as it was read.
    mod_revision: int
    index_before: bytes
    index_after: bytes
    node_id: str
    node_revision: int
    #: create_revision of the running key (a claim) or of the terminal key (forget).
    index_revision: int


def _present(key: bytes) -> Compare:
    return Compare(key, Target.CREATE, Relation.GREATER, 0)


def _absent(key: bytes) -> Compare:
    return Compare(key, Target.CREATE, Relation.EQUAL, 0)


_COMPARES: dict[Guard, Callable[[_Values], Compare]] = {
    Guard.RECORD_ABSENT: lambda v: _absent(keys.task(v.task_id)),
    Guard.RECORD_UNCHANGED: lambda v: Compare(keys.task(v.task_id), Target.MOD, Relation.EQUAL, v.mod_revision),
    Guard.QUEUED_PRESENT: lambda v: _present(v.index_before),
    Guard.RUNNING_PRESENT: lambda v: _present(v.index_before),
    Guard.CLAIM_MINE: lambda v: Compare(v.index_before, Target.CREATE, Relation.EQUAL, v.index_revision),
    Guard.NODE_MINE: lambda v: Compare(keys.node(v.node_id), Target.CREATE, Relation.EQUAL, v.node_revision),
    Guard.OWNER_GONE: lambda v: _absent(keys.node(v.node_id)),
    Guard.ENDED_SAME: lambda v: Compare(v.index_before, Target.CREATE, Relation.EQUAL, v.index_revision),
}


def _index_value(task: Task | None) -> bytes:
    """A queued key carries the offer; every other index key is empty."""
    return codec.offer_value(task.spec.requirements) if task and task.status is Status.QUEUED else b""


_WRITES: dict[Write, Callable[[_Values], Put | Delete]] = {
    Write.REMOVE_INDEX: lambda v: Delete(v.index_before),
    Write.ADD_INDEX: lambda v: Put(v.index_after, _index_value(v.after)),
    Write.TOUCH_RUNNING: lambda v: Put(v.index_before),
    Write.RECORD: lambda v: Put(keys.task(v.task_id), v.record),
    Write.REMOVE_RECORD: lambda v: Delete(keys.task(v.task_id)),
}

_READS: dict[Read, Callable[[_Values], Range]] = {
    Read.RECORD: lambda v: Range(keys.task(v.task_id)),
    Read.OWN_RUNNING: lambda v: Range(keys.running_key(v.node_id, v.task_id)),
    Read.OWNER_NODE: lambda v: Range(keys.node(v.node_id), keys_only=True),
    Read.EPOCH: lambda _: Range(keys.cluster_epoch()),
}


def _build(name: Name, values: _Values) -> Transition:
    row = TABLE[name]
    return Transition(
        name=name,
        task_id=values.task_id,
        compares=tuple([_COMPARES[guard](values) for guard in row.guards]),
        writes=tuple([_WRITES[write](values) for write in row.writes]),
        reads=tuple([_READS[read](values) for read in row.reads]),
        reads_applied=tuple([_READS[read](values) for read in row.reads_applied]),
        record=values.record,
    )


def _rewrite(
    name: Name,
    before: Task | None,
    after: Task,
    *,
    mod_revision: int = 0,
    node_id: str = "",
    node_revision: int = 0,
    index_revision: int = 0,
) -> Transition:
    row = TABLE[name]
    status_before = before.status if before else None
    same_task = before is None or before.id == after.id
    if status_before is not row.before or after.status not in row.after or not same_task:
        raise IllegalTransition(after.id, name, f"{status_before} to {after.status}; {story(before or after)}")
    values = _Values(
        task_id=after.id,
        after=after,
        record=codec.encode_task(after),
        mod_revision=mod_revision,
        index_before=keys.index_key(before) if before else b"",
        index_after=keys.index_key(after),
        node_id=node_id,
        node_revision=node_revision,
        index_revision=index_revision,
    )
    return _build(name, values)


def submit(task: Task) -> Transition:
    return _rewrite(Name.SUBMIT, None, task)


def claim(before: Task, after: Task, mod_revision: int, identity: Identity) -> Transition:
    if after.owner != identity.node_id:
        raise IllegalTransition(after.id, Name.CLAIM, f"claimed for {after.owner} by {identity.node_id}")
    return _rewrite(
        Name.CLAIM,
        before,
        after,
        mod_revision=mod_revision,
        node_id=identity.node_id,
        node_revision=identity.node_key_revision,
    )


def as_owner(
    name: Name, before: Task, after: Task, *, mod_revision: int, identity: Identity, fence_revision: int
) -> Transition:
    """Finish, give back or confirm cancel: what only the owner may write, under the claim that it holds.

    `fence_revision` is the claim's: the create_revision of the running key.
    """
    if name not in (Name.FINISH, Name.GIVE_BACK, Name.CONFIRM_CANCEL) or before.owner != identity.node_id:
        raise IllegalTransition(before.id, name, f"by {identity.node_id}, which is not its owner; {story(before)}")
    return _rewrite(
        name,
        before,
        after,
        mod_revision=mod_revision,
        node_id=identity.node_id,
        node_revision=identity.node_key_revision,
        index_revision=fence_revision,
    )


def cancel_queued(before: Task, after: Task, mod_revision: int) -> Transition:
    return _rewrite(Name.CANCEL_QUEUED, before, after, mod_revision=mod_revision)


def request_cancel(before: Task, after: Task, mod_revision: int) -> Transition:
    if not after.cancel_requested or after.owner != before.owner:
        raise IllegalTransition(after.id, Name.REQUEST_CANCEL, f"nothing requested; {story(after)}")
    return _rewrite(Name.REQUEST_CANCEL, before, after, mod_revision=mod_revision)


def requeue(before: Task, after: Task, mod_revision: int) -> Transition:
    """By anybody, once the owner's node key is gone."""
    return _rewrite(Name.REQUEUE, before, after, mod_revision=mod_revision, node_id=before.owner or "")


def forget(index: keys.IndexKey, index_key: bytes, create_revision: int) -> Transition:
    """Deletes what ended long ago, as its terminal key was listed."""
    if not index.status.is_terminal:
        raise IllegalTransition(index.task_id, Name.FORGET, f"it is {index.status}")
    values = _Values(
        task_id=index.task_id,
        after=None,
        record=b"",
        mod_revision=0,
        index_before=index_key,
        index_after=b"",
        node_id="",
        node_revision=0,
        index_revision=create_revision,
    )
    return _build(Name.FORGET, values)
