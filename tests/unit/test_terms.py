"""What a task demands of a node beside room: who may hold it, who stands on its circle, and what people are told."""

from __future__ import annotations

import pytest

from node.core.model import ALL_LIMITS, Capacity, Requirements, Task, TaskSpec
from node.core.peers import Peers, task_point
from node.core.queue_view import QueueView
from node.core.requirements import NO_TERMS, Terms, reservation, terms, terms_not_met
from node.core.why import Kind, NodeFacts, explain

GIB = 1 << 30
WHOLE = Capacity(4.0, 8 * GIB, scratch_bytes=10 * GIB)
#: An ordinary user's: large, and without control groups.
DEGRADED = Capacity(16.0, 64 * GIB, scratch_bytes=GIB, limits=frozenset())
DEMANDING = Requirements(require_limits=True)
BULKY = Requirements(scratch_bytes=2 * GIB)


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        (Requirements(), NO_TERMS),
        (Requirements(io_read_bytes_per_s=5), NO_TERMS),
        (DEMANDING, Terms(0, frozenset({"cpu", "memory", "pids"}))),
        (Requirements(require_limits=True, io_write_bytes_per_s=5), Terms(0, ALL_LIMITS)),
        (BULKY, Terms(2 * GIB)),
    ],
)
def test_what_is_demanded(requirements: Requirements, expected: Terms) -> None:
    assert terms(requirements) == expected


@pytest.mark.parametrize(
    ("requirements", "capacity", "words"),
    [
        (DEMANDING, WHOLE, []),
        (DEMANDING, DEGRADED, ["demands limits on cpu, memory and pids, which the node cannot enforce"]),
        (BULKY, DEGRADED, ["needs 2 GiB of scratch, the node allows 1 GiB to each task"]),
        (BULKY, Capacity(1.0, GIB), []),  # not known: the node itself tells
        (Requirements(io_read_bytes_per_s=5), DEGRADED, []),  # not demanded
        (
            Requirements(require_limits=True, io_read_bytes_per_s=5),
            Capacity(1.0, GIB, limits=ALL_LIMITS - {"io"}),
            ["demands limits on io, which the node cannot enforce"],
        ),
    ],
)
def test_who_may_not_hold_it_and_why(requirements: Requirements, capacity: Capacity, words: list[str]) -> None:
    assert terms_not_met(requirements, capacity) == words
    assert terms(requirements).are_met_by(capacity) is (not words)


def test_only_those_who_may_hold_it_stand_on_its_circle() -> None:
    """Else tasks that fall to a node which never claims them would wait for the others' steps, each time."""
    nodes = {"a": WHOLE, "b": DEGRADED, "c": WHOLE}
    for task in map(str, range(50)):
        first = [
            me
            for me in nodes
            if (place := Peers(me, nodes, my_capacity=nodes[me]).place(reservation(DEMANDING), terms(DEMANDING)))
            is not None
            and place.rank(task_point(task)) == 0
        ]
        assert len(first) == 1
        assert first[0] != "b"


def test_a_node_that_may_not_hold_it_does_not_take_it_in() -> None:
    view = QueueView("b", DEGRADED)
    for number, requirements in enumerate((DEMANDING, BULKY, Requirements())):
        view.add(str(number), requirements, now=0.0)
    assert [number for number in map(str, range(3)) if number in view] == ["2"]


def test_tasks_of_equal_needs_on_other_terms_are_of_another_kind() -> None:
    view = QueueView("a", WHOLE)
    view.add("plain", Requirements(), now=0.0)
    view.add("demanding", DEMANDING, now=0.0)
    # The degraded node counts for the one and not for the other.
    view.set_nodes({"b": DEGRADED})
    assert {offer: view.get(offer).kind.place.count for offer in ("plain", "demanding")} == {"plain": 2, "demanding": 1}
    view.remove("plain")
    assert [kind.ids for kind in view.kinds()] == [["demanding"]]


def test_people_are_told_why() -> None:
    task = Task("x", TaskSpec("true", requirements=DEMANDING), submitted_at=0.0)
    degraded = NodeFacts("b", "b", "ready", DEGRADED, reservation(Requirements()), None)
    why = explain(task, [degraded])
    assert why.summary == (
        "may run nowhere: on b, demands limits on cpu, memory and pids, which the node cannot enforce"
    )
    assert [obstacle.kind for obstacle in why.nodes[0].obstacles] == [Kind.TERMS]
    whole = NodeFacts("a", "a", "ready", WHOLE, reservation(Requirements()), None)
    assert explain(task, [degraded, whole]).summary == "may start at any moment: a has room for it"
