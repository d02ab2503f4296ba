"""Some hundred tasks, a third of them hostile, leave the machine as it was; `make hostile` runs ten thousand."""

from __future__ import annotations

import pytest

from tests.hostile.crowd import HOSTILE, draw
from tests.hostile.ten_thousand import run

pytestmark = [pytest.mark.isolation, pytest.mark.node]

COUNT = 300


@pytest.mark.long  # its outcomes are those of a machine that has time: `make hostile`, `pytest -m long`
@pytest.mark.timeout(600)
def test_a_crowd_leaves_the_machine_as_it_was() -> None:
    assert run(COUNT, seed=1, say=print) == []


def test_a_third_is_hostile_and_every_kind_comes() -> None:
    crowd = draw(3000, 1, {})
    hostile = [member for member in crowd if member.is_hostile]
    assert 900 < len(hostile) < 1100
    assert {member.kind for member in hostile} == {kind.name for kind in HOSTILE}
    assert [member.kind for member in draw(3000, 1, {})] == [member.kind for member in crowd]
