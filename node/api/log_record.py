"""The record of one task, kept up while its log is read: which attempts there are, and which of them are over.

Must not do: read logs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from etcd import codec, keys
from etcd.errors import Compacted
from etcd.port import Etcd, KeyRange, KeyValue, Range
from etcd.store import Versioned
from node.api.errors import not_found
from node.core.model import Attempt, Task


class RecordFollower:
    """The newest state of one record, kept up by a watch."""

    def __init__(self, etcd: Etcd, seen: Versioned) -> None:
        self._etcd = etcd
        self._revision = seen.mod_revision
        self.task = seen.task
        self._changed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RecordFollower:
        if not over(self.task):
            self._watching = asyncio.create_task(self._watch(), name=f"follow {self.task.id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            # Its error, if any, has reached the caller through wait_change; here only its end is waited for.
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        key = keys.task(self.task.id)
        while not over(self.task):
            with contextlib.suppress(Compacted):  # away for too long: looks anew
                # Read once the watch stands, not watched from where it was read: see `node/api/watch.py`.
                async with self._etcd.watch([KeyRange(key)]) as batches:
                    found = await self._etcd.range(Range(key))
                    if not found.kvs:
                        raise not_found(self.task.id)
                    self._take_in(found.kvs[0])
                    if over(self.task):
                        return
                    async for batch in batches:
                        for event in batch.events:
                            if event.is_delete:
                                raise not_found(self.task.id)
                            self._take_in(event.kv)
                        if over(self.task):
                            return

    def _take_in(self, kv: KeyValue) -> None:
        if kv.mod_revision > self._revision:
            self._revision = kv.mod_revision
            self.task = codec.decode_task(kv.key, kv.value)
            self._changed.set()

    def is_over(self, number: int) -> bool:
        """Whether every process of that attempt is known to be gone."""
        if self.task.attempt > number or over(self.task):
            return True
        attempt = find_attempt(self.task, number)
        return attempt is not None and attempt.outcome is not None

    async def wait_until(self, condition: Callable[[Task], bool]) -> None:
        """Returns when the record fulfils the condition. Raises what the watch raised."""
        while not condition(self.task):
            await self.wait_change(None)

    async def wait_change(self, timeout_s: float | None) -> None:
        """Returns when the record has changed, or after the timeout. Raises what the watch raised."""
        if self._watching is None:
            return
        self._changed.clear()
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([changed, self._watching], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if self._watching.done() and (error := self._watching.exception()) is not None:
            raise error


def over(task: Task) -> bool:
    return task.status.is_terminal


def has_attempt(number: int) -> Callable[[Task], bool]:
    """That attempt has begun, or never will."""
    return lambda task: task.attempt >= number or over(task)


def find_attempt(task: Task, number: int) -> Attempt | None:
    return next((attempt for attempt in task.attempts if attempt.number == number), None)
