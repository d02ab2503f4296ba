"""Who requeues the tasks of nodes that are gone, and when."""

from __future__ import annotations

import pytest

from node.core.sweep import DEFAULT_DELAY_S, Orphan, Sweep, plan_sweep, sweep_order

LIVE = ["a", "b", "c", "d", "e"]
GONE = "gone"
ORDER = sweep_order(GONE, LIVE)
KEYS = [(GONE, "t2"), (GONE, "t1"), ("a", "t3")]
ALL = (Orphan(GONE, "t1"), Orphan(GONE, "t2"))


def test_tasks_of_living_nodes_are_left_alone() -> None:
    running = [(node, f"t-{node}") for node in LIVE]
    assert plan_sweep(LIVE, running, "a", known_gone_for_s={}) == Sweep()


def test_first_in_order_requeues_at_once_in_the_order_of_keys() -> None:
    plan = plan_sweep(LIVE, KEYS, ORDER[0], known_gone_for_s={})
    assert plan == Sweep(ALL, None, frozenset({GONE}))


@pytest.mark.parametrize(("rank", "delays"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_next_ones_look_again_later_and_then_do_it(rank: int, delays: int) -> None:
    me = ORDER[rank]
    waits_s = delays * DEFAULT_DELAY_S
    assert plan_sweep(LIVE, KEYS, me, known_gone_for_s={}) == Sweep((), waits_s, frozenset({GONE}))
    early = plan_sweep(LIVE, KEYS, me, known_gone_for_s={GONE: waits_s - 0.5})
    assert (early.requeue, early.look_again_after_s) == ((), 0.5)
    assert plan_sweep(LIVE, KEYS, me, known_gone_for_s={GONE: waits_s}).requeue == ALL


def test_when_the_first_dies_too_the_next_is_first() -> None:
    left = [node for node in LIVE if node != ORDER[0]]
    assert sweep_order(GONE, left) == ORDER[1:]
    assert plan_sweep(left, KEYS, ORDER[1], known_gone_for_s={}).requeue == ALL


def test_node_that_is_alone_takes_all() -> None:
    running = [("x", "t1"), ("y", "t2"), ("z", "t3")]
    plan = plan_sweep(["me"], running, "me", known_gone_for_s={})
    assert [orphan.node_id for orphan in plan.requeue] == ["x", "y", "z"]
    assert plan.look_again_after_s is None


def test_fenced_node_decides_nothing() -> None:
    """Its own key is gone: its running keys are orphans like any others, and others see to them."""
    assert plan_sweep(LIVE, [("me", "t1")], "me", known_gone_for_s={"me": 1e9}) == Sweep(gone=frozenset({"me"}))


def test_own_former_incarnation_is_an_orphan_like_any_other() -> None:
    plan = plan_sweep(["me.2"], [("me.1", "t1"), ("me.2", "t2")], "me.2", known_gone_for_s={})
    assert plan.requeue == (Orphan("me.1", "t1"),)


def test_soonest_turn_counts() -> None:
    gone = [f"gone{n}" for n in range(20)]
    running = [(node, "t") for node in gone]
    known = {node: 0.1 * n for n, node in enumerate(gone)}
    plan = plan_sweep(LIVE, running, "c", known_gone_for_s=known)
    mine_later = [node for node in gone if sweep_order(node, LIVE)[0] != "c"]
    lefts = [
        DEFAULT_DELAY_S * ((1 + sweep_order(node, LIVE).index("c")).bit_length() - 1) - known[node]
        for node in mine_later
    ]
    assert plan.look_again_after_s == min(left for left in lefts if left > 0)
    assert plan.gone == frozenset(gone)


def test_work_is_spread_over_the_living() -> None:
    firsts = [sweep_order(f"gone{n}", LIVE)[0] for n in range(500)]
    assert all(60 < firsts.count(node) < 140 for node in LIVE)
