"""Random crowds on the fake etcd in virtual time: record and exactly one index key agree at every revision, whatever
clients, nodes and losses do; and whatever was told is what was written. One seed again: SEED=17."""

from __future__ import annotations

import os

import pytest

from tests.support.fake_etcd import FakeEtcd
from tests.support.turmoil import Turmoil
from tests.support.virtual_time import run_virtual

SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else list(range(int(os.environ.get("SEEDS", "25"))))


async def crowd(seed: int) -> Turmoil:
    async with FakeEtcd() as etcd:
        turmoil = Turmoil(seed, etcd)
        jitter = Turmoil(seed + 1, etcd).random
        etcd.latency = lambda: jitter.choice([0.0, 0.0, 0.002, 0.03])
        await turmoil.run(steps=50)
        await turmoil.check()
        return turmoil


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_the_crowd_does(seed: int) -> None:
    turmoil = run_virtual(crowd(seed))
    assert turmoil.written, "nothing happened"


def test_a_seed_repeats_its_course() -> None:
    first, second = run_virtual(crowd(3)), run_virtual(crowd(3))
    assert [task.id for task in first.written] == [task.id for task in second.written]
    assert [(c.task.id, c.fence_revision) for c in first.won] == [(c.task.id, c.fence_revision) for c in second.won]


def test_the_crowd_does_everything() -> None:
    """Else the checkers above would have nothing to see."""
    moves: set[str] = set()
    for seed in range(8):
        turmoil = run_virtual(crowd(seed))
        moves |= {task.status.value for task in turmoil.written}
        moves |= {f"attempt {task.attempt}" for task in turmoil.written if task.attempt > 1}
    assert moves >= {"queued", "running", "complete", "canceled", "failed", "attempt 2"}
