"""Own running keys against belief: the table of situations and actions, negative ones too."""

from __future__ import annotations

import pytest

from node.core.reconcile import Action, Adopt, Belief, CheckCancel, Forget, GiveBack, Phase, RunningKey, reconcile

T = "01900000-0000-7000-8000-000000000001"
U = "01900000-0000-7000-8000-000000000002"
#: The list was read at this revision; the claim in it has fence revision 50.
NOW = 100
KEY = RunningKey(T, 50, 1)
TOUCHED = RunningKey(T, 50, 2)


@pytest.mark.parametrize(
    ("key", "belief", "expected"),
    [
        # etcd shows it, the node does not know it
        pytest.param(KEY, None, GiveBack(T, 50), id="unknown key: given back"),
        pytest.param(TOUCHED, None, GiveBack(T, 50), id="unknown key, touched: the give back finds the cancel"),
        pytest.param(KEY, Belief(Phase.UNKNOWN), Adopt(T, 50), id="unknown claim was applied: adopted"),
        # its own answer settles it
        pytest.param(KEY, Belief(Phase.CLAIMING), None, id="claim in flight, applied already"),
        pytest.param(TOUCHED, Belief(Phase.CLAIMING), None, id="canceled before its answer came: looked at once held"),
        pytest.param(KEY, Belief(Phase.ENDING, 50), None, id="end in flight, not applied yet"),
        pytest.param(TOUCHED, Belief(Phase.ENDING, 50), None, id="end in flight: its own retry sees the request"),
        # it agrees
        pytest.param(KEY, Belief(Phase.HELD, 50), None, id="held"),
        pytest.param(KEY, Belief(Phase.RUNNING, 50), None, id="running"),
        # cancel requests
        pytest.param(TOUCHED, Belief(Phase.HELD, 50), CheckCancel(T, 2), id="touched while held"),
        pytest.param(TOUCHED, Belief(Phase.RUNNING, 50), CheckCancel(T, 2), id="touched while running"),
        pytest.param(TOUCHED, Belief(Phase.RUNNING, 50, version_checked=2), None, id="that touch was looked at"),
        pytest.param(RunningKey(T, 50, 5), Belief(Phase.RUNNING, 50, version_checked=2), CheckCancel(T, 5), id="again"),
        # another claim of the same task
        pytest.param(KEY, Belief(Phase.RUNNING, 40), Forget(T, 40), id="runs for an older claim"),
        pytest.param(TOUCHED, Belief(Phase.RUNNING, 40), Forget(T, 40), id="older claim, touched"),
        pytest.param(KEY, Belief(Phase.RUNNING, 120), None, id="the list is older than the claim"),
        # the node knows it, etcd does not show it
        pytest.param(None, Belief(Phase.RUNNING, 50), Forget(T, 50), id="lost while running: killed"),
        pytest.param(
            None, Belief(Phase.HELD, NOW), Forget(T, NOW), id="lost while held, claimed at that very revision"
        ),
        pytest.param(None, Belief(Phase.HELD, NOW + 1), None, id="claimed after the list was read"),
        pytest.param(None, Belief(Phase.CLAIMING), None, id="claim in flight"),
        pytest.param(None, Belief(Phase.UNKNOWN), None, id="unknown claim, may still be applied"),
        pytest.param(None, Belief(Phase.ENDING, 50), None, id="end applied already"),
    ],
)
def test_one_task(key: RunningKey | None, belief: Belief | None, expected: Action | None) -> None:
    keys = [key] if key else []
    beliefs = {T: belief} if belief else {}
    assert reconcile(keys, beliefs, revision=NOW) == ([expected] if expected else [])


def test_many_tasks_are_settled_apart_and_in_order() -> None:
    keys = [RunningKey(U, 60, 1), KEY]
    beliefs = {"zz": Belief(Phase.RUNNING, 70), U: Belief(Phase.RUNNING, 60)}
    assert reconcile(keys, beliefs, revision=NOW) == [GiveBack(T, 50), Forget("zz", 70)]


def test_nothing_at_all() -> None:
    assert reconcile([], {}, revision=0) == []


def test_every_phase_is_in_the_table() -> None:
    """A new phase must be given its rows: with a key and without, it may do only what the table says."""
    with_key = {phase: reconcile([KEY], {T: Belief(phase, 50)}, revision=NOW) for phase in Phase}
    assert {phase for phase, actions in with_key.items() if actions} == {Phase.UNKNOWN}
    without = {phase: reconcile([], {T: Belief(phase, 50)}, revision=NOW) for phase in Phase}
    assert {phase for phase, actions in without.items() if actions} == {Phase.HELD, Phase.RUNNING}
