"""The event loop of large runs: virtual time, one order for one seed, and nothing kept of what has ended."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.virtual_time import VirtualLoop

T = TypeVar("T")


class _NumberedTask(asyncio.Task[Any]):
    """Its place in sets follows from its making, and not from its address."""

    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(_NumberedTask._numbers)  # first: asyncio puts it into a set at once
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class ScaleLoop(VirtualLoop):
    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(lambda loop, program, **options: _NumberedTask(program, loop=loop, **options))


def run(program: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end; what it has started is cancelled then."""
    with asyncio.Runner(loop_factory=ScaleLoop) as runner:
        return runner.run(program)
