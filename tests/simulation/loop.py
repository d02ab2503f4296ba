"""Processes on one event loop: each may be paused or killed between any two of its steps.

Whatever is scheduled on the loop belongs to the process in whose context it was scheduled (a context variable, which
tasks and their callbacks inherit). What belongs to a paused process waits until it goes on; what belongs to a dead one
never runs again, `finally` blocks neither: that is kill -9. What belongs to none (the kernel, the network, etcd, the
world) always runs.

Time is virtual: when everything waits, the clock jumps. A machine that is paused as a whole stands still with its
clock: its processes live by a time of their own, which lags behind for good. Order is that of scheduling, and sets of
asyncio tasks are ordered by their making, so that one seed is one story.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.support.virtual_time import VirtualLoop

T = TypeVar("T")

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Machine:
    """What processes share: the time, and a pause of everything (a virtual machine that is suspended)."""

    def __init__(self) -> None:
        #: Seconds that its clock is behind the true time, but for a pause that goes on.
        self.lag_s = 0.0
        self.resumed_at = 0.0
        self._paused_at: float | None = None
        #: Timers that came due while it was paused, in order.
        self._held: list[_Step] = []

    @property
    def is_paused(self) -> bool:
        return self._paused_at is not None

    def now(self, true_time: float) -> float:
        """What its clock shows."""
        return (true_time if self._paused_at is None else self._paused_at) - self.lag_s

    def behind_s(self, true_time: float) -> float:
        """Seconds that its clock is behind, with a pause that goes on."""
        return true_time - self.now(true_time)

    def pause(self) -> None:
        """Its processes stop, and its clock."""
        if self._paused_at is None:
            self._paused_at = _loop().true_time()

    def resume(self) -> None:
        """They go on, as if nothing had been."""
        if self._paused_at is not None:
            self.lag_s += _loop().true_time() - self._paused_at
            self._paused_at, self.resumed_at = None, _loop().true_time()
            held, self._held = self._held, []
            for step in held:
                step.again()

    def hold(self, step: _Step) -> None:
        """For the loop."""
        self._held.append(step)


class Process:
    """One operating system process."""

    def __init__(self, name: str, machine: Machine | None = None) -> None:
        self.name = name
        self.machine = machine or Machine()
        self.is_dead = False
        self.is_paused = False
        self._resumed_at = 0.0
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)
        #: What came due while it was paused, in order.
        self._held: list[tuple[Callable[[], None], contextvars.Context]] = []

    def start(self, program: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """A task of this process."""
        loop = asyncio.get_running_loop()
        return self._context.copy().run(lambda: loop.create_task(program, name=name or self.name))

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """A step of this process; from anywhere."""
        return asyncio.get_running_loop().call_later(delay_s, callback, *args, context=self._context.copy())

    def call(self, function: Callable[[], T]) -> T:
        """At once, as if it did so itself: by its machine's time."""
        return self._context.copy().run(function)

    def pause(self) -> None:
        """SIGSTOP."""
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.is_paused = False
        self._resumed_at = asyncio.get_running_loop().time()
        held, self._held = self._held, []
        for step, context in held:
            asyncio.get_running_loop().call_soon(step, context=context)

    def has_run_since(self, moment: float) -> bool:
        """Whether neither it nor its machine was paused since then, if it lives."""
        is_paused = self.is_paused or self.machine.is_paused
        return not is_paused and max(self._resumed_at, self.machine.resumed_at) <= moment

    def kill(self) -> None:
        """SIGKILL: from now on nothing of it runs."""
        self.is_dead = True
        self._held.clear()

    def hold(self, step: Callable[[], None], context: contextvars.Context) -> None:
        """For the loop."""
        self._held.append((step, context))


def of_nobody(callback: Callable[..., object], *args: object, delay_s: float = 0.0) -> asyncio.TimerHandle:
    """A step that belongs to no process."""
    return asyncio.get_running_loop().call_later(delay_s, callback, *args, context=contextvars.Context())


class _OrderedTask(asyncio.Task[Any]):
    """Its place in sets follows from its making, and not from its address."""

    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(_OrderedTask._numbers)  # first: asyncio puts it into a set at once
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(VirtualLoop):
    """A loop on which processes live."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(self._make_task)
        #: All that were ever made. Those of a dead process never end, and must not be collected: Python would run their
        #: `finally` blocks.
        self._tasks: list[asyncio.Task[Any]] = []
        #: What went wrong where nobody waits for it.
        self.errors: list[str] = []
        self.set_exception_handler(lambda _loop, context: self.errors.append(_words(context)))

    def _make_task(self, _loop: asyncio.AbstractEventLoop, program: Any, **options: Any) -> asyncio.Task[Any]:
        task = _OrderedTask(program, loop=self, **options)
        self._tasks.append(task)
        return task

    def unheard(self) -> list[str]:
        """Of tasks whose end nobody has asked for. asyncio tells of those when they are collected: here none is."""
        ended = (task for task in self._tasks if task.done() and not task.cancelled())
        return [f"{task.get_name()}: {task.exception()!r}" for task in ended if getattr(task, "_log_traceback", False)]

    def true_time(self) -> float:
        """Of no machine."""
        return super().time()

    def time(self) -> float:
        """By the clock of whoever asks."""
        process = _process.get()
        return super().time() if process is None else process.machine.now(super().time())

    def call_soon(  # type: ignore[override]  # typeshed's own is generic in the arguments
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if context is None:  # an empty one is false
            context = contextvars.copy_context()
        process = context.get(_process)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        step = _Step(process, callback, args, context)
        step.handle = super().call_soon(step, context=context)
        return step.handle

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if context is None:
            context = contextvars.copy_context()
        process = context.get(_process)
        when += self.true_time() - self.time()  # `when` is by the clock of the one that asks
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        step = _Step(process, callback, args, context)
        step.handle = handle = super().call_at(when, step, context=context)
        step.due, step.lag_s = when, process.machine.behind_s(self.true_time())
        return handle

    def call_again(self, when: float, step: _Step, context: contextvars.Context) -> None:
        """A timer that came due too early by the clock of its machine; by no machine's clock."""
        super().call_at(when, step, context=context)


class _Step:
    """One callback of a process: run, held while the process is paused, or dropped."""

    __slots__ = ("_args", "_callback", "_context", "_process", "due", "handle", "lag_s")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self._process = process
        self._callback = callback
        self._args = args
        self._context = context
        #: By which it may be cancelled, also while it is held.
        self.handle: asyncio.Handle | None = None
        #: Of a timer: when, by no machine's clock, and how far its machine's was behind when that was set.
        self.due: float | None = None
        self.lag_s = 0.0

    def again(self) -> None:
        """Its machine was paused since it was set."""
        if self.due is None:
            _loop().call_soon(self, context=self._context)
            return
        lag_s = self._process.machine.lag_s
        self.due, self.lag_s = self.due + lag_s - self.lag_s, lag_s
        _loop().call_again(self.due, self, self._context)

    def __call__(self) -> None:
        if self._process.is_dead or (self.handle is not None and self.handle.cancelled()):
            return
        machine = self._process.machine
        if machine.is_paused:
            machine.hold(self)
        elif self.due is not None and self.lag_s != machine.lag_s:
            self.again()
        elif self._process.is_paused:
            self._process.hold(self, self._context)
        else:
            self._callback(*self._args)


def true_time() -> float:
    """By no machine's clock."""
    return _loop().true_time()


def _loop() -> SimLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop


def _words(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}: {error!r}" if error is not None else str(context.get("message"))


#: Worlds that are over, with all that was under way in them; see `run`.
_over: list[SimLoop] = []


def run(program: Coroutine[Any, Any, T]) -> T:
    """Lives until the program ends, and leaves everything else as it is at that moment, for good.

    So it is for processes of its own, which end by `os._exit`: what is left cannot be ended in order, since much of it
    is dead already.
    """
    loop = SimLoop()
    _over.append(loop)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(program)
    finally:
        asyncio.set_event_loop(None)
