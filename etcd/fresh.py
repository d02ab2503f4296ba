"""Records of tasks submitted through this node, a short while after: their claim needs no read.

A record is known from the moment at which its submit is answered. The news of the queued key may come before that
answer, since etcd sends both at once; whoever acts on the news waits for the answer then, which comes sooner than a
read would. What is known may be outdated: the guard of whatever is written on top of it tells.

Bounded, and without the tasks of large calls: those wait in the queue, where they are read many at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from node.core.model import Task

#: Records kept in all, and up to how many of one call.
KEPT_MAX = 256
OF_CALL_MAX = 64


@dataclass(frozen=True, slots=True)
class Versioned:
    """A record as it was read, or written."""

    task: Task
    mod_revision: int


class FreshRecords:
    """By task id, the oldest forgotten first."""

    def __init__(self) -> None:
        self._kept: dict[str, Versioned] = {}
        #: Tasks that are being submitted; each is done when its record is kept, or never will be.
        self._under_way: dict[str, asyncio.Future[None]] = {}

    @contextlib.contextmanager
    def noting(self, tasks: Sequence[Task]) -> Iterator[Callable[[Versioned], None]]:
        """Meanwhile these are being submitted; it gives what takes note of each that was stored by this very call."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine = {task.id for task in tasks} - self._under_way.keys() if len(tasks) <= OF_CALL_MAX else set()
        self._under_way.update(dict.fromkeys(mine, done))

        def note(stored: Versioned) -> None:
            if stored.task.id in mine:
                self._kept[stored.task.id] = stored

        try:
            yield note
        finally:
            while len(self._kept) > KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            for task_id in mine:
                del self._under_way[task_id]
            done.set_result(None)

    def find_submit(self, task_id: str) -> asyncio.Future[None] | None:
        """Done when the submit of this task through here is answered; None where it is not under way."""
        return self._under_way.get(task_id)

    def take(self, task_id: str) -> Versioned | None:
        """The record as it was submitted, and it is forgotten. Its queued key has the same mod_revision for as long as
        it is as it was."""
        return self._kept.pop(task_id, None)
