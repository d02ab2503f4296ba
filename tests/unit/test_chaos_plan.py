"""What a seed of chaos says, before anything is done."""

from __future__ import annotations

import random
from collections import Counter

from tests.chaos import faults, members, recovery
from tests.chaos.run import LASTS_S, NODES, PAUSES_S, draw, draw_spared

STEPS = [draw(17, number) for number in range(1000)]


def test_a_seed_draws_the_same_steps_again() -> None:
    assert [draw(17, number) for number in range(1000)] == STEPS
    assert [draw(18, number).kind for number in range(1000)] != [step.kind for step in STEPS]


def test_every_kind_is_drawn_and_no_other() -> None:
    drawn = Counter((step.is_errand, step.kind) for step in STEPS)
    kinds = {(False, kind) for kind in faults.WEIGHTS} | {(True, kind) for kind in members.WEIGHTS}
    assert set(drawn) == kinds
    assert {step.lasts_s for step in STEPS} == set(LASTS_S)
    assert {step.pause_s for step in STEPS} == set(PAUSES_S)
    assert 0.3 < sum(step.is_alone for step in STEPS) / len(STEPS) < 0.5


def test_steps_have_details_of_their_own() -> None:
    assert len({random.Random(step.seed).random() for step in STEPS}) == len(STEPS)


def test_a_seed_spares_one_machine_or_none() -> None:
    drawn = Counter(draw_spared(seed) for seed in range(1000))
    assert set(drawn) == {"", *NODES}
    assert 100 < drawn[""] < 300
    assert draw_spared(17) == draw_spared(17)


def test_an_operator_does_everything_in_every_ten_minutes() -> None:
    for seed in range(100):
        planned = recovery.schedule(random.Random(seed), 3600.0)
        assert planned == sorted(planned)
        for period in range(6):
            begin = period * recovery.PERIOD_S
            kinds = [kind for at, kind in planned if begin <= at < begin + recovery.PERIOD_S]
            assert sorted(kinds) == sorted(recovery.KINDS)


def test_a_short_run_has_no_more_than_fits() -> None:
    for seed in range(100):
        assert all(at < 150.0 for at, _ in recovery.schedule(random.Random(seed), 150.0))
        assert recovery.schedule(random.Random(seed), 10.0) == []
