"""The checks of a chaos run (being built; the signatures stand)."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.load import Load
from tests.support.lab import Lab


class Checks:
    """Watches while it goes on, and judges at the end."""

    def __init__(self, lab: Lab, load: Load, tell: Callable[[str], None]) -> None:
        self.lab = lab
        self.load = load

    def start(self) -> None:
        """Follows etcd's history and the processes, from threads and a process of its own. To be called by the thread
        that made the lab, when it has grown."""

    def new_epoch(self, reason: str) -> None:
        """An operator recovered the cluster: what was acknowledged before load.pause() must still be there, all else
        begins anew. To be called when the recovered cluster has a leader, before load.resume()."""

    def flaws_so_far(self) -> list[str]:
        """What has been found by now: a run may end early on it."""
        return []

    def finish(self) -> list[str]:
        """Flaws. After load.stop(), healing, and when all tasks have ended; before the lab ends. Stops watching."""
        return []

    def summary(self) -> str:
        """One line: what was seen."""
        return ""
