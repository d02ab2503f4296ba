"""The checkers, by the names of the invariants; asked after every step of the world.

* NoTwoLiveRuns: no two runs of one task move at the same moment (design, section 8, invariant 4).
* NeverAboveCapacity: what moves on a host fits into what it lends (7).
* CancelIsObeyed: a canceled task's processes are gone within its grace and 2 s, unless its host was disturbed (5).
* everything of `tests/support/history.py`, at every revision of etcd (1, 2, 3, 6, 10).
* EventuallyTerminal: once the faults have stopped every task ends in bounded time (7).
* NothingBreaks: no task of a node ends with an exception that nobody expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.simulation.sandboxes import Command
from tests.support.fake_store import Change
from tests.support.history import Flaw, History

#: Sums of CPU shares are of floats.
_ROUNDING = 1e-6


class Checks:
    """Collects flaws; `tell` is given each as it is found."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.history = History()
        self._tell = tell
        self._told = 0
        self.flaws: list[str] = []
        #: What moves, by task.
        self._moving: dict[str, list[Command]] = {}
        self._cpu: dict[str, float] = {}
        self.capacity: dict[str, float] = {}
        self.runs = 0

    # As the sandboxes' watcher

    def moves(self, command: Command) -> None:
        self.runs += 1
        moving = self._moving.setdefault(command.task_id, [])
        moving.append(command)
        if len(moving) > 1:
            where = ", ".join(f"attempt {one.attempt} on {one.host_id}" for one in moving)
            self.add("NoTwoLiveRuns", command.task_id, where)
        cpu = self._cpu[command.host_id] = self._cpu.get(command.host_id, 0.0) + command.cpu
        if cpu > self.capacity[command.host_id] + _ROUNDING:
            self.add("NeverAboveCapacity", command.host_id, f"{cpu:g} CPUs of {self.capacity[command.host_id]:g}")

    def stops(self, command: Command) -> None:
        self._moving[command.task_id].remove(command)
        self._cpu[command.host_id] -= command.cpu

    def is_moving(self, task_id: str) -> list[Command]:
        return list(self._moving.get(task_id, []))

    # As etcd's listener

    def changed(self, change: Change) -> None:
        self.history.apply(change.revision, change.events)
        for flaw in self.history.flaws[self._told :]:
            self._add(str(flaw))
        self._told = len(self.history.flaws)

    # The end

    def finish(self, submitted: Iterable[str], errors: Iterable[str]) -> None:
        for flaw in self.history.finish(submitted, expect_ended=True)[self._told :]:
            self._add(str(flaw))
        for error in errors:
            self.add("NothingBreaks", "a node", error)

    def add(self, rule: str, what: str, words: str) -> None:
        self._add(str(Flaw(rule, self.history.revision, what, words)))

    def _add(self, flaw: str) -> None:
        self.flaws.append(flaw)
        self._tell(f"FLAW: {flaw}")
