"""Which process grows, and which only goes up and down."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tests.chaos.upkeep import BOUNDS, JUDGED_S, SAMPLES_MAX, WARM_UP_S, Life, Sample, flaws_of, quarters

MIB = 1 << 20
LONG_S = 3600


def life(
    memory: Callable[[float], float], descriptors: Callable[[float], float] = lambda at: 40, *, seconds: float = LONG_S
) -> Life:
    """MiB and descriptors by seconds since the start."""
    found = Life("node", "a", 7)
    for at in range(0, int(seconds), 4):
        found.add(Sample(at, int(memory(at) * MIB), 0, 0, int(descriptors(at)), 12))
    return found


RNG = random.Random(1)


@pytest.mark.parametrize(
    "memory",
    [
        lambda at: 40.0,
        lambda at: 40 + 10 * math.sin(at / 100),
        lambda at: 40 + RNG.uniform(0, 20),
        lambda at: min(80, 20 + at),  # it loads what it needs
        lambda at: 80 - at / 100,
        lambda at: 40 if at % 600 else 150,  # peaks
        lambda at: 40 + at / 3600 * 5,
    ],
)
def test_what_is_flat_passes(memory: Callable[[float], float]) -> None:
    assert flaws_of(life(memory)) == []


def test_what_grows_is_told() -> None:
    (found,) = flaws_of(life(lambda at: 40 + at / 60 + RNG.uniform(0, 10)))
    assert "anonymous_bytes grows" in found
    (found,) = flaws_of(life(lambda at: 40, lambda at: 40 + at / 30))
    assert "descriptors grows" in found


def test_a_ceiling_holds_for_the_shortest_life() -> None:
    ceiling = BOUNDS["node"]["anonymous_bytes"].ceiling / MIB
    (found,) = flaws_of(life(lambda at: ceiling + 1, seconds=10))
    assert "never to be above" in found


def test_short_lives_are_not_judged_for_growth() -> None:
    assert quarters([(at, 0.0) for at in range(int(WARM_UP_S + JUDGED_S))]) is None
    assert quarters([(at, 0.0) for at in range(int(WARM_UP_S + JUDGED_S) + 2)]) is not None
    assert flaws_of(life(lambda at: 40 + at / 4, seconds=WARM_UP_S + JUDGED_S)) == []


def test_samples_are_bounded_and_still_cover_the_whole_life() -> None:
    found = life(lambda at: 40, seconds=20 * LONG_S)
    assert len(found.samples) <= SAMPLES_MAX
    assert (found.samples[0].at, found.samples[-1].at > 19 * LONG_S) == (0, True)
