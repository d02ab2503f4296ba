"""The fence: no sandbox makes progress at or after the deadline that the node last gave.

    OPEN --deadline passes--> FROZEN --later deadline--> OPEN (thawed)
    any  --lease known lost--> LOST (everything killed; nothing starts) --later deadline--> OPEN

Freezing is one write to the parent group. What is not frozen 100 ms later is killed: a process that sits in the
kernel would go on when it comes back. Where nothing can be frozen, everything is killed at the deadline. Killing a
frozen process on version 1 takes effect when it is thawed, before its next instruction; so: signal all, then thaw.

The shared page (`_sandbox.set_deadline`) is written before anything is thawed: PID 1 of each sandbox reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from isolation import _sandbox
from isolation.cgroup import Parent
from isolation.sandbox import FENCE
from isolation.timers import Timer, Timers, now_ns

FREEZE_PATIENCE_S = 0.1


class State(Enum):
    OPEN = "open"
    FROZEN = "frozen"
    LOST = "lost"


class Fence:
    def __init__(
        self,
        parent: Parent,
        timers: Timers,
        *,
        kill_all: Callable[[str], None],
        kill_unfrozen: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        """`kill_all` signals every process of every sandbox, for the given reason; `kill_unfrozen` those of
        sandboxes that still move.
        """
        self._parent = parent
        self._timers = timers
        self._kill_all = kill_all
        self._kill_unfrozen = kill_unfrozen
        self._log = log
        self._deadline_ns: int | None = None
        self._timer: Timer | None = None
        self.state = State.OPEN
        _sandbox.set_deadline(0)

    def may_start(self) -> bool:
        return self.state is State.OPEN and (self._deadline_ns is None or now_ns() < self._deadline_ns)

    def set_deadline(self, boottime_s: float) -> None:
        self._deadline_ns = int(boottime_s * 1e9)
        _sandbox.set_deadline(self._deadline_ns)
        self._timers.cancel(self._timer)
        self._timer = None
        if self._deadline_ns <= now_ns():
            self._reached()
            return
        self._timer = self._timers.at(self._deadline_ns, self._reached)
        if self.state is State.FROZEN:
            self._log("thawed: a later deadline came")
            self._parent.thaw()
        self.state = State.OPEN

    def _reached(self) -> None:
        if self.state is not State.OPEN:
            return
        self.state = State.FROZEN
        if not self._parent.can_freeze:
            self._log("deadline reached: killing every sandbox, since this host cannot freeze")
            self._kill_all(FENCE)
            return
        self._log("deadline reached: freezing every sandbox")
        self._parent.freeze()
        self._timers.after(FREEZE_PATIENCE_S, self._look)

    def _look(self) -> None:
        if self.state is State.FROZEN and not self._parent.is_frozen():
            self._log("not everything froze: killing what still moves")
            self._kill_unfrozen()

    def lose(self) -> None:
        """The lease is known to be lost."""
        self._log("fenced: killing every sandbox")
        self._timers.cancel(self._timer)
        self._timer = None
        self.state = State.LOST
        self.kill_frozen(FENCE)

    def kill_frozen(self, reason: str) -> None:
        """Kills everything, frozen or not, so that nothing takes another step in between."""
        if self._parent.can_freeze:
            self._parent.freeze()
        self._kill_all(reason)
        if self._parent.can_freeze:
            self._parent.thaw()
