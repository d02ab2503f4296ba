"""The load of a chaos run (being built; the signatures stand)."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.lab import Lab

#: Flags that every node of the lab is to be started with, so that an hour of this load stays bounded.
FLAGS: tuple[str, ...] = (
    "--log-limit", "2M", "--scratch-limit", "32M", "--retention-age", "15m", "--retention-count", "3000",
    "--compaction-interval", "20s",
)  # fmt: skip


class Load:
    """A mixed crowd of tasks, kept up by threads of its own."""

    def __init__(self, lab: Lab, rng: random.Random, tell: Callable[[str], None]) -> None:
        self.lab = lab
        #: A node's disk was full at some time: tasks may have failed to write.
        self.disk_was_full = False

    def start(self) -> None:
        """Begins, in threads."""

    def pause(self) -> None:
        """No new work until resume; returns when every call under way has been answered or has failed."""

    def resume(self) -> None:
        """Goes on."""

    def stop(self) -> None:
        """No new work for good; its submitting threads end. What looks after open tasks goes on until `finish`."""

    @property
    def acknowledged(self) -> set[str]:
        """Ids of every task whose submit was acknowledged."""
        return set()

    @property
    def open(self) -> int:
        """How many acknowledged tasks are not known to have ended."""
        return 0
