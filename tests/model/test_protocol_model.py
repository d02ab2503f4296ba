"""The protocol's rules hold in every state that they allow, and each of them is needed.

A failure prints the shortest interleaving; `python -m tests.model NAME` prints it again.
"""

from __future__ import annotations

import pytest

from etcd.transitions import TABLE, Guard, Name
from tests.model.explore import explore
from tests.model.flaws import FLAWS, SECOND_LINES, without
from tests.model.guards import GUARDS
from tests.model.moves import Model
from tests.model.state import ALL, DEEP, SCENARIOS, Rules

pytestmark = pytest.mark.model


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_rules_hold(scenario: str) -> None:
    found = explore(Model(Rules(), SCENARIOS[scenario]))
    assert found.violation is None, "\n".join([found.violation or "", *found.trace])
    assert found.states > 1000  # it did look


@pytest.mark.timeout(600)
def test_rules_hold_among_three() -> None:
    """Two peers see to what a third has left."""
    found = explore(Model(Rules(), SCENARIOS["crash"], hosts=3))
    assert found.violation is None, "\n".join([found.violation or "", *found.trace])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("hosts", "scenario"), [*((2, name) for name in DEEP), (3, "partition")])
def test_rules_hold_deeper(hosts: int, scenario: str) -> None:
    """As `python -m tests.model --deep`."""
    found = explore(Model(Rules(), ALL[scenario], hosts))
    assert found.violation is None, "\n".join([found.violation or "", *found.trace])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("second", SECOND_LINES, ids=lambda second: "-".join(one.name for one in second))
def test_second_lines_are_second(second: tuple[Name, Guard], scenario: str) -> None:
    """No harm comes of what drops one of them alone."""
    found = explore(Model(without(second), SCENARIOS[scenario]))
    assert found.violation is None, "\n".join([found.violation or "", *found.trace])


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_flaw_is_caught(flaw: str) -> None:
    found = explore(Model(FLAWS[flaw].rules, ALL[FLAWS[flaw].scenario]))
    assert found.breaks == FLAWS[flaw].breaks, found.violation
    assert found.trace


def test_code_and_model_have_the_same_guards() -> None:
    """Whoever changes a guard changes it in both places, and sees what the model says to it."""
    assert {name: set(row.guards) for name, row in TABLE.items()} == {name: set(GUARDS[name]) for name in Name}


def test_every_guard_is_shown_to_be_needed() -> None:
    """By a flaw that drops it alone; or it is a second line, and a flaw drops it together with the first."""
    alone = {next(iter(rules.dropped)) for rules, *_ in FLAWS.values() if len(rules.dropped) == 1}
    every = {(name, guard) for name, row in TABLE.items() for guard in row.guards}
    assert alone | SECOND_LINES.keys() == every
    assert not alone & SECOND_LINES.keys()
    for (name, guard), flaw in SECOND_LINES.items():
        dropped = FLAWS[flaw].rules.dropped
        assert (name, guard) in dropped or (name, Guard.RECORD_UNCHANGED) in dropped
