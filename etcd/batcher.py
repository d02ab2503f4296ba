"""Group commit: merges waiting transitions into one RPC of nested transactions, and gives each its own answer.

Alone, a transition goes out at once; under load groups form by themselves (`etcd/lane.py`). Measured with bare nested
transactions: 12,000 task life cycles a second in groups of 100, 3,800 one by one.

Facts of etcd that this relies on, and must respect:
* All compares of a transaction, nested ones too, see the state before it; the whole is one revision.
* The same key written twice in one RPC fails all of it: the items of a batch are of distinct tasks, an item of a task
  that is in the batch already waits for the next one.
* A level holds 128 operations at most, less the widest transaction nested in it: batches of 100 fit.
* An error is the whole RPC's. A batch that is refused is halved until the culprit is alone, so that its neighbours
  succeed.
* A full etcd refuses only what puts anything, and "no space" may be said of what was applied: a read tells.
* A transaction made of nothing but ranges is a read that costs no write to etcd's log, but only when it is flat: reads
  travel apart from transitions.

Unknown outcomes (OutcomeUnknown): the same items are sent again, with backoff and jitter, until they are answered or
the item's deadline has passed; then the item raises OutcomeUnknown. An item that was never sent raises
StoreUnavailable instead. A caller that is cancelled takes its item out of the queue; one already sent may be applied.

This knows no tasks but by their id, and no keys.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import TypeAlias

from etcd.errors import NoSpace, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.lane import Item, Lane, Limits, fail
from etcd.port import Etcd, Put, Range, RangeResult, Txn, TxnResult
from etcd.transitions import Transition

#: Bytes that an operation costs beside its key and value, generously.
_OPERATION_BYTES = 32
#: So many tries are given up sooner than the rest: together they outlast an election, and until that is over a member
#: passes on to the dead leader what it is sent.
QUICK_TRIES = 4
#: They have at least so many times what the slowest RPC of late took, so that a busy etcd is not sent everything twice.
_QUICK_ROUND_TRIPS = 4
#: What is kept of the slowest at each faster one.
_ROUND_TRIP_DECAY = 0.95
#: Of one call of apply_many, queued or in flight: four batches.
_MANY_WINDOW = 400


@dataclass(frozen=True, slots=True)
class Applied:
    """All guards held; everything was written at this revision. What was read with it, at that revision or, where only
    a look told that it was applied, at a later one."""

    revision: int
    reads: tuple[RangeResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """A guard failed and nothing was written by this try; what was read instead, at this revision."""

    reads: tuple[RangeResult, ...]
    revision: int


_Transitions: TypeAlias = Lane[Transition, Applied | Lost]
_Reads: TypeAlias = Lane[tuple[Range, ...], tuple[RangeResult, ...]]


def _puts(transition: Transition) -> bool:
    return any(isinstance(write, Put) for write in transition.writes)


def _txn(transition: Transition) -> Txn:
    return Txn(transition.compares, (*transition.writes, *transition.reads_applied), transition.reads)


def _ranges(result: TxnResult) -> tuple[RangeResult, ...]:
    return tuple([one for one in result.results if isinstance(one, RangeResult)])


async def _answer_or_error(answer: asyncio.Future[Applied | Lost]) -> Applied | Lost | StoreError:
    try:
        return await answer
    except StoreError as error:
        return error


class Batcher:
    """The way of all transitions and point reads to etcd. An async context manager; used on one loop."""

    def __init__(
        self,
        etcd: Etcd,
        *,
        max_items: int = 100,
        max_bytes: int = 1 << 20,
        in_flight: int = 4,
        max_waiting: int = 10_000,
        rpc_timeout_s: float = 3.0,
        first_timeout_s: float = 0.5,
        linger_s: float = 0.002,
        pace_s: float = 0.015,
        random: Random | None = None,
    ) -> None:
        """max_items, max_bytes: of one RPC. in_flight: RPCs at a time. max_waiting: items queued before callers wait.
        rpc_timeout_s: after which an RPC's outcome is unknown. first_timeout_s: the same of the first tries: what a
        leader took along when it died is never answered, and the next one is there within two. linger_s: wait for
        company beside RPCs in flight. pace_s: from one RPC to the next under load, where nobody is in a hurry."""
        self._etcd = etcd
        self._rpc_timeout_s = rpc_timeout_s
        self._first_timeout_s = min(first_timeout_s, rpc_timeout_s)
        #: Of the slowest RPC of late that was answered.
        self._round_trip_s = 0.0
        self._limits = Limits(max_items, max_bytes, in_flight, max_waiting, linger_s, pace_s)
        self._random = random or Random()  # noqa: S311  (jitter is no secret)
        self._lanes: tuple[_Transitions, _Reads] | None = None

    async def __aenter__(self) -> Batcher:
        self._lanes = (
            Lane(self._send_transitions, self._limits, self._random),
            Lane(self._send_reads, self._limits, self._random),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lanes, self._lanes = self._lanes, None
        for lane in lanes or ():
            await lane.close()

    async def post(
        self, transition: Transition, *, timeout_s: float, is_patient: bool = False
    ) -> asyncio.Future[Applied | Lost]:
        """Queues a transition and gives the future of its answer: for callers with many. is_patient and errors as
        `apply`."""
        size = sum(_OPERATION_BYTES + len(c.key) for c in transition.compares)
        for write in transition.writes:
            size += _OPERATION_BYTES + len(write.key) + (len(write.value) if isinstance(write, Put) else 0)
        lane = self._open_lanes()[0]
        return await lane.post(
            transition, subject=transition.task_id, width=1, size=size, timeout_s=timeout_s, is_patient=is_patient
        )

    async def apply(self, transition: Transition, *, timeout_s: float, is_patient: bool = False) -> Applied | Lost:
        """Sends it until it is answered. is_patient: it may wait some milliseconds for company when many are coming.

        Raises OutcomeUnknown (no answer before the time was up: it may have been applied, or may yet be),
        StoreUnavailable (never sent), RequestTooLarge, InvalidRequest, NoSpace (refused, nothing written as far as the
        record tells).
        Cancelling the caller gives no guarantee whether it is applied.
        """
        return await (await self.post(transition, timeout_s=timeout_s, is_patient=is_patient))

    async def apply_many(
        self, transitions: Iterable[Transition], *, timeout_s: float, is_patient: bool = False
    ) -> list[Applied | Lost | StoreError]:
        """Applies as many as there are, and gives their answers in order, errors of etcd among them.

        `timeout_s` is for all together; is_patient as in `apply`. They are drawn from the iterable as they are sent, so
        that neither the queue nor the memory fills up, and in small portions, so that others get the loop in between.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        window: deque[asyncio.Future[Applied | Lost]] = deque()
        answers: list[Applied | Lost | StoreError] = []
        try:
            for transition in transitions:
                window.append(await self._post_or_error(transition, deadline, is_patient))
                if len(window) >= _MANY_WINDOW:
                    answers.append(await _answer_or_error(window.popleft()))
            while window:
                answers.append(await _answer_or_error(window.popleft()))
        finally:
            for answer in window:
                # Only when this call is cancelled or failed: nobody will ask for these any more.
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()
        return answers

    async def _post_or_error(
        self, transition: Transition, deadline: float, is_patient: bool
    ) -> asyncio.Future[Applied | Lost]:
        loop = asyncio.get_running_loop()
        try:
            return await self.post(transition, timeout_s=deadline - loop.time(), is_patient=is_patient)
        except StoreError as error:
            failed: asyncio.Future[Applied | Lost] = loop.create_future()
            failed.set_exception(error)
            return failed

    async def read(self, ranges: Sequence[Range], *, timeout_s: float) -> tuple[RangeResult, ...]:
        """Point reads at one revision, at most max_items of them. Raises StoreUnavailable when the time is up."""
        if not ranges:
            return ()
        if len(ranges) > self._limits.max_items:
            raise ValueError(f"{len(ranges)} ranges in one read; at most {self._limits.max_items}")
        lane = self._open_lanes()[1]
        size = sum(_OPERATION_BYTES + len(r.key) for r in ranges)
        try:
            return await (await lane.post(tuple(ranges), subject="", width=len(ranges), size=size, timeout_s=timeout_s))
        except OutcomeUnknown as error:
            raise StoreUnavailable(f"nothing could be read in {timeout_s:.1f} s") from error

    def _open_lanes(
        self,
    ) -> tuple[_Transitions, _Reads]:
        if self._lanes is None:
            raise StoreUnavailable("the store is not open")
        return self._lanes

    def _timeout_s(self, tries: int) -> float:
        if tries >= QUICK_TRIES:
            return self._rpc_timeout_s
        return min(self._rpc_timeout_s, max(self._first_timeout_s, _QUICK_ROUND_TRIPS * self._round_trip_s))

    async def _txn(self, txn: Txn, timeout_s: float) -> TxnResult:
        started = asyncio.get_running_loop().time()
        result = await self._etcd.txn(txn, timeout_s=timeout_s)
        self._round_trip_s = max(asyncio.get_running_loop().time() - started, _ROUND_TRIP_DECAY * self._round_trip_s)
        return result

    async def _send_transitions(self, items: Sequence[Item[Transition, Applied | Lost]], tries: int) -> None:
        try:
            await self._send_together(items, self._timeout_s(tries))
        except NoSpace as error:
            putting = [item for item in items if _puts(item.payload)]
            if not putting:
                raise
            await self._settle_full(putting, error)
            rest = [item for item in items if not item.answer.done()]
            if rest:
                await self._send_together(rest, self._rpc_timeout_s)

    async def _settle_full(self, items: Sequence[Item[Transition, Applied | Lost]], error: NoSpace) -> None:
        """etcd is full, and these put something. Those that reached it while it was filling up it has applied all the
        same and reports as failed (apply.go, quotaApplierV3); those after that it refuses. Either is over when it
        answers, so that here, unlike after an unknown outcome, reading settles it."""
        looks = [(Range(item.payload.record_key), *item.payload.reads_applied) for item in items]
        # Each once: they read the same beside their records, and one level holds no more than a batch.
        ranges = tuple(dict.fromkeys(one for look in looks for one in look))
        try:
            result = await self._etcd.txn(Txn(success=ranges), timeout_s=self._rpc_timeout_s)
        except (OutcomeUnknown, StoreUnavailable) as unread:
            for item in items:
                fail(item, OutcomeUnknown(f"{error}, and then nothing could be read: {unread}"))
            return
        found = dict(zip(ranges, _ranges(result), strict=True))
        for item, look in zip(items, looks, strict=True):
            if item.answer.done():
                continue
            record, *reads = (found[one] for one in look)
            if record.kvs and record.kvs[0].value == item.payload.record:
                item.answer.set_result(Applied(record.kvs[0].mod_revision, tuple(reads)))
            else:
                fail(item, error)

    async def _send_together(self, items: Sequence[Item[Transition, Applied | Lost]], timeout_s: float) -> None:
        nested = tuple([_txn(item.payload) for item in items])
        if len(nested) == 1:
            result = await self._txn(nested[0], timeout_s)
            results: tuple[object, ...] = (result,)
        else:
            result = await self._txn(Txn(success=nested), timeout_s)
            results = result.results
        for item, one in zip(items, results, strict=True):
            if item.answer.done():
                continue
            if not isinstance(one, TxnResult):
                raise TypeError(f"etcd answered a transaction with {one!r}")
            reads = _ranges(one)
            item.answer.set_result(Applied(result.revision, reads) if one.succeeded else Lost(reads, result.revision))

    async def _send_reads(self, items: Sequence[Item[tuple[Range, ...], tuple[RangeResult, ...]]], tries: int) -> None:
        flat = tuple([one for item in items for one in item.payload])
        result = await self._txn(Txn(success=flat), self._timeout_s(tries))
        answers = _ranges(result)
        start = 0
        for item in items:
            end = start + len(item.payload)
            if not item.answer.done():
                item.answer.set_result(answers[start:end])
            start = end
