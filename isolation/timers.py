"""Timers of the spawner: one timerfd on CLOCK_BOOTTIME under a heap of instants.

CLOCK_BOOTTIME, since a deadline must hold through a suspend of the machine.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections.abc import Callable

from isolation import kernel

#: Cancelled entries stay in the heap until this many are in it and they are more than half.
_COMPACT_AT = 256


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Timer:
    """One instant and what to do then."""

    __slots__ = ("at_ns", "is_cancelled", "on_due")

    def __init__(self, at_ns: int, on_due: Callable[[], None]) -> None:
        self.at_ns = at_ns
        self.on_due = on_due
        self.is_cancelled = False

    def __lt__(self, other: Timer) -> bool:
        return self.at_ns < other.at_ns


class Timers:
    def __init__(self) -> None:
        self.fd = kernel.timer_fd()
        self._heap: list[Timer] = []
        self._armed_ns = 0
        self._cancelled = 0

    def at(self, at_ns: int, on_due: Callable[[], None]) -> Timer:
        timer = Timer(max(1, at_ns), on_due)
        heapq.heappush(self._heap, timer)
        if self._armed_ns == 0 or timer.at_ns < self._armed_ns:
            self._arm()
        return timer

    def after(self, seconds: float, on_due: Callable[[], None]) -> Timer:
        return self.at(now_ns() + int(seconds * 1e9), on_due)

    def cancel(self, timer: Timer | None) -> None:
        if timer is None or timer.is_cancelled:
            return
        timer.is_cancelled = True
        self._cancelled += 1
        if self._cancelled >= _COMPACT_AT and self._cancelled * 2 > len(self._heap):
            self._heap = [t for t in self._heap if not t.is_cancelled]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def run_due(self) -> None:
        """Runs what is due; called when `fd` is readable, or at any other time."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
        now = now_ns()
        while self._heap and (self._heap[0].at_ns <= now or self._heap[0].is_cancelled):
            timer = heapq.heappop(self._heap)
            if timer.is_cancelled:
                self._cancelled = max(0, self._cancelled - 1)
                continue
            timer.is_cancelled = True  # spent: a later cancel of it counts nothing
            timer.on_due()
        self._arm()

    def _arm(self) -> None:
        self._armed_ns = self._heap[0].at_ns if self._heap else 0
        kernel.arm_timer(self.fd, self._armed_ns)
