"""Tasks, nodes and stores for tests of the protocol, and the checker of its second invariant.

Everything here works on the fake as on the real etcd.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.errors import OutcomeUnknown
from etcd.identity import Identity
from etcd.port import Delete, Etcd, KeyValue, Op, Put, Range, RangeResult, Txn, TxnResult
from etcd.store import Claim, TaskStore, Versioned
from node.core import lifecycle
from node.core.model import Outcome, Reason, Status, Task, TaskSpec

NOW = 1_800_000_000.0
NODE_A = "aaaaaaaa-0000-4000-8000-00000000000a"
NODE_B = "bbbbbbbb-0000-4000-8000-00000000000b"
HOST = "dddddddd-0000-4000-8000-00000000000d"
DONE = Outcome(Reason.EXITED, exit_code=0)
GIVEN_BACK = Outcome(Reason.GIVEN_BACK, detail="stopped in order")
CANCELED = Outcome(Reason.CANCELED)
#: Generous: the machine may be busy.
TIMEOUT_S = 20.0
#: For all that there is in etcd to be read at once, after a hundred thousand tasks too.
EVERYTHING_S = 60.0

_numbers = itertools.count(1)


def task_id() -> str:
    """A new id, another one at each call."""
    return keys.new_task_id(NOW, Random(next(_numbers)))


def new_task(spec: TaskSpec | None = None, *, id: str = "", now: float = NOW) -> Task:  # noqa: A002  (the field's name)
    return lifecycle.submit(id or task_id(), spec or TaskSpec("/bin/true"), now=now)


async def join(etcd: Etcd, node_id: str) -> Identity:
    """Puts a node key (without a lease) and gives the identity of that incarnation."""
    result = await etcd.txn(Txn(success=(Put(keys.node(node_id), b"here"),)))
    return Identity(node_id, HOST, result.revision)


async def leave(etcd: Etcd, node_id: str) -> None:
    """As if the lease had run out."""
    await etcd.txn(Txn(success=(Delete(keys.node(node_id)),)))


async def delete_key(etcd: Etcd, key: bytes) -> None:
    """As an operator with etcdctl, who breaks what the protocol keeps together."""
    await etcd.txn(Txn(success=(Delete(key),)))


@asynccontextmanager
async def open_store(etcd: Etcd, **options: Any) -> AsyncIterator[TaskStore]:
    async with Batcher(etcd, random=Random(7), **options) as batcher:
        yield TaskStore(batcher, etcd)


async def read_one(store: TaskStore, id_: str) -> Versioned:
    (seen,) = await store.read([id_], timeout_s=TIMEOUT_S)
    assert seen is not None, f"task {id_} is not there"
    return seen


async def queued(store: TaskStore, spec: TaskSpec | None = None) -> Versioned:
    """A queued task, as read."""
    task = new_task(spec)
    await store.submit(task, timeout_s=TIMEOUT_S)
    return await read_one(store, task.id)


async def claimed(store: TaskStore, identity: Identity, spec: TaskSpec | None = None) -> Claim:
    """A running task of this node."""
    claim = await store.claim(await queued(store, spec), identity, now=NOW + 1, timeout_s=TIMEOUT_S)
    assert claim is not None
    return claim


async def snapshot(etcd: Etcd, revision: int = 0) -> dict[bytes, bytes]:
    """Everything of ours, as it was at a revision (0: now)."""
    result = await etcd.range(Range(b"/", b"0", revision=revision), timeout_s=EVERYTHING_S)
    return {kv.key: kv.value for kv in result.kvs}


def status_agrees_with_record(shown: dict[bytes, bytes]) -> dict[str, Task]:
    """Invariant 2: every record has exactly its index key, and no other index key is there. Gives the tasks."""
    records: dict[str, Task] = {}
    index: dict[str, list[bytes]] = {}
    for key, value in shown.items():
        if key.startswith(b"/task/status/"):
            index.setdefault(keys.parse_index_key(key).task_id, []).append(key)
        elif key.startswith(b"/task/"):
            task = codec.decode_task(key, value)
            records[task.id] = task
    assert index.keys() == records.keys(), f"records and index differ: {index.keys() ^ records.keys()}"
    for id_, task in records.items():
        assert index[id_] == [keys.index_key(task)], f"task {id_} is {task.status}, its index is {index[id_]}"
        offer = shown[index[id_][0]]
        assert offer == (codec.offer_value(task.spec.requirements) if task.status is Status.QUEUED else b"")
    return records


@dataclass(frozen=True)
class Loss:
    """What becomes of one transaction whose sender learns nothing of it."""

    name: str
    is_applied: bool
    #: Seconds until it is applied.
    delay_s: float = 0.0


LOST_BEFORE = Loss("request lost", is_applied=False)
LOST_AFTER = Loss("answer lost", is_applied=True)
#: Before the sender's next try (its first pause is at least 20 ms), and long after it.
APPLIED_SOON = Loss("applied soon after the sender gave up", is_applied=True, delay_s=0.005)
APPLIED_LATE = Loss("applied after the next try was", is_applied=True, delay_s=0.25)
LOSSES = (LOST_BEFORE, LOST_AFTER, APPLIED_SOON, APPLIED_LATE)


class LossyEtcd:
    """Another etcd, of whose writes some have no answer. Reads are not touched."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        #: Decides on each transaction that writes.
        self.loss: Callable[[], Loss | None] = lambda: None
        self._late: set[asyncio.Task[TxnResult]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    def lose_once(self, loss: Loss) -> None:
        losses = [loss]
        self.loss = lambda: losses.pop() if losses else None

    async def settled(self) -> None:
        """Returns when everything that was under way has been applied."""
        if self._late:
            await asyncio.wait(self._late)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        loss = self.loss() if _writes(txn) else None
        if loss is None:
            return await self._etcd.txn(txn, timeout_s=timeout_s)
        if loss.is_applied and loss.delay_s == 0:
            await self._etcd.txn(txn, timeout_s=timeout_s)
        elif loss.is_applied:
            late = asyncio.create_task(self._later(txn, loss.delay_s))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
        raise OutcomeUnknown(loss.name)

    async def _later(self, txn: Txn, delay_s: float) -> TxnResult:
        await asyncio.sleep(delay_s)
        return await self._etcd.txn(txn)


def _writes(op: Op) -> bool:
    if isinstance(op, Txn):
        return any(map(_writes, op.success)) or any(map(_writes, op.failure))
    return not isinstance(op, Range)


async def key_value(etcd: Etcd, key: bytes) -> KeyValue | None:
    result: RangeResult = await etcd.range(Range(key))
    return result.kvs[0] if result.kvs else None
