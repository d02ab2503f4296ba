"""Three small measures: a smoothed value, a rate of events, and how fast reservations come free."""

from __future__ import annotations

from collections import Counter, deque

from node.core.requirements import Reservation


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


class Turnover:
    """Reservations that came free lately: how many a second, and how small the smallest was.

    The rate follows a change within half a second, and falls to nothing when nothing has ended for a moment: a rate
    that was must not be taken for one that is.
    """

    WINDOW_S = 0.5
    SILENCE_S = 0.1
    ENDS_MAX = 1000

    def __init__(self) -> None:
        self._ends: deque[tuple[float, Reservation]] = deque()
        self._kinds: Counter[Reservation] = Counter()

    def add(self, reserved: Reservation, now: float) -> None:
        """A reservation came free."""
        self._ends.append((now, reserved))
        self._kinds[reserved] += 1
        if len(self._ends) > self.ENDS_MAX:
            self._forget_oldest()

    def per_s(self, now: float) -> float:
        """0 when none came free within SILENCE_S."""
        while self._ends and self._ends[0][0] < now - self.WINDOW_S:
            self._forget_oldest()
        if not self._ends or self._ends[-1][0] < now - self.SILENCE_S:
            return 0.0
        # Where so many ended that not all are known, the true span counts.
        is_full = len(self._ends) == self.ENDS_MAX
        return len(self._ends) / (max(1e-3, now - self._ends[0][0]) if is_full else self.WINDOW_S)

    @property
    def smallest(self) -> Reservation:
        """The least that one of them had, of each resource; nothing where none is known."""
        kinds = iter(self._kinds)
        least = next(kinds, Reservation())
        for kind in kinds:
            least = least.common(kind)
        return least

    def _forget_oldest(self) -> None:
        _, reserved = self._ends.popleft()
        self._kinds[reserved] -= 1
        if not self._kinds[reserved]:
            del self._kinds[reserved]
