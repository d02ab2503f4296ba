"""A small cluster under each load: hardly a claim is lost, and all do their share."""

from __future__ import annotations

from functools import cache

import pytest

from tests.simulation.scale.load import Plan
from tests.simulation.scale.measures import jain
from tests.simulation.scale.run import Result, simulate

NODES, TASKS = 10, 300


@cache
def _simulate(load: str, nodes_kind: str = "equal", tasks_kind: str = "small") -> Result:
    return simulate(Plan(NODES, TASKS, load, nodes_kind, tasks_kind))


@pytest.mark.parametrize(
    ("load", "nodes_kind", "tasks_kind", "tried_at_most", "jain_at_least"),
    [
        ("backlog", "equal", "small", 1.1, 0.98),
        # Of 300 tasks the last big ones weigh.
        ("backlog", "mixed", "big", 1.2, 0.8),
        ("trickle", "equal", "small", 1.5, 0.9),
    ],
)
def test_hardly_a_claim_is_lost_and_all_do_their_share(
    load: str, nodes_kind: str, tasks_kind: str, tried_at_most: float, jain_at_least: float
) -> None:
    result = _simulate(load, nodes_kind, tasks_kind)
    assert result.ended == TASKS
    assert result.unanswered == 0
    assert result.claims.tried / result.claims.won <= tried_at_most
    assert result.jain >= jain_at_least


def test_a_backlog_is_done_in_little_more_time_than_the_work_takes() -> None:
    result = _simulate("backlog")
    assert result.drain_s <= 1.25 * result.ideal_s + 1.0


def test_a_task_of_a_trickle_starts_at_once() -> None:
    result = _simulate("trickle")
    assert result.start.p50 <= 0.1


def test_what_each_task_costs_etcd() -> None:
    result = _simulate("backlog")
    assert 3.0 <= result.items <= 3.1  # submit, claim, end, and what was lost
    assert result.writes <= 2.0
    assert result.records <= 2.0  # not every node reads every record
    # Each node is told of each task twice: that it is queued, and that it is not.
    assert 2 * TASKS <= result.events <= 2.2 * TASKS


def test_a_node_lists_no_more_than_its_window_at_a_time() -> None:
    """Of a long queue every node once listed all, for each window of it."""
    window = 50
    result = simulate(Plan(NODES, TASKS, window=window))
    assert result.ended == TASKS
    assert result.listings > NODES
    assert result.listed <= result.listings * window / TASKS


def test_the_same_seed_is_the_same_run() -> None:
    first, again = simulate(Plan(5, 60, "trickle")), simulate(Plan(5, 60, "trickle"))
    assert (first.claims, first.drain_s, first.messages) == (again.claims, again.drain_s, again.messages)


def test_jain_tells_who_does_all() -> None:
    assert jain([1.0, 1.0, 1.0, 1.0]) == 1.0
    assert jain([4.0, 0.0, 0.0, 0.0]) == 0.25
