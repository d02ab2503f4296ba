"""The duty that forgets finished tasks: record and terminal key go, and whoever keeps their logs is told.

Which ones is decided by `node/core/retention.py`. Here they are listed, oldest first, and deleted in guarded batches,
one RPC at a time, so that the other writes of the node find room beside it: about 20,000 a second, where 1,000 a second
finish. One node does it (duty "retention"). Doing it on several nodes at once, or again after an unknown outcome, is
harmless: the guard compares the terminal key's create_revision. Logs elsewhere: `node/running/log_sweep.py`.

The database shrinks only with compaction (`etcd/maintenance.py`); freed pages are used again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from etcd import keys, transitions
from etcd.batcher import Applied, Batcher
from etcd.errors import StoreError
from etcd.maintenance import AllDuties, Holds
from etcd.port import Etcd, KeyValue, Range, RangeResult, Txn
from node.core.model import Status
from node.core.retention import Ended, Limits, Listed, Looks, to_forget

log = logging.getLogger(__name__)

#: Seconds between two looks when there was nothing more to do.
LOOK_EVERY_S = 5.0
#: Keys of each status listed in one look: many, since it costs etcd about 12 ms to count 150,000.
LISTED = 2_000
#: Deleted in one RPC.
BATCH = 100
TIMEOUT_S = 10.0
RETENTION = "retention"

_TERMINAL = tuple(status for status in Status if status.is_terminal)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look has done."""

    forgotten: int
    #: False: more may be due at once, beyond what was listed.
    is_done: bool


class Retention:
    """Keeps the number and the age of finished tasks within limits."""

    def __init__(
        self,
        etcd: Etcd,
        batcher: Batcher,
        limits: Limits,
        *,
        on_forgotten: Callable[[Sequence[str]], Awaitable[None]],
        duties: Holds | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """on_forgotten: told the ids of tasks that are gone now, some at a time, each at least once by some node.
        duties: by default all are this node's."""
        self._etcd = etcd
        self._batcher = batcher
        self._limits = limits
        self._on_forgotten = on_forgotten
        self._duties = duties or AllDuties()
        self._clock = clock
        self._monotonic = monotonic
        self._looks = Looks(limits.keep_s)
        self._sleep = sleep

    async def run(self) -> None:
        """Ends when cancelled. Errors of the store cost a look, not the node."""
        while True:
            is_done = True
            try:
                is_done = not await self._duties.hold(RETENTION) or (await self.look()).is_done
            except StoreError as error:
                log.warning("finished tasks could not be forgotten, trying again: %s", error)
            if is_done:
                await self._sleep(LOOK_EVERY_S)

    async def look(self) -> Look:
        """Lists once and forgets what is due."""
        found: dict[Ended, KeyValue] = {}
        listed: list[Listed] = []
        results = await self._list()
        settled = self._looks.saw(min(result.revision for result in results), now=self._monotonic())
        for result in results:
            # Kept apart from the values: two statuses never have the same task.
            oldest = {ended: kv for kv in result.kvs if (ended := _ended(kv)) is not None}
            listed.append(Listed(list(oldest), result.count - (len(result.kvs) - len(oldest))))
            found |= oldest
        due = to_forget(listed, self._limits, now=self._clock(), settled=settled)
        forgotten = 0
        for start in range(0, len(due), BATCH):
            gone = await self._forget([found[ended] for ended in due[start : start + BATCH]])
            forgotten += len(gone)
            if gone:
                await self._on_forgotten(gone)
        if forgotten:
            log.info("%d finished tasks forgotten", forgotten)
        is_whole = all(len(one.oldest) == one.total for one in listed)
        return Look(forgotten, is_done=is_whole or not forgotten)

    async def _list(self) -> list[RangeResult]:
        ranges = [keys.terminal(status) for status in _TERMINAL]
        ops = tuple(Range(r.key, r.range_end, limit=LISTED, keys_only=True) for r in ranges)
        result = await self._etcd.txn(Txn(success=ops), timeout_s=TIMEOUT_S)
        return [one for one in result.results if isinstance(one, RangeResult)]

    async def _forget(self, terminal_keys: Sequence[KeyValue]) -> list[str]:
        """Deletes these; gives the ids of those that are gone."""
        made = [transitions.forget(keys.parse_index_key(kv.key), kv.key, kv.create_revision) for kv in terminal_keys]
        answers = await self._batcher.apply_many(made, timeout_s=TIMEOUT_S)
        errors = [answer for answer in answers if isinstance(answer, StoreError)]
        gone = [one.task_id for one, answer in zip(made, answers, strict=True) if isinstance(answer, Applied)]
        # Lost: forgotten by a peer, or by a try of ours whose answer was lost, or there is a new task of that id.
        lost = [
            one.task_id
            for one, answer in zip(made, answers, strict=True)
            if not isinstance(answer, Applied | StoreError)
        ]
        if lost:
            records = await self._batcher.read(
                [Range(keys.task(task_id), count_only=True) for task_id in lost], timeout_s=TIMEOUT_S
            )
            gone += [task_id for task_id, record in zip(lost, records, strict=True) if not record.count]
        if errors:
            # The others are gone all the same; these come again in the next look.
            log.warning("%d of %d finished tasks were not forgotten: %s", len(errors), len(made), errors[0])
        return gone


def _ended(kv: KeyValue) -> Ended | None:
    index = keys.find_index_key(kv.key)
    if index is None:
        return None
    return Ended(index.epoch_s or 0, index.task_id, kv.create_revision)
