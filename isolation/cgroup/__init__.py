"""Control groups, version 1 and 2, behind the same few verbs: create, limit, attach, stats, freeze, kill, remove.

One parent group per node (`pilfer/HOST_ID` below the group that the node was started in) holds one group per
sandbox, so that one write freezes them all. File names are the kernel's (Documentation/admin-guide/cgroup-v1/ and
cgroup-v2.rst); all of it also runs on a directory of plain files, which is how it is tested without a kernel.

Attaching is never a write to `cgroup.procs`: that takes the kernel's global threadgroup semaphore, 6 ms when attaches
are rare. On v1 the child writes 0 to `tasks`; on v2 it is cloned into its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isolation.spec import Limits

#: Of cpu limits: the kernel's own default.
CPU_PERIOD_US = 100_000

#: PID 1 of a sandbox, which is ours and not the task's.
REAPER_PIDS = 1


@dataclass(frozen=True, slots=True)
class Stats:
    """What a group used since its sandbox got it."""

    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    #: Processes killed at a memory limit.
    oom_kills: int = 0


class Group(Protocol):
    """The group of one sandbox."""

    @property
    def into_fd(self) -> int:
        """Descriptor of the directory for CLONE_INTO_CGROUP, or -1 where the child attaches by `task_fds`."""

    @property
    def task_fds(self) -> Sequence[int]:
        """Descriptors to which the child writes 0."""

    def limit(self, limits: Limits) -> None:
        """Puts limits in force. Raises StepFailed: step `limit`, or `cgroup` where the group was removed."""

    def stats(self) -> Stats:
        """What was used; never raises: what cannot be read is 0."""

    def pids(self) -> list[int]:
        """Every process in the group; empty where there are no groups."""

    def is_frozen(self) -> bool:
        """Whether nothing in the group can move, and that is known: False of one that was removed, or cannot
        be looked at. Never raises."""

    def kill(self) -> None:
        """SIGKILL to every process in the group; a frozen one takes no further step (on version 1: dies when it is
        thawed). Never raises.

        Dying takes processor time, and fifty processes at a quota of a hundredth had not died after 8 s: so the
        quota is taken off, once nothing of them will run any more."""

    def release(self) -> None:
        """Gives the group back when its sandbox is gone; its removal may be left to the parent's `tidy`."""


class Parent(Protocol):
    """The node's group, and the groups of its sandboxes in it.

    Somebody else may remove them at any time when they are empty (an administrator, a tool that tidies up): no verb
    but `acquire` fails for that.
    """

    @property
    def version(self) -> int:
        """1, 2, or 0 where there are none."""

    @property
    def controllers(self) -> frozenset[str]:
        """Which of the kernel's controllers there are, by its names."""

    @property
    def can_freeze(self) -> bool:
        """Whether `freeze` does anything."""

    def acquire(self, name: str) -> Group:
        """A group with no process in it and counters at zero. Raises StepFailed."""

    def tidy(self) -> bool:
        """Removes what could not be removed before (EBUSY); True when nothing is left to do."""

    def freeze(self) -> None:
        """Freezes every sandbox; done when `is_frozen`."""

    def is_frozen(self) -> bool:
        """As of a group; never raises."""

    def thaw(self) -> None: ...

    def kill(self) -> None:
        """`Group.kill` of all of them."""

    def close(self) -> None:
        """Removes all groups, which must be empty by now, and the parent itself."""
