"""What Pilfer needs of etcd, as plain values and one Protocol: the port that the real client and the fake both fill.

`tests/contract` holds the two to the same behaviour. Nothing here knows tasks; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Target(Enum):
    """What a guard compares. An absent key has version, create and mod revision 0."""

    VERSION = "version"
    CREATE = "create"
    MOD = "mod"
    VALUE = "value"
    LEASE = "lease"


class Relation(Enum):
    EQUAL = "="
    GREATER = ">"
    LESS = "<"
    NOT_EQUAL = "!="


@dataclass(frozen=True, slots=True)
class Compare:
    key: bytes
    target: Target
    relation: Relation
    #: bytes for VALUE, a number for the others.
    operand: int | bytes


@dataclass(frozen=True, slots=True)
class Range:
    """A read. range_end empty: this key alone; otherwise the half-open interval [key, range_end)."""

    key: bytes
    range_end: bytes = b""
    #: Beware: etcd counts the whole range whatever the limit (measured: 12 ms at 150k keys).
    limit: int = 0
    keys_only: bool = False
    count_only: bool = False
    descending: bool = False
    #: 0: the newest.
    revision: int = 0
    serializable: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes = b""
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True)
class Txn:
    """Guards and what to do; may be nested. All compares see the state before the whole transaction."""

    compares: tuple[Compare, ...] = ()
    success: tuple[Op, ...] = ()
    failure: tuple[Op, ...] = ()


Op: TypeAlias = Range | Put | Delete | Txn


@dataclass(frozen=True, slots=True)
class RangeResult:
    kvs: tuple[KeyValue, ...]
    #: Of the whole range, without the limit.
    count: int
    more: bool
    revision: int


@dataclass(frozen=True, slots=True)
class PutResult:
    revision: int


@dataclass(frozen=True, slots=True)
class DeleteResult:
    deleted: int
    revision: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool
    #: Of the branch taken, in its order.
    results: tuple[OpResult, ...]
    #: Of the whole transaction: what it wrote has this mod_revision.
    revision: int


OpResult: TypeAlias = RangeResult | PutResult | DeleteResult | TxnResult


@dataclass(frozen=True, slots=True)
class KeyRange:
    key: bytes
    range_end: bytes = b""
    #: Of a watch: deletes are not told.
    puts_only: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A put (kv is what was written) or a delete (kv holds the key and, as mod_revision, the delete's revision)."""

    kv: KeyValue
    is_delete: bool


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Everything up to `revision` has been delivered (with several ranges: of each of them, so that it may stay
    behind the events). Events are in order; none for a mere progress notice."""

    revision: int
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    id: int
    #: Granted, which may be more than was asked for.
    ttl_s: float


@dataclass(frozen=True, slots=True)
class KeepAliveAnswer:
    #: 0 or less: the lease is gone.
    ttl_s: float


class KeepAliveStream(Protocol):
    """One long stream of pings of one lease."""

    async def ping(self) -> None:
        """Sends one ping; does not wait for its answer."""

    async def answer(self) -> KeepAliveAnswer:
        """The next answer, in the order of the pings. Raises StoreUnavailable when the stream breaks."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    version: str
    db_size_bytes: int
    db_in_use_bytes: int
    leader_id: int
    member_id: int
    revision: int
    #: Whether the member that was asked has no vote (yet).
    is_learner: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class Alarm:
    member_id: int
    #: "NOSPACE" or "CORRUPT".
    kind: str


@dataclass(frozen=True, slots=True)
class Member:
    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool = field(default=False)


class Etcd(Protocol):
    """etcd's public contract, as far as Pilfer uses it. Every call has a deadline.

    Errors are those of `etcd/errors.py`; a call that may or may not have been applied raises OutcomeUnknown.
    """

    async def range(self, op: Range, *, timeout_s: float = 3.0) -> RangeResult: ...

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult: ...

    def watch(
        self, ranges: Sequence[KeyRange], *, start_revision: int | None = None, timeout_s: float = 10.0
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """Entered when the watch stands (and so nothing later is missed); raises StoreUnavailable when it does not
        within timeout_s. Then it resumes by itself from the last revision seen, over any outage; the iterator raises
        Compacted when that revision is gone (list again), and StoreUnavailable only when the client is closed.

        Each range is in order by itself; batches of several ranges may overtake one another. Canceling `anext` loses
        nothing.
        """

    async def lease_grant(self, ttl_s: float, *, timeout_s: float = 3.0) -> Lease: ...

    async def lease_revoke(self, lease_id: int, *, timeout_s: float = 3.0) -> None:
        """Also when it is gone already."""

    def keep_alive(self, lease_id: int) -> AbstractAsyncContextManager[KeepAliveStream]: ...

    async def compact(self, revision: int, *, physical: bool = False, timeout_s: float = 30.0) -> None:
        """Also when that revision was compacted before. physical: answers when the old versions are gone from the
        file too (by default only from view)."""

    async def status(self, *, timeout_s: float = 3.0) -> MemberStatus:
        """Of the member that is asked; it answers without a quorum and as a learner too (leader_id 0: knows none)."""

    async def defragment(self, *, timeout_s: float = 60.0) -> None: ...

    async def alarms(self, *, timeout_s: float = 3.0) -> tuple[Alarm, ...]: ...

    async def disarm(self, alarm: Alarm, *, timeout_s: float = 3.0) -> None: ...

    async def snapshot(self, file: Path, *, timeout_s: float = 600.0) -> int:
        """Writes the whole database to `file`, in a form that `etcdutl snapshot restore` takes: with all that was
        acknowledged before this call, so it takes a quorum. The file is there whole (and on the disk) or not at all.
        Gives its size in bytes; raises StoreUnavailable (also for a checksum that does not fit) and OSError."""

    async def members(self, *, timeout_s: float = 3.0, linearizable: bool = True) -> tuple[Member, ...]:
        """As agreed on by a quorum; or, not linearizable, as the member that is asked knows them, also without one."""

    # Membership. Every change is refused while a member is unhealthy (etcd wants all of them connected for 5 s).

    async def add_learner(self, peer_urls: Sequence[str], *, timeout_s: float = 5.0) -> Member:
        """A member without a vote, to be started with these peer addresses; one learner at a time. Raises
        MembershipRefused, OutcomeUnknown."""

    async def promote(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        """Gives a learner its vote. Raises MembershipRefused while it is not in sync; also when it has it already."""

    async def remove_member(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        """Also when it is gone already. Raises MembershipRefused where the quorum would be lost."""

    async def update_member(self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float = 5.0) -> None:
        """Tells the cluster a voter's new peer addresses; not for learners (etcd issue 21694)."""

    async def move_leader(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        """Makes this voter the leader; must be asked of the leader. Raises MembershipRefused."""
