"""A short piece of chaos: that it runs, and finds nothing. At length: `make chaos`."""

from __future__ import annotations

import pytest

from tests.cluster_live.chaos import NODES, VOTERS, Chaos
from tests.support.lab import laboratory

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.mark.parametrize("seed", [2])
def test_half_a_minute_of_chaos(seed: int) -> None:
    with laboratory() as lab:
        lab.grow(*NODES, voters=VOTERS)
        chaos = Chaos(lab, seed, print)
        chaos.run(30.0)
        assert chaos.steps > 3
