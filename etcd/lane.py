"""A lane: items wait, go out in groups, and each gets its own answer.

The half of group commit that knows nothing of etcd's transactions (the other is `etcd/batcher.py`): when to send, what
goes together, sending again what was not answered, halving what was refused, deadlines, the end. An item is whatever
the lane's RPC takes.

Alone, an item goes out at once. Under load a further RPC beside those in flight is sent only for a group that is worth
it, or for one that has waited `linger_s`. Items that nobody waits for with bated breath (patient ones: ends of tasks,
claims ahead) leave every `pace_s` at most while many are coming, since an RPC of one costs etcd and the node, and every
watcher, nearly as much as an RPC of ten; an impatient one takes along all that wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from etcd.errors import OutcomeUnknown, StoreError, StoreUnavailable

#: Duplicates looked past while a batch is filled; beyond that the batch goes as it is.
_SKIPS_MAX = 200
#: How late a deadline may be noticed.
_EXPIRY_TICK_S = 0.1
#: So many items in so short a time are "many".
_BUSY_ITEMS = 8
_BUSY_WITHIN_S = 0.05
_BACKOFF_FIRST_S = 0.02
_BACKOFF_MAX_S = 1.0

AnswerT = TypeVar("AnswerT")
PayloadT = TypeVar("PayloadT")


@dataclass(frozen=True, slots=True)
class Limits:
    #: Width of one RPC.
    max_items: int
    #: Size of one RPC.
    max_bytes: int
    #: RPCs at a time.
    in_flight: int
    #: Items queued before callers wait.
    max_waiting: int
    #: How long an item waits for company beside RPCs in flight.
    linger_s: float
    #: From one RPC to the next, where all that wait are patient and many are coming.
    pace_s: float


@dataclass(slots=True, eq=False)
class Item(Generic[PayloadT, AnswerT]):
    """What one caller waits for."""

    payload: PayloadT
    #: No two items of a batch have the same; empty: may be beside anything.
    subject: str
    #: Operations it takes of a batch.
    width: int
    size: int
    #: On the loop's clock.
    deadline: float
    answer: asyncio.Future[AnswerT]
    #: May wait for company under load.
    is_patient: bool
    #: Sent at least once.
    is_sent: bool = False


class Lane(Generic[PayloadT, AnswerT]):
    """A bounded queue and the RPCs in flight.

    Invariants: an item is in `_waiting` or in exactly one running `_send`; an item whose answer is done is never sent
    (again).
    """

    def __init__(
        self,
        rpc: Callable[[Sequence[Item[PayloadT, AnswerT]], int], Awaitable[None]],
        limits: Limits,
        random: Random,
    ) -> None:
        """rpc: sends these and answers each, or raises for all of them; it is told how often they went unanswered
        before. random: jitter."""
        self._rpc = rpc
        self._limits = limits
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Item[PayloadT, AnswerT]] = deque()
        #: Items waiting or being sent, for their deadlines.
        self._open: set[Item[PayloadT, AnswerT]] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._is_closed = False
        #: Of those waiting, how many are not patient; done ones count until they are found to be done.
        self._impatient = 0
        #: When the latest items came, and the latest RPC left.
        self._posted_at: deque[float] = deque(maxlen=_BUSY_ITEMS)
        self._started_at = float("-inf")
        self._pump_handle: asyncio.Handle | None = None
        self._linger_handle: asyncio.TimerHandle | None = None
        self._expiry_handle: asyncio.TimerHandle | None = None

    async def post(
        self, payload: PayloadT, *, subject: str, width: int, size: int, timeout_s: float, is_patient: bool = False
    ) -> asyncio.Future[AnswerT]:
        """Queues an item; waits while the queue is full, and no longer than the item may. is_patient: it may wait for
        `pace_s` under load."""
        deadline = self._loop.time() + timeout_s
        while not self._room.is_set() and not self._is_closed:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._room.wait()
            except TimeoutError:
                raise StoreUnavailable(f"not sent within {timeout_s} s: the queue to etcd is full") from None
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        item = Item(payload, subject, width, size, deadline, self._loop.create_future(), is_patient)
        self._waiting.append(item)
        self._impatient += not is_patient
        self._posted_at.append(self._loop.time())
        self._open.add(item)
        if len(self._waiting) >= self._limits.max_waiting:
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
            fail(item, OutcomeUnknown(closed) if item.is_sent else StoreUnavailable(closed))
        self._waiting.clear()
        self._open.clear()

    # -- when to send -----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        self._pump_handle = None
        while self._waiting and self._is_worth_sending():
            self._start()
        if self._waiting and len(self._sending) < self._limits.in_flight:
            wait_s = self._pause_s()
            self._linger_until(self._loop.time() + (wait_s or self._limits.linger_s))

    def _is_worth_sending(self) -> bool:
        """With nothing in flight anything is, but what may wait under load; beside others only a good part of a
        batch."""
        if len(self._sending) >= self._limits.in_flight:
            return False
        return len(self._waiting) * 2 >= self._limits.max_items or (not self._sending and not self._pause_s())

    def _pause_s(self) -> float:
        """How much longer those waiting may be kept together; 0: they are not to be."""
        if self._impatient or len(self._posted_at) < _BUSY_ITEMS:
            return 0.0
        now = self._loop.time()
        if now - self._posted_at[0] > _BUSY_WITHIN_S:
            return 0.0
        return max(0.0, self._started_at + self._limits.pace_s - now)

    def _linger_until(self, at: float) -> None:
        if self._linger_handle is not None:
            if self._linger_handle.when() <= at:
                return
            self._linger_handle.cancel()
        self._linger_handle = self._loop.call_at(at, self._stop_lingering)

    def _stop_lingering(self) -> None:
        self._linger_handle = None
        # Those for which the time was set may have left with others, and what waits now has come since.
        if self._waiting and len(self._sending) < self._limits.in_flight and not self._pause_s():
            self._start()
        self._pump()

    def _start(self) -> None:
        batch = self._take()
        if batch:
            self._started_at = self._loop.time()
            task = self._loop.create_task(self._send(batch))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not self._is_closed and self._waiting:
            self._pump()

    def _take(self) -> list[Item[PayloadT, AnswerT]]:
        """The next batch: in order, distinct subjects, within the limits; one item too large for any goes alone."""
        batch: list[Item[PayloadT, AnswerT]] = []
        skipped: list[Item[PayloadT, AnswerT]] = []
        subjects: set[str] = set()
        width = size = 0
        while self._waiting and len(skipped) < _SKIPS_MAX:
            item = self._waiting[0]
            if item.answer.done():
                self._open.discard(self._waiting.popleft())
                self._impatient -= not item.is_patient
                continue
            if batch and (width + item.width > self._limits.max_items or size + item.size > self._limits.max_bytes):
                break
            self._waiting.popleft()
            if item.subject in subjects:
                skipped.append(item)
                continue
            if item.subject:
                subjects.add(item.subject)
            item.is_sent = True
            self._impatient -= not item.is_patient
            batch.append(item)
            width += item.width
            size += item.size
        self._waiting.extendleft(reversed(skipped))
        if len(self._waiting) < self._limits.max_waiting:
            self._room.set()
        return batch

    # -- sending ----------------------------------------------------------------------------------------------

    async def _send(self, batch: list[Item[PayloadT, AnswerT]]) -> None:
        """Sends until every item is answered, refused or past its deadline."""
        tries = 0
        todo = [batch]
        try:
            while todo:
                part = [item for item in todo.pop() if not item.answer.done()]
                if not part:
                    continue
                try:
                    await self._rpc(part, tries)
                    tries = 0
                except (OutcomeUnknown, StoreUnavailable):
                    todo.append(part)
                    tries += 1
                    await asyncio.sleep(self._backoff_s(tries))
                except StoreError as error:
                    todo.extend(_isolate(part, error))
        except Exception as error:  # A bug of ours: it must reach those who wait, whoever they are.
            for item in batch:
                fail(item, error)
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
                fail(item, self._expired(item))
        if self._open:
            self._expiry_handle = self._loop.call_later(_EXPIRY_TICK_S, self._expire)

    @staticmethod
    def _expired(item: Item[PayloadT, AnswerT]) -> StoreError:
        if item.is_sent:
            return OutcomeUnknown("no answer from etcd in time")
        return StoreUnavailable("not sent in time: etcd is too slow or does not answer")


def fail(item: Item[PayloadT, AnswerT], error: Exception) -> None:
    """Gives the item an error for its answer, unless it has one or nobody waits any more."""
    if not item.answer.done():
        item.answer.set_exception(error)


def _isolate(part: list[Item[PayloadT, AnswerT]], error: StoreError) -> list[list[Item[PayloadT, AnswerT]]]:
    """etcd refused these together: fails those that are to blame, gives the rest in parts to be sent again."""
    if len(part) == 1:
        fail(part[0], error)
        return []
    middle = len(part) // 2
    return [part[middle:], part[:middle]]
