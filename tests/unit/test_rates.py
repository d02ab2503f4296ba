"""Measures of the recent past: they follow it, forget it, and do not take silence for speed."""

from __future__ import annotations

import pytest

from node.core.requirements import Reservation
from node.running.rates import Rate, Smoothed, Turnover

ONE = Reservation(1000, 10)


def turnover(count: int, every_s: float, *, start_s: float = 100.0) -> tuple[Turnover, float]:
    """So many ends at this distance, and the time of the last."""
    made = Turnover()
    for number in range(count):
        made.add(ONE, start_s + number * every_s)
    return made, start_s + (count - 1) * every_s


@pytest.mark.parametrize("rate", [20, 100, 400, 3000])
def test_a_steady_rate_is_found(rate: int) -> None:
    made, now = turnover(rate * 2, 1 / rate)
    assert made.per_s(now) == pytest.approx(rate, rel=0.15)


def test_nothing_is_known_at_first_and_one_end_is_not_a_rate() -> None:
    made = Turnover()
    assert made.per_s(5.0) == 0
    assert made.smallest == Reservation()
    made.add(ONE, 5.0)
    assert made.per_s(5.0) == pytest.approx(2)


def test_silence_ends_the_rate_long_before_the_ends_are_forgotten() -> None:
    made, now = turnover(400, 0.0025)
    assert made.per_s(now + 0.09) > 300
    assert made.per_s(now + 0.11) == 0


def test_a_moments_burst_counts_for_half_a_second() -> None:
    """64 tasks that end in one moment, and then none for long, are no 64 in each moment."""
    made, now = turnover(64, 0.0001)
    assert made.per_s(now) == pytest.approx(128)


def test_smallest_is_of_each_resource_and_of_those_that_count_still() -> None:
    made = Turnover()
    made.add(Reservation(500, 100), 1.0)
    made.add(Reservation(1000, 10), 1.4)
    assert made.smallest == Reservation(500, 10)
    made.add(Reservation(2000, 20), 1.6)
    made.per_s(1.6)
    assert made.smallest == Reservation(1000, 10)


def test_rate_of_events_forgets_after_its_window() -> None:
    rate = Rate()
    for number in range(50):
        rate.add(10 + number / 50)
    assert rate.per_s(11) == pytest.approx(50, abs=1)
    assert rate.per_s(12.5) == 0


def test_smoothed_begins_with_the_first_value_and_follows() -> None:
    value = Smoothed()
    value.add(10)
    assert value.value == 10
    for _ in range(30):
        value.add(20)
    assert value.value == pytest.approx(20, abs=0.1)
