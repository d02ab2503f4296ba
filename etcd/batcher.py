"""Group commit: merges waiting transitions into one RPC of nested transactions, and gives each its own answer.

Alone, an item goes out at once. Under load items wait for one another by themselves: a further RPC beside those in
flight is sent only for a group that is worth it, or for one that has waited `linger_s`. Measured (design, section 2):
12,000 task life cycles a second in groups of 100, 3,800 one by one.

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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Generic, TypeVar

from etcd.errors import NoSpace, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.port import Etcd, Put, Range, RangeResult, Txn, TxnResult
from etcd.transitions import Transition

#: Bytes that an operation costs beside its key and value, generously.
_OPERATION_BYTES = 32
#: Duplicates looked past while a batch is filled; beyond that the batch goes as it is.
_SKIPS_MAX = 200
#: How late a deadline may be noticed.
_EXPIRY_TICK_S = 0.1
#: Of one call of apply_many, queued or in flight: four batches.
_MANY_WINDOW = 400
_BACKOFF_FIRST_S = 0.02
_BACKOFF_MAX_S = 1.0


@dataclass(frozen=True, slots=True)
class Applied:
    """All guards held; everything was written at this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A guard failed and nothing was written by this try; what was read instead, at this revision."""

    reads: tuple[RangeResult, ...]
    revision: int


AnswerT = TypeVar("AnswerT")
PayloadT = TypeVar("PayloadT")


@dataclass(slots=True, eq=False)
class _Item(Generic[PayloadT, AnswerT]):
    payload: PayloadT
    #: No two items of a batch have the same; empty: may be beside anything.
    subject: str
    #: Operations it takes of a batch.
    width: int
    size: int
    #: On the loop's clock.
    deadline: float
    answer: asyncio.Future[AnswerT]
    #: Sent at least once.
    is_sent: bool = False


class _Lane(Generic[PayloadT, AnswerT]):
    """A bounded queue and the RPCs in flight.

    Invariants: an item is in `_waiting` or in exactly one running `_send`; an item whose answer is done is never sent
    (again).
    """

    def __init__(
        self,
        rpc: Callable[[Sequence[_Item[PayloadT, AnswerT]]], Awaitable[None]],
        *,
        max_items: int,
        max_bytes: int,
        in_flight: int,
        max_waiting: int,
        linger_s: float,
        random: Random,
    ) -> None:
        self._rpc = rpc
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._in_flight = in_flight
        self._max_waiting = max_waiting
        self._linger_s = linger_s
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Item[PayloadT, AnswerT]] = deque()
        #: Items waiting or being sent, for their deadlines.
        self._open: set[_Item[PayloadT, AnswerT]] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._is_closed = False
        self._pump_handle: asyncio.Handle | None = None
        self._linger_handle: asyncio.TimerHandle | None = None
        self._expiry_handle: asyncio.TimerHandle | None = None

    async def post(
        self, payload: PayloadT, *, subject: str, width: int, size: int, timeout_s: float
    ) -> asyncio.Future[AnswerT]:
        """Queues an item; waits while the queue is full, and no longer than the item may."""
        deadline = self._loop.time() + timeout_s
        while not self._room.is_set() and not self._is_closed:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._room.wait()
            except TimeoutError:
                raise StoreUnavailable(f"not sent within {timeout_s} s: the queue to etcd is full") from None
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        item = _Item(payload, subject, width, size, deadline, self._loop.create_future())
        self._waiting.append(item)
        self._open.add(item)
        if len(self._waiting) >= self._max_waiting:
            self._room.clear()
        if self._pump_handle is None:
            # At the end of this round of the loop, so that what is posted in one go is sent in one go.
            self._pump_handle = self._loop.call_soon(self._pump)
        if self._expiry_handle is None:
            self._expiry_handle = self._loop.call_later(_EXPIRY_TICK_S, self._expire)
        return item.answer

    async def close(self) -> None:
        """Stops at once: what was not sent raises StoreUnavailable, what has no answer yet OutcomeUnknown."""
        self._is_closed = True
        self._room.set()
        for handle in (self._pump_handle, self._linger_handle, self._expiry_handle):
            if handle is not None:
                handle.cancel()
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        for item in self._open:
            closed = "the store was closed before the answer came"
            _fail(item, OutcomeUnknown(closed) if item.is_sent else StoreUnavailable(closed))
        self._waiting.clear()
        self._open.clear()

    # -- when to send -----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        self._pump_handle = None
        while self._waiting and self._is_worth_sending():
            self._start()
        if self._waiting and len(self._sending) < self._in_flight and self._linger_handle is None:
            self._linger_handle = self._loop.call_later(self._linger_s, self._stop_lingering)

    def _is_worth_sending(self) -> bool:
        """With nothing in flight anything is; beside others only a good part of a batch."""
        busy = len(self._sending)
        return busy < self._in_flight and (busy == 0 or len(self._waiting) * 2 >= self._max_items)

    def _stop_lingering(self) -> None:
        self._linger_handle = None
        if self._waiting and len(self._sending) < self._in_flight:
            self._start()
        self._pump()

    def _start(self) -> None:
        batch = self._take()
        if batch:
            task = self._loop.create_task(self._send(batch))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not self._is_closed and self._waiting:
            self._pump()

    def _take(self) -> list[_Item[PayloadT, AnswerT]]:
        """The next batch: in order, distinct subjects, within the limits; one item too large for any goes alone."""
        batch: list[_Item[PayloadT, AnswerT]] = []
        skipped: list[_Item[PayloadT, AnswerT]] = []
        subjects: set[str] = set()
        width = size = 0
        while self._waiting and len(skipped) < _SKIPS_MAX:
            item = self._waiting[0]
            if item.answer.done():
                self._open.discard(self._waiting.popleft())
                continue
            if batch and (width + item.width > self._max_items or size + item.size > self._max_bytes):
                break
            self._waiting.popleft()
            if item.subject in subjects:
                skipped.append(item)
                continue
            if item.subject:
                subjects.add(item.subject)
            item.is_sent = True
            batch.append(item)
            width += item.width
            size += item.size
        self._waiting.extendleft(reversed(skipped))
        if len(self._waiting) < self._max_waiting:
            self._room.set()
        return batch

    # -- sending ----------------------------------------------------------------------------------------------

    async def _send(self, batch: list[_Item[PayloadT, AnswerT]]) -> None:
        """Sends until every item is answered, refused or past its deadline."""
        tries = 0
        todo = [batch]
        try:
            while todo:
                part = [item for item in todo.pop() if not item.answer.done()]
                if not part:
                    continue
                try:
                    await self._rpc(part)
                    tries = 0
                except (OutcomeUnknown, StoreUnavailable):
                    todo.append(part)
                    tries += 1
                    await asyncio.sleep(self._backoff_s(tries))
                except StoreError as error:
                    todo.extend(_isolate(part, error))
        except Exception as error:  # A bug of ours: it must reach those who wait, whoever they are.
            for item in batch:
                _fail(item, error)
        finally:
            self._open.difference_update(item for item in batch if item.answer.done())

    def _backoff_s(self, tries: int) -> float:
        return min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0**tries) * self._random.uniform(0.5, 1.0)

    def _expire(self) -> None:
        """Ends the wait of items past their deadline. One that is being sent stays in its batch until that returns."""
        self._expiry_handle = None
        now = self._loop.time()
        for item in [item for item in self._open if item.deadline <= now or item.answer.done()]:
            self._open.discard(item)
            if not item.answer.done():
                _fail(item, self._expired(item))
        if self._open:
            self._expiry_handle = self._loop.call_later(_EXPIRY_TICK_S, self._expire)

    @staticmethod
    def _expired(item: _Item[PayloadT, AnswerT]) -> StoreError:
        if item.is_sent:
            return OutcomeUnknown("no answer from etcd in time")
        return StoreUnavailable("not sent in time: etcd is too slow or does not answer")


def _fail(item: _Item[PayloadT, AnswerT], error: Exception) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)


def _isolate(part: list[_Item[PayloadT, AnswerT]], error: StoreError) -> list[list[_Item[PayloadT, AnswerT]]]:
    """etcd refused these together: fails those that are to blame, gives the rest in parts to be sent again."""
    if len(part) == 1:
        _fail(part[0], error)
        return []
    middle = len(part) // 2
    return [part[middle:], part[:middle]]


def _puts(transition: Transition) -> bool:
    return any(isinstance(write, Put) for write in transition.writes)


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
        linger_s: float = 0.002,
        random: Random | None = None,
    ) -> None:
        """max_items, max_bytes: of one RPC. in_flight: RPCs at a time. max_waiting: items queued before callers wait.
        rpc_timeout_s: after which an RPC's outcome is unknown. linger_s: wait for company beside RPCs in flight."""
        self._etcd = etcd
        self._rpc_timeout_s = rpc_timeout_s
        self._limits = (max_items, max_bytes, in_flight, max_waiting, linger_s)
        self._random = random or Random()  # noqa: S311  (jitter is no secret)
        self._lanes: tuple[_Lane[Transition, Applied | Lost], _Lane[tuple[Range, ...], tuple[RangeResult, ...]]] | None
        self._lanes = None

    async def __aenter__(self) -> Batcher:
        max_items, max_bytes, in_flight, max_waiting, linger_s = self._limits
        self._lanes = (
            _Lane(
                self._send_transitions,
                max_items=max_items,
                max_bytes=max_bytes,
                in_flight=in_flight,
                max_waiting=max_waiting,
                linger_s=linger_s,
                random=self._random,
            ),
            _Lane(
                self._send_reads,
                max_items=max_items,
                max_bytes=max_bytes,
                in_flight=in_flight,
                max_waiting=max_waiting,
                linger_s=linger_s,
                random=self._random,
            ),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lanes, self._lanes = self._lanes, None
        for lane in lanes or ():
            await lane.close()

    async def post(self, transition: Transition, *, timeout_s: float) -> asyncio.Future[Applied | Lost]:
        """Queues a transition and gives the future of its answer: for callers with many. Errors as `apply`."""
        size = sum(_OPERATION_BYTES + len(c.key) for c in transition.compares)
        for write in transition.writes:
            size += _OPERATION_BYTES + len(write.key) + (len(write.value) if isinstance(write, Put) else 0)
        lane = self._open_lanes()[0]
        return await lane.post(transition, subject=transition.task_id, width=1, size=size, timeout_s=timeout_s)

    async def apply(self, transition: Transition, *, timeout_s: float) -> Applied | Lost:
        """Sends it until it is answered.

        Raises OutcomeUnknown (no answer before the time was up: it may have been applied, or may yet be),
        StoreUnavailable (never sent), RequestTooLarge, InvalidRequest, NoSpace (refused, nothing written as far as the
        record tells).
        Cancelling the caller gives no guarantee whether it is applied.
        """
        return await (await self.post(transition, timeout_s=timeout_s))

    async def apply_many(
        self, transitions: Iterable[Transition], *, timeout_s: float
    ) -> list[Applied | Lost | StoreError]:
        """Applies as many as there are, and gives their answers in order, errors of etcd among them.

        `timeout_s` is for all together. They are drawn from the iterable as they are sent, so that neither the queue
        nor the memory fills up, and in small portions, so that others get the loop in between.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        window: deque[asyncio.Future[Applied | Lost]] = deque()
        answers: list[Applied | Lost | StoreError] = []
        try:
            for transition in transitions:
                window.append(await self._post_or_error(transition, deadline))
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

    async def _post_or_error(self, transition: Transition, deadline: float) -> asyncio.Future[Applied | Lost]:
        loop = asyncio.get_running_loop()
        try:
            return await self.post(transition, timeout_s=deadline - loop.time())
        except StoreError as error:
            failed: asyncio.Future[Applied | Lost] = loop.create_future()
            failed.set_exception(error)
            return failed

    async def read(self, ranges: Sequence[Range], *, timeout_s: float) -> tuple[RangeResult, ...]:
        """Point reads at one revision, at most max_items of them. Raises StoreUnavailable when the time is up."""
        if not ranges:
            return ()
        if len(ranges) > self._limits[0]:
            raise ValueError(f"{len(ranges)} ranges in one read; at most {self._limits[0]}")
        lane = self._open_lanes()[1]
        size = sum(_OPERATION_BYTES + len(r.key) for r in ranges)
        try:
            return await (await lane.post(tuple(ranges), subject="", width=len(ranges), size=size, timeout_s=timeout_s))
        except OutcomeUnknown as error:
            raise StoreUnavailable(f"nothing could be read in {timeout_s} s") from error

    def _open_lanes(
        self,
    ) -> tuple[_Lane[Transition, Applied | Lost], _Lane[tuple[Range, ...], tuple[RangeResult, ...]]]:
        if self._lanes is None:
            raise StoreUnavailable("the store is not open")
        return self._lanes

    async def _send_transitions(self, items: Sequence[_Item[Transition, Applied | Lost]]) -> None:
        try:
            await self._send_together(items)
        except NoSpace as error:
            putting = [item for item in items if _puts(item.payload)]
            if not putting:
                raise
            await self._settle_full(putting, error)
            rest = [item for item in items if not item.answer.done()]
            if rest:
                await self._send_together(rest)

    async def _settle_full(self, items: Sequence[_Item[Transition, Applied | Lost]], error: NoSpace) -> None:
        """etcd is full, and these put something. Those that reached it while it was filling up it has applied all the
        same and reports as failed (apply.go, quotaApplierV3); those after that it refuses. Either is over when it
        answers, so that here, unlike after an unknown outcome, reading settles it."""
        records = tuple([Range(item.payload.record_key) for item in items])
        try:
            result = await self._etcd.txn(Txn(success=records), timeout_s=self._rpc_timeout_s)
        except (OutcomeUnknown, StoreUnavailable) as unread:
            for item in items:
                _fail(item, OutcomeUnknown(f"{error}, and then nothing could be read: {unread}"))
            return
        for item, found in zip(items, result.results, strict=True):
            kvs = found.kvs if isinstance(found, RangeResult) else ()
            if item.answer.done():
                continue
            if kvs and kvs[0].value == item.payload.record:
                item.answer.set_result(Applied(kvs[0].mod_revision))
            else:
                _fail(item, error)

    async def _send_together(self, items: Sequence[_Item[Transition, Applied | Lost]]) -> None:
        nested = tuple([Txn(i.payload.compares, i.payload.writes, i.payload.reads) for i in items])
        if len(nested) == 1:
            result = await self._etcd.txn(nested[0], timeout_s=self._rpc_timeout_s)
            results: tuple[object, ...] = (result,)
        else:
            result = await self._etcd.txn(Txn(success=nested), timeout_s=self._rpc_timeout_s)
            results = result.results
        applied = Applied(result.revision)
        for item, one in zip(items, results, strict=True):
            if item.answer.done():
                continue
            if not isinstance(one, TxnResult):
                raise TypeError(f"etcd answered a transaction with {one!r}")
            if one.succeeded:
                item.answer.set_result(applied)
            else:
                reads = tuple([r for r in one.results if isinstance(r, RangeResult)])
                item.answer.set_result(Lost(reads, result.revision))

    async def _send_reads(self, items: Sequence[_Item[tuple[Range, ...], tuple[RangeResult, ...]]]) -> None:
        flat = tuple([one for item in items for one in item.payload])
        result = await self._etcd.txn(Txn(success=flat), timeout_s=self._rpc_timeout_s)
        answers = [r for r in result.results if isinstance(r, RangeResult)]
        start = 0
        for item in items:
            end = start + len(item.payload)
            if not item.answer.done():
                item.answer.set_result(tuple(answers[start:end]))
            start = end
