"""Breadth-first search through every state of a model, so that a violation comes with a shortest interleaving."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.model.moves import Model
from tests.model.state import TERMINAL, State, Violation

STATES_MAX = 10_000_000


@dataclass(frozen=True)
class Found:
    states: int
    #: What was broken, and the steps that lead there; None: the rules hold.
    violation: str | None = None
    trace: tuple[str, ...] = ()

    @property
    def breaks(self) -> int | None:
        """The number of the invariant that was broken."""
        return int(self.violation.partition(":")[0]) if self.violation is not None else None


class _Graph:
    """The states found so far: how each was reached first, and from where it can be reached without a fault."""

    def __init__(self, start: State) -> None:
        self.ids = {start: 0}
        self.parents: list[tuple[int | None, str]] = [(None, "")]
        self.back: list[list[int]] = [[]]
        self.frontier = deque([start])
        self.ended: list[int] = []

    def add(self, state: State, parent: int, label: str, *, is_fault: bool) -> None:
        number = self.ids.setdefault(state, len(self.ids))
        if number == len(self.parents):
            self.parents.append((parent, label))
            self.back.append([])
            self.frontier.append(state)
        if not is_fault:
            self.back[number].append(parent)

    def trace(self, number: int | None, last: tuple[str, ...] = ()) -> tuple[str, ...]:
        labels = list(last)
        while number is not None and self.parents[number][0] is not None:
            number, label = self.parents[number]
            labels.append(label)
        return tuple(reversed(labels))

    def can_end(self) -> set[int]:
        """States from which, with faults stopped, a terminal one can be reached."""
        reached, todo = set(self.ended), deque(self.ended)
        while todo:
            for number in self.back[todo.popleft()]:
                if number not in reached:
                    reached.add(number)
                    todo.append(number)
        return reached


def explore(model: Model) -> Found:
    """Visits all states; safety at every step, liveness on the whole graph."""
    graph = _Graph(model.start)
    while graph.frontier:
        if len(graph.ids) > STATES_MAX:
            raise RuntimeError(f"more than {STATES_MAX} states: nothing is proved")
        state = graph.frontier.popleft()
        number, label = graph.ids[state], ""
        if state.record and state.record.status in TERMINAL:
            graph.ended.append(number)
        if model.is_settled(state):
            continue
        try:
            for label, is_fault, after in model.steps(state):
                model.check_invariants(state, after)
                graph.add(model.tidied(after), number, label, is_fault=is_fault)
        except Violation as violation:
            return Found(len(graph.ids), str(violation), graph.trace(number, (violation.label or label,)))
    alive = graph.can_end()
    endless = model.scenario.endless
    for state, number in graph.ids.items():  # in the order of discovery
        # An endless task need not end before a cancel is there.
        if number not in alive and not (endless and state.cancel != "ack"):
            what = " (cancel never carried out)" if endless else ""
            return Found(len(graph.ids), f"7: the task can never end{what}", graph.trace(number))
    return Found(len(graph.ids))
