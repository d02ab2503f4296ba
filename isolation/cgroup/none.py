"""Where a host has no control groups for us: nothing is limited, nothing can be frozen, nothing is counted."""

from __future__ import annotations

from collections.abc import Sequence

from isolation.cgroup import Stats
from isolation.spec import Limits


class NoGroup:
    into_fd = -1
    task_fds: Sequence[int] = ()

    def limit(self, limits: Limits) -> None:
        """Nothing to do: `HostReport.not_enforced` says so."""

    def stats(self) -> Stats:
        return Stats()

    def pids(self) -> list[int]:
        return []

    def is_frozen(self) -> bool:
        return False

    def release(self) -> None:
        """Nothing was made."""


class NoParent:
    version = 0
    can_freeze = False

    def acquire(self, name: str) -> NoGroup:  # noqa: ARG002  (the verb's signature)
        return NoGroup()

    def tidy(self) -> bool:
        return True

    def freeze(self) -> None:
        """`can_freeze` is false: the spawner kills instead."""

    def is_frozen(self) -> bool:
        return False

    def thaw(self) -> None:
        """Nothing was frozen."""

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        """Nothing was made."""
