"""What ended may be forgotten, but neither too early nor too much of it.

The history checker takes any deletion of a finished record. Here it is asked whether it was due: see
`node/core/retention.py`, which decides it.

* ForgottenOnlyWhenDue: nothing is forgotten where there are no limits, nothing within `keep_s` of its end, and nothing
  that is neither beyond the number nor older than the age. The age is told by wall clocks, so that it is asked for only
  while all of them have always been right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from node.core.model import Task
from node.core.retention import Limits
from tests.simulation.loop import true_time
from tests.support.fake_store import Change

if TYPE_CHECKING:
    from tests.simulation.checks import Checks
    from tests.simulation.host import Host

RULE = "ForgottenOnlyWhenDue"
#: When something ended is noted in whole seconds, by a node that writes it a moment later.
ROUNDING_S = 2.0


class Forgetting:
    """Watches etcd beside the checks."""

    def __init__(self, checks: Checks, hosts: Sequence[Host], limits: Callable[[], Limits | None]) -> None:
        """hosts: may grow."""
        self._checks = checks
        self._hosts = hosts
        self._limits = limits
        #: Of finished tasks that are there: since when.
        self._ended_at: dict[str, float] = {}
        self._clocks_are_right = True

    # As etcd's listener, after the checks

    def changed(self, _change: Change) -> None:
        self._clocks_are_right = self._clocks_are_right and not any(host.wall_offset[0] for host in self._hosts)
        forgotten: list[str] = []
        for task_id, before in self._checks.written():
            after = self._checks.history.find(task_id)
            if after is not None and after.status.is_terminal:
                self._ended_at.setdefault(task_id, true_time())
            elif after is None and _is_terminal(before):
                forgotten.append(task_id)
        # Oldest first, as they are beyond the number.
        for task_id in sorted(forgotten, key=lambda task_id: self._ended_at[task_id]):
            self._judge(task_id, len(self._ended_at), true_time() - self._ended_at.pop(task_id))

    def _judge(self, task_id: str, ended: int, age_s: float) -> None:
        """ended: how many there were, with it."""
        limits = self._limits()
        if limits is None:
            self._checks.add(RULE, task_id, "nothing is to be forgotten")
        elif age_s < limits.keep_s:
            self._checks.add(RULE, task_id, f"forgotten {age_s:g} s after its end, to be kept for {limits.keep_s:g} s")
        elif ended <= limits.max_count and age_s < limits.max_age_s - ROUNDING_S and self._clocks_are_right:
            words = f"forgotten {age_s:g} s after its end, one of {ended}: {limits.max_count} may stay"
            self._checks.add(RULE, task_id, words)


def _is_terminal(task: Task | None) -> bool:
    return task is not None and task.status.is_terminal
