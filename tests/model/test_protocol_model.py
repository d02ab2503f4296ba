"""The protocol's rules hold in every state that they allow, and each of them is needed.

A failure prints the shortest interleaving; `python -m tests.model NAME` prints it again.
"""

from __future__ import annotations

import pytest

from etcd import transitions
from etcd.transitions import Guard, Name
from tests.model.explore import explore
from tests.model.flaws import FLAWS
from tests.model.moves import Model
from tests.model.state import ALL, SCENARIOS, Rules

pytestmark = pytest.mark.model


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_rules_hold(scenario: str) -> None:
    found = explore(Model(Rules(), SCENARIOS[scenario]))
    assert found.violation is None, "\n".join([found.violation or "", *found.trace])
    assert found.states > 1000  # it did look


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_flaw_is_caught(flaw: str) -> None:
    rules, scenario = FLAWS[flaw]
    found = explore(Model(rules, ALL[scenario]))
    assert found.violation is not None
    assert found.trace


#: What the model's switches are called in the code's table of guards.
IN_THE_CODE = {
    "claim_record": (Name.CLAIM, Guard.RECORD_UNCHANGED),
    "claim_node": (Name.CLAIM, Guard.NODE_MINE),
    "submit_absent": (Name.SUBMIT, Guard.RECORD_ABSENT),
    "finish_key": (Name.FINISH, Guard.CLAIM_MINE),
    "finish_attempt": (Name.CONFIRM_CANCEL, Guard.CLAIM_MINE),
    "giveback_record": (Name.GIVE_BACK, Guard.RECORD_UNCHANGED),
    "cancel_queued_record": (Name.CANCEL_QUEUED, Guard.RECORD_UNCHANGED),
    "cancel_running_record": (Name.REQUEST_CANCEL, Guard.RECORD_UNCHANGED),
    "requeue_record": (Name.REQUEUE, Guard.RECORD_UNCHANGED),
    "requeue_node": (Name.REQUEUE, Guard.OWNER_GONE),
}


@pytest.mark.parametrize("rule", IN_THE_CODE)
def test_code_has_the_guards_that_the_model_needs(rule: str) -> None:
    assert getattr(Rules(), rule) is True
    name, guard = IN_THE_CODE[rule]
    assert guard in transitions.TABLE[name].guards
