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
from tests.simulation import clock
from tests.simulation.loop import true_time
from tests.support.fake_store import Change

if TYPE_CHECKING:
    from tests.simulation.checks import Checks
    from tests.simulation.host import Host

RULE = "ForgottenOnlyWhenDue"
#: When something ended is noted in whole seconds.
ROUNDING_S = 2.0


class Forgetting:
    """Watches etcd beside the checks."""

    def __init__(self, checks: Checks, hosts: Sequence[Host], limits: Callable[[], Limits | None]) -> None:
        """hosts: may grow."""
        self._checks = checks
        self._hosts = hosts
        self._limits = limits
        #: Of finished tasks that are there: since when, and when they ended by their own word, which may be written
        #: much later (etcd is full, or cannot be reached).
        self._ended_at: dict[str, tuple[float, float]] = {}
        self._clocks_are_right = True

    # As etcd's listener, after the checks

    def changed(self, _change: Change) -> None:
        self._clocks_are_right = self._clocks_are_right and not any(host.wall_offset[0] for host in self._hosts)
        forgotten: list[str] = []
        for task_id, before in self._checks.written():
            after = self._checks.history.find(task_id)
            if after is not None and after.status.is_terminal:
                assert after.finished_at is not None, "its terminal key tells it"
                self._ended_at.setdefault(task_id, (true_time(), after.finished_at - clock.EPOCH))
            elif after is None and _is_terminal(before):
                forgotten.append(task_id)
        # Oldest first, as they are beyond the number.
        for task_id in sorted(forgotten, key=lambda task_id: self._ended_at[task_id]):
            ended = len(self._ended_at)
            there_s, age_s = (true_time() - at for at in self._ended_at.pop(task_id))
            self._judge(task_id, ended, there_s, age_s)

    def _judge(self, task_id: str, ended: int, there_s: float, age_s: float) -> None:
        """ended: how many there were, with it. there_s: since its end was written; age_s: since its end."""
        limits = self._limits()
        if limits is None:
            self._checks.add(RULE, task_id, "nothing is to be forgotten")
        elif there_s < limits.keep_s:
            words = f"forgotten {there_s:g} s after its end was written, to be kept for {limits.keep_s:g} s"
            self._checks.add(RULE, task_id, words)
        elif ended <= limits.max_count and age_s < limits.max_age_s - ROUNDING_S and self._clocks_are_right:
            words = f"forgotten {age_s:g} s after its end, one of {ended}: {limits.max_count} may stay"
            self._checks.add(RULE, task_id, words)


def _is_terminal(task: Task | None) -> bool:
    return task is not None and task.status.is_terminal
