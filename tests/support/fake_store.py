"""What one etcd keeps, in memory and without I/O: revisions, transactions, leases, history, quota.

The state behind `FakeEtcd`. Synchronous and deterministic: time comes in as a number. Rules that the real one has and
that code may come to rely on are here too: compares before operations, one revision per transaction, duplicate keys,
the width of transactions, sizes, compaction, the quota that counts the file and not what is in use.
`tests/contract` keeps it honest.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from etcd import convert
from etcd.errors import Compacted, InvalidRequest, LeaseNotFound, NoSpace, RequestTooLarge
from etcd.port import (
    Compare,
    Delete,
    DeleteResult,
    Event,
    KeyRange,
    KeyValue,
    Lease,
    Op,
    OpResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Relation,
    Target,
    Txn,
    TxnResult,
)
from tests.support.fake_membership import MEMBER_ID, FakeMembership

#: etcd's defaults.
MAX_TXN_OPS = 128
MAX_REQUEST_BYTES = 1_572_864
#: ceil(1.5 x election timeout), with the default of 1 s.
MIN_TTL_S = 2
#: What a version of a key takes in the file besides key and value (a guess; only its being above zero matters).
_OVERHEAD_BYTES = 64


@dataclass
class _LeaseState:
    ttl_s: float
    expires_at: float
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Change:
    """All events of one revision."""

    revision: int
    events: tuple[Event, ...]


def contains(range_: KeyRange | Range | Delete, key: bytes) -> bool:
    """Whether the key lies in the range; range_end NUL: everything from the key on."""
    if not range_.range_end:
        return key == range_.key
    return range_.key <= key and (range_.range_end == b"\0" or key < range_.range_end)


class FakeStore:
    """One etcd, as seen by all its clients."""

    def __init__(self, *, quota_bytes: int = 8 << 30) -> None:
        self.revision = 1
        self.compacted = 0
        self.quota_bytes = quota_bytes
        #: Members whose NOSPACE alarm stands.
        self.no_space_alarms: set[int] = set()
        #: What was ever written, and how much of it each member's file has lost by defragmentation.
        self._written_bytes = 0
        self._given_back: dict[int, int] = {}
        #: Called with each change after it was made.
        self.listeners: list[Callable[[Change], None]] = []
        #: Oldest first, from compacted + 1 on.
        self._history: list[Change] = []
        self._keys: list[bytes] = []
        #: All versions since the last compaction, oldest first; version 0 is a tombstone.
        self._versions: dict[bytes, list[KeyValue]] = {}
        self._leases: dict[int, _LeaseState] = {}
        self._next_lease = 7_000_000_000_000_000
        self.membership = FakeMembership()

    # Reading

    def read(self, op: Range) -> RangeResult:
        if not op.key:
            raise InvalidRequest("etcdserver: key is not provided")
        if op.revision > self.revision:
            raise InvalidRequest("etcdserver: mvcc: required revision is a future revision")
        if 0 < op.revision < self.compacted:
            raise Compacted(0)
        return self._range(op, op.revision or self.revision)

    def read_all(self) -> tuple[KeyValue, ...]:
        """Every key, now."""
        return self._range(Range(b"\0", b"\0"), self.revision).kvs

    def history(self, start_revision: int) -> list[Change]:
        """Changes from that revision on; raises Compacted."""
        if start_revision <= self.compacted:
            raise Compacted(self.compacted)
        index = bisect_left(self._history, start_revision, key=lambda change: change.revision)
        return self._history[index:]

    @property
    def has_no_space_alarm(self) -> bool:
        """Whether it takes no puts; to be set by tests that do not care whose alarm it is."""
        return bool(self.no_space_alarms)

    @has_no_space_alarm.setter
    def has_no_space_alarm(self, is_raised: bool) -> None:
        self.no_space_alarms = {MEMBER_ID} if is_raised else set()

    def file_bytes(self, member_id: int = MEMBER_ID) -> int:
        """The size of this member's file: they hold the same, and each is defragmented by itself."""
        return self._written_bytes - self._given_back.get(member_id, 0)

    def in_use_bytes(self) -> int:
        return sum(_size(kv) for versions in self._versions.values() for kv in versions)

    def _range(self, op: Range, revision: int) -> RangeResult:
        found = [kv for key in self._keys_in(op) if (kv := self._at(key, revision)) is not None]
        count = len(found)
        if op.count_only:
            return RangeResult((), count, more=False, revision=self.revision)
        if op.descending:
            found.reverse()
        if op.limit:
            found = found[: op.limit]
        if op.keys_only:
            found = [replace(kv, value=b"") for kv in found]
        return RangeResult(tuple(found), count, len(found) < count, self.revision)

    def _keys_in(self, op: Range | Delete) -> Iterator[bytes]:
        if not op.range_end:
            if op.key in self._versions:
                yield op.key
            return
        index = bisect_left(self._keys, op.key)
        while index < len(self._keys) and contains(op, self._keys[index]):
            yield self._keys[index]
            index += 1

    def _at(self, key: bytes, revision: int) -> KeyValue | None:
        for kv in reversed(self._versions.get(key, [])):
            if kv.mod_revision <= revision:
                return kv if kv.version else None
        return None

    # Transactions

    def transact(self, txn: Txn, now: float) -> TxnResult:
        """Applies it whole or raises and changes nothing."""
        self._check_width(txn, MAX_TXN_OPS)
        _check_overlaps(txn.success)
        _check_overlaps(txn.failure)
        if _rough_bytes(txn) > MAX_REQUEST_BYTES // 2 and convert.txn_request(txn).ByteSize() > MAX_REQUEST_BYTES:
            raise RequestTooLarge("etcdserver: request is too large")
        if _puts(txn):
            self._check_quota(_rough_bytes(txn))
        self.expire(now)
        taken = self._decide(txn)
        self._check_leases(taken)
        events: list[Event] = []
        changed: set[bytes] = set()
        results = self._apply(taken, events, changed)
        if events:
            self._commit(events)
        return _stamp(results, self.revision)

    def _check_quota(self, new_bytes: int) -> None:
        """A member that runs and whose file is full raises its alarm, where none stands."""
        if not self.no_space_alarms and self._written_bytes + new_bytes > self.quota_bytes:
            members = (one for one in sorted(self.membership.members) if self.membership.is_running(one))
            full = [one for one in members if self.file_bytes(one) + new_bytes > self.quota_bytes]
            self.no_space_alarms.update(full[:1])
        if self.no_space_alarms:
            raise NoSpace("etcdserver: mvcc: database space exceeded")

    def _check_width(self, txn: Txn, limit: int) -> None:
        """etcd's checkTxnRequest: at each level the widest list counts, nested ones get what is left."""
        width = max(len(txn.compares), len(txn.success), len(txn.failure))
        if width > limit:
            raise InvalidRequest("etcdserver: too many operations in txn request")
        if any(not compare.key for compare in txn.compares):
            raise InvalidRequest("etcdserver: key is not provided")
        for op in (*txn.success, *txn.failure):
            if isinstance(op, Txn):
                self._check_width(op, limit - width)
            elif not op.key:
                raise InvalidRequest("etcdserver: key is not provided")

    def _decide(self, txn: Txn) -> _Taken:
        """Evaluates all compares, nested ones too, before anything is written."""
        succeeded = all(self._holds(compare) for compare in txn.compares)
        branch = txn.success if succeeded else txn.failure
        return _Taken(succeeded, tuple(self._decide(op) if isinstance(op, Txn) else op for op in branch))

    def _holds(self, compare: Compare) -> bool:
        kv = self._at(compare.key, self.revision)
        if compare.target is Target.VALUE:
            if kv is None:
                return False  # etcd: the value of a key that is not there fails every comparison
            return _relates(kv.value, compare.relation, compare.operand)
        actual = {
            Target.VERSION: kv.version if kv else 0,
            Target.CREATE: kv.create_revision if kv else 0,
            Target.MOD: kv.mod_revision if kv else 0,
            Target.LEASE: kv.lease if kv else 0,
        }[compare.target]
        return _relates(actual, compare.relation, compare.operand)

    def _check_leases(self, taken: _Taken) -> None:
        for op in taken.ops:
            if isinstance(op, _Taken):
                self._check_leases(op)
            elif isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseNotFound("etcdserver: requested lease not found")

    def _apply(self, taken: _Taken, events: list[Event], changed: set[bytes]) -> TxnResult:
        results: list[OpResult] = []
        for op in taken.ops:
            if isinstance(op, _Taken):
                results.append(self._apply(op, events, changed))
            elif isinstance(op, Put):
                self._put(op, events)
                results.append(PutResult(0))
            elif isinstance(op, Delete):
                results.append(DeleteResult(self._delete(list(self._keys_in(op)), events), 0))
            else:
                if op.revision > self.revision or 0 < op.revision < self.compacted:
                    raise InvalidRequest("a revision in a transaction's range: not supported by the fake")
                results.append(self._range(op, op.revision or self.revision + 1))
        return TxnResult(taken.succeeded, tuple(results), 0)

    def _put(self, op: Put, events: list[Event]) -> None:
        revision = self.revision + 1
        before = self._at(op.key, revision)
        kv = KeyValue(
            op.key,
            op.value,
            before.create_revision if before else revision,
            revision,
            before.version + 1 if before else 1,
            op.lease,
        )
        if before and before.lease:
            self._leases[before.lease].keys.discard(op.key)
        if op.lease:
            self._leases[op.lease].keys.add(op.key)
        if op.key not in self._versions:
            insort(self._keys, op.key)
        self._versions.setdefault(op.key, []).append(kv)
        self._written_bytes += _size(kv)
        events.append(Event(kv, is_delete=False))

    def _delete(self, keys: Sequence[bytes], events: list[Event]) -> int:
        revision = self.revision + 1
        deleted = 0
        for key in keys:
            before = self._at(key, revision)
            if before is None:
                continue
            if before.lease and before.lease in self._leases:
                self._leases[before.lease].keys.discard(key)
            tombstone = KeyValue(key, b"", 0, revision, 0)
            self._versions[key].append(tombstone)
            self._written_bytes += _size(tombstone)
            events.append(Event(tombstone, is_delete=True))
            deleted += 1
        return deleted

    def _commit(self, events: Sequence[Event]) -> None:
        self.revision += 1
        change = Change(self.revision, tuple(events))
        self._history.append(change)
        for listener in list(self.listeners):
            listener(change)

    # Leases

    def grant(self, ttl_s: float, now: float) -> Lease:
        self.expire(now)
        if self.has_no_space_alarm:
            raise NoSpace("etcdserver: mvcc: database space exceeded")
        ttl = float(max(MIN_TTL_S, round(ttl_s)))
        self._next_lease += 1
        self._leases[self._next_lease] = _LeaseState(ttl, now + ttl)
        return Lease(self._next_lease, ttl)

    def renew(self, lease_id: int, now: float) -> float:
        """The new time to live; 0 when the lease is gone."""
        self.expire(now)
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0.0
        lease.expires_at = now + lease.ttl_s
        return lease.ttl_s

    def revoke(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return
        events: list[Event] = []
        self._delete(sorted(lease.keys), events)
        if events:
            self._commit(events)

    def expire(self, now: float) -> None:
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.expires_at <= now]:
            self.revoke(lease_id)

    def next_expiry(self) -> float:
        """When the next lease runs out, or infinity."""
        return min((lease.expires_at for lease in self._leases.values()), default=math.inf)

    # Upkeep

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise InvalidRequest("etcdserver: mvcc: required revision is a future revision")
        if revision <= self.compacted:
            return
        self.compacted = revision
        self._history = self.history(revision + 1)
        for key in list(self._keys):
            versions = self._versions[key]
            newest_old = max((i for i, kv in enumerate(versions) if kv.mod_revision <= revision), default=0)
            kept = [kv for i, kv in enumerate(versions) if i >= newest_old]
            if kept[0].version == 0 and kept[0].mod_revision <= revision:
                kept = kept[1:]
            if kept:
                self._versions[key] = kept
            else:
                del self._versions[key]
                self._keys.remove(key)

    def defragment(self, member_id: int = MEMBER_ID) -> None:
        self._given_back[member_id] = self._written_bytes - self.in_use_bytes()

    def disarm(self, member_id: int | None = None) -> None:
        """None: all alarms. Of a member that raised none: does nothing."""
        if member_id is None:
            self.no_space_alarms.clear()
        else:
            self.no_space_alarms.discard(member_id)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A transaction whose compares have been decided: the branch taken."""

    succeeded: bool
    ops: tuple[Range | Put | Delete | _Taken, ...]


def _relates(actual: int | bytes, relation: Relation, operand: int | bytes) -> bool:
    if isinstance(actual, bytes) != isinstance(operand, bytes):
        raise TypeError(f"cannot compare {actual!r} with {operand!r}")
    if relation is Relation.EQUAL:
        return actual == operand
    if relation is Relation.NOT_EQUAL:
        return actual != operand
    if isinstance(actual, bytes) and isinstance(operand, bytes):
        return actual > operand if relation is Relation.GREATER else actual < operand
    if isinstance(actual, int) and isinstance(operand, int):
        return actual > operand if relation is Relation.GREATER else actual < operand
    raise TypeError("unreachable: both operands are of one type")


def _check_overlaps(ops: Sequence[Op]) -> tuple[set[bytes], list[Delete]]:
    """etcd's checkIntervals: the keys put and the ranges deleted below `ops`; raises on a key that is written twice.

    A put is checked against the deletes of its own level and of earlier siblings, not of later ones; the two branches
    of one nested transaction may write the same key.
    """
    puts: set[bytes] = set()
    deletes = [op for op in ops if isinstance(op, Delete)]
    for op in ops:
        if not isinstance(op, Txn):
            continue
        puts_then, deletes_then = _check_overlaps(op.success)
        puts_else, deletes_else = _check_overlaps(op.failure)
        for key in puts_then:
            if key in puts or any(contains(delete, key) for delete in deletes):
                raise InvalidRequest("etcdserver: duplicate key given in txn request")
        for key in puts_else:
            if key in puts or any(contains(delete, key) for delete in deletes):
                raise InvalidRequest("etcdserver: duplicate key given in txn request")
        puts |= puts_then | puts_else
        deletes = [*deletes, *deletes_then, *deletes_else]
    for op in ops:
        if isinstance(op, Put):
            if op.key in puts or any(contains(delete, op.key) for delete in deletes):
                raise InvalidRequest("etcdserver: duplicate key given in txn request")
            puts.add(op.key)
    return puts, deletes


def _puts(txn: Txn) -> bool:
    """Whether etcd's quota applies to it: it looks at all branches, without knowing which will be taken."""
    return any(isinstance(op, Put) or (isinstance(op, Txn) and _puts(op)) for op in (*txn.success, *txn.failure))


def _rough_bytes(txn: Txn) -> int:
    total = 0
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Put):
            total += len(op.key) + len(op.value) + _OVERHEAD_BYTES
        elif isinstance(op, Txn):
            total += _rough_bytes(op)
    return total


def _size(kv: KeyValue) -> int:
    return len(kv.key) + len(kv.value) + _OVERHEAD_BYTES


def _stamp(result: TxnResult, revision: int) -> TxnResult:
    """Every part carries the revision of the whole transaction, as from the real client."""
    return TxnResult(
        result.succeeded,
        tuple(
            _stamp(part, revision) if isinstance(part, TxnResult) else _at(part, revision) for part in result.results
        ),
        revision,
    )


def _at(part: RangeResult | PutResult | DeleteResult, revision: int) -> RangeResult | PutResult | DeleteResult:
    if isinstance(part, RangeResult):
        return replace(part, revision=revision)
    if isinstance(part, DeleteResult):
        return replace(part, revision=revision)
    return replace(part, revision=revision)
