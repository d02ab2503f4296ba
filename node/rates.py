"""Two small measures: a smoothed value and a rate of events."""

from __future__ import annotations

from collections import deque


class Smoothed:
    """An exponentially weighted mean: each new value counts for a fifth."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, value: float) -> None:
        self.value = value if self.value == 0.0 else 0.8 * self.value + 0.2 * value


class Rate:
    """Events per second over the last second, from at most 1,000 of them."""

    WINDOW_S = 1.0

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1000)

    def add(self, now: float) -> None:
        self._times.append(now)

    def per_s(self, now: float) -> float:
        while self._times and self._times[0] < now - self.WINDOW_S:
            self._times.popleft()
        if len(self._times) == self._times.maxlen:
            # The window holds less than its second: the true span counts.
            return len(self._times) / max(1e-3, now - self._times[0])
        return len(self._times) / self.WINDOW_S
