"""A loop on which waiting costs nothing: when all are asleep, its clock jumps to the next one's waking.

For tests of timing that are exact and fast. No threads and no outside world on it: what would wait for them without
a timer waits for ever, and is told as such.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for the timeout it moves the clock on by it."""

    def __init__(self) -> None:
        super().__init__()
        #: Not 0, so that "no time yet" and "at the start" are told apart.
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits, and nothing will ever happen")
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that jumps."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(  # type: ignore[override]  # the base class's own types are looser than its annotations
        self, executor: Any, func: Callable[..., _Result], *args: Any
    ) -> asyncio.Future[_Result]:
        """What is meant for a thread is done on the spot: it takes no virtual time."""
        done: asyncio.Future[_Result] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # as an executor: whatever it is, is the awaiting one's
            done.set_exception(error)
        return done


def run_virtual(program: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a coroutine to its end on a VirtualLoop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(program)


def virtual_time(test: Callable[_Args, Coroutine[Any, Any, None]]) -> Callable[_Args, None]:
    """Decorates a test: its coroutine runs on a VirtualLoop of its own. (Fixtures are not on that loop.)"""

    @functools.wraps(test)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> None:
        run_virtual(test(*args, **kwargs))

    return run
