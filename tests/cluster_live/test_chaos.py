"""A short piece of chaos: that it runs, and finds nothing. At length: `make chaos`."""

from __future__ import annotations

import pytest

from tests.chaos.run import FLAGS, NODES, Chaos
from tests.support.lab import laboratory

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seed", [2])
def test_half_a_minute_of_chaos(seed: int) -> None:
    with laboratory(has_disks=True) as lab:
        lab.grow(*NODES, voters=len(NODES), flags=FLAGS)
        chaos = Chaos(lab, seed, print, has_operator=False)
        assert chaos.run(30.0) == []
        assert chaos.steps > 3
