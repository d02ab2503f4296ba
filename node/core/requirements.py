"""Reservations: what tasks need against what a node lends.

Theory: a node never promises more than it has. What is free is its capacity less the declared requirements of every
task that counts: claims in flight (also those whose outcome is unknown), claims won and not yet started, what runs,
what is frozen, what was adopted. A reservation ends when the task's cgroup is empty, not at its exit.

All arithmetic is in integers. CPU is counted in thousandths, rounded up for what is asked and down for what is lent:
sums of floats drift (ten times 0.1 is not 1) and could oversubscribe a node by a hair, or leave its last CPU idle.
Memory counts only where it is declared; a task without it is bounded by the node's capacity and reserves nothing.
Pids, disk rates and scratch are limits of the task alone; nodes do not lend them. But a node may be no place for a
task all the same: where its scratch is too small for what the task asks, or a demanded limit is not enforced (`Terms`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from node.core.model import Capacity, Requirements

_MILLI = 1000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True, slots=True)
class Reservation:
    """So much CPU and memory: of a task, of several, or what is left of a node (which may then be below zero)."""

    milli_cpu: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Reservation) -> Reservation:
        return Reservation(self.milli_cpu + other.milli_cpu, self.memory_bytes + other.memory_bytes)

    def __sub__(self, other: Reservation) -> Reservation:
        return Reservation(self.milli_cpu - other.milli_cpu, self.memory_bytes - other.memory_bytes)

    def holds(self, other: Reservation) -> bool:
        """Whether `other` has room in this. What asks for none of a resource never waits for it, even where
        that resource is overdrawn."""
        return (other.milli_cpu <= 0 or other.milli_cpu <= self.milli_cpu) and (
            other.memory_bytes <= 0 or other.memory_bytes <= self.memory_bytes
        )

    def times(self, other: Reservation) -> int:
        """How many of `other` have room in this together; a very large number where it needs nothing."""
        cpu = max(0, self.milli_cpu) // other.milli_cpu if other.milli_cpu > 0 else sys.maxsize
        memory = max(0, self.memory_bytes) // other.memory_bytes if other.memory_bytes > 0 else sys.maxsize
        return min(cpu, memory)

    def at_least_nothing(self) -> Reservation:
        """The same without what is overdrawn."""
        return Reservation(max(0, self.milli_cpu), max(0, self.memory_bytes))

    def common(self, other: Reservation) -> Reservation:
        """The smaller amount of each resource."""
        return Reservation(min(self.milli_cpu, other.milli_cpu), min(self.memory_bytes, other.memory_bytes))

    def left_after_holding(self, other: Reservation) -> Reservation:
        """What may be given away while everything free is saved up for `other`."""
        return (self - other).at_least_nothing()


def reservation(requirements: Requirements) -> Reservation:
    """What one task takes. Any positive CPU is at least a thousandth."""
    # round() first: 2.3 * 1000 is 2299.9999999999995, and 1.001 * 1000 must not become 1002.
    return Reservation(math.ceil(round(requirements.cpu * _MILLI, 6)), requirements.memory_bytes or 0)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a task demands of a node beside room. Nothing of it is used up by the task."""

    scratch_bytes: int = 0
    #: Limits that must be enforced.
    limits: frozenset[str] = frozenset()

    def are_met_by(self, capacity: Capacity) -> bool:
        """An amount of scratch that is not known is enough: the node itself will tell."""
        has_scratch = capacity.scratch_bytes is None or self.scratch_bytes <= capacity.scratch_bytes
        return has_scratch and self.limits <= capacity.limits


NO_TERMS = Terms()


def terms(requirements: Requirements) -> Terms:
    """What a task demands beside room. Memory counts also where none is declared: then the node's own is its bound."""
    if requirements.scratch_bytes is None and not requirements.require_limits:
        return NO_TERMS
    limits = {"cpu", "memory", "pids"} if requirements.require_limits else set()
    has_rates = requirements.io_read_bytes_per_s is not None or requirements.io_write_bytes_per_s is not None
    if requirements.require_limits and has_rates:
        limits.add("io")
    return Terms(requirements.scratch_bytes or 0, frozenset(limits))


def lent(capacity: Capacity) -> Reservation:
    """What a node lends, all in all."""
    return Reservation(math.floor(round(capacity.cpu * _MILLI, 6)), capacity.memory_bytes)


def free_capacity(capacity: Capacity, taken: Iterable[Requirements]) -> Reservation:
    """Capacity less everything that counts (see the module); below zero where more was adopted than fits."""
    left = lent(capacity)
    for requirements in taken:
        left = left - reservation(requirements)
    return left


def fits(requirements: Requirements, free: Reservation) -> bool:
    return free.holds(reservation(requirements))


def why_not(requirements: Requirements, capacity: Capacity) -> list[str]:
    """Why a node with this capacity can never hold it, in words for people; empty when it can."""
    needs, whole = reservation(requirements), lent(capacity)
    reasons = []
    if needs.milli_cpu > whole.milli_cpu:
        reasons.append(f"needs {needs.milli_cpu / _MILLI:g} CPUs, the node lends {whole.milli_cpu / _MILLI:g}")
    if needs.memory_bytes > whole.memory_bytes:
        reasons.append(f"needs {_size(needs.memory_bytes)} of memory, the node lends {_size(whole.memory_bytes)}")
    return reasons


def terms_not_met(requirements: Requirements, capacity: Capacity) -> list[str]:
    """Why a node may not run it although it is large enough, in words for people; empty when it may."""
    demanded = terms(requirements)
    reasons = []
    if capacity.scratch_bytes is not None and demanded.scratch_bytes > capacity.scratch_bytes:
        has, asks = _size(capacity.scratch_bytes), _size(demanded.scratch_bytes)
        reasons.append(f"needs {asks} of scratch, the node allows {has} to each task")
    missing = sorted(demanded.limits - capacity.limits)
    if missing:
        reasons.append(f"demands limits on {_and(missing)}, which the node cannot enforce")
    return reasons


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


class Ledger:
    """Who has reserved what on this node. `free` is always the capacity less the sum of what is booked."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._whole = lent(capacity)
        self._free = self._whole
        #: All and only tasks that count against the capacity (see the module).
        self._booked: dict[str, Reservation] = {}

    def __len__(self) -> int:
        return len(self._booked)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._booked

    @property
    def free(self) -> Reservation:
        return self._free

    @property
    def reserved(self) -> Reservation:
        return self._whole - self._free

    @property
    def load(self) -> float:
        """The scarcer resource's reserved share, 0 to 1 (more only where adopted tasks exceed the capacity)."""
        taken = self.reserved
        cpu = taken.milli_cpu / self._whole.milli_cpu if self._whole.milli_cpu > 0 else 1.0
        memory = taken.memory_bytes / self._whole.memory_bytes if self._whole.memory_bytes > 0 else 0.0
        return max(0.0, cpu, memory)

    def take(self, task_id: str, requirements: Requirements) -> bool:
        """Books a task if it has room. Booked already: True, and nothing changes."""
        if task_id in self._booked:
            return True
        needs = reservation(requirements)
        if not self._free.holds(needs):
            return False
        self._book(task_id, needs)
        return True

    def adopt(self, task_id: str, requirements: Requirements) -> None:
        """Books what is here whether or not it has room: it takes the resources anyway."""
        if task_id not in self._booked:
            self._book(task_id, reservation(requirements))

    def release(self, task_id: str) -> None:
        """Gives back what the task had; nothing if it had none."""
        had = self._booked.pop(task_id, None)
        if had is not None:
            self._free = self._free + had

    def _book(self, task_id: str, needs: Reservation) -> None:
        self._booked[task_id] = needs
        self._free = self._free - needs


def _size(size_bytes: int) -> str:
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if unit else f"{size_bytes} B"
