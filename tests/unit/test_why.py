"""Why a task does not start: situations, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.core import lifecycle
from node.core.model import Capacity, Mount, Network, Outcome, Reason, Requirements, Task, TaskSpec
from node.core.requirements import Reservation
from node.core.why import Allowed, Held, NodeFacts, OfNode, Why, explain

GIB = 1 << 30
NONE = Reservation()
A = NodeFacts("id-a", "a", "ready", Capacity(4.0, 8 * GIB), NONE, Allowed())
B = replace(A, node_id="id-b", name="b", capacity=Capacity(8.0, 4 * GIB))
OLDER, TASK, YOUNGER = (f"0190aaaa-0000-7000-8000-00000000000{n}" for n in (1, 2, 3))


def task(spec: TaskSpec | None = None, **requirements: float) -> Task:
    needs = Requirements(**requirements)  # type: ignore[arg-type]  # cpu and memory_bytes, as the tests give them
    return lifecycle.submit(TASK, spec or TaskSpec("true", requirements=needs), now=1.0)


def busy(node: NodeFacts, cpu: float) -> NodeFacts:
    return replace(node, reserved=Reservation(int(cpu * 1000), 0))


def words(of: OfNode) -> list[str]:
    return [obstacle.words for obstacle in of.obstacles]


def one(why: Why) -> OfNode:
    (of,) = why.nodes
    return of


def test_it_fits_nowhere() -> None:
    why = explain(task(cpu=64), [A, B])
    assert why.summary == "fits nowhere: needs 64 CPUs, the largest node lends 8"
    assert [(of.name, of.fits, words(of)) for of in why.nodes] == [
        ("a", False, ["needs 64 CPUs, the node lends 4"]),
        ("b", False, ["needs 64 CPUs, the node lends 8"]),
    ]


def test_it_fits_nowhere_for_want_of_memory_or_of_both_together() -> None:
    assert explain(task(memory_bytes=16 * GIB), [A, B]).summary == (
        "fits nowhere: needs 16 GiB of memory, the largest node lends 8 GiB"
    )
    assert explain(task(cpu=6, memory_bytes=6 * GIB), [A, B]).summary == (
        "fits nowhere: no node lends 6 CPUs and 6 GiB together"
    )


def test_a_node_that_is_gone_could_have_held_it() -> None:
    big = replace(
        A, node_id="id-c", name="c", state="gone", capacity=Capacity(64, 8 * GIB), reserved=None, allowed=None
    )
    why = explain(task(cpu=64), [A, big])
    assert why.summary.endswith("; c could hold it, and is gone")
    assert why.summary.startswith("fits nowhere: needs 64 CPUs, the largest node lends 4")
    assert words(why.nodes[1]) == ["is gone"]
    assert explain(task(cpu=64), [big]).summary == "waits: no node is alive; c could hold it, and is gone"


def test_there_is_no_room_now() -> None:
    why = explain(task(cpu=3), [busy(A, 2.0), busy(B, 8.0)])
    assert why.summary == "waits for room: a, b could hold it, once what runs there leaves enough"
    assert words(why.nodes[0]) == ["has no room now: needs 3 CPUs, 2 CPUs free"]
    assert all(of.fits for of in why.nodes)


def test_memory_is_told_where_it_was_asked_for() -> None:
    full = replace(A, reserved=Reservation(0, 7 * GIB))
    assert words(one(explain(task(memory_bytes=2 * GIB), [full]))) == [
        "has no room now: needs 1 CPU and 2 GiB, 4 CPUs and 1 GiB free"
    ]
    assert (
        words(one(explain(task(memory_bytes=512 << 20, cpu=8), [replace(full, capacity=Capacity(8, 8 * GIB))]))) == []
    )


def test_what_is_overdrawn_is_not_told_as_less_than_nothing() -> None:
    assert words(one(explain(task(), [busy(A, 5.0)]))) == ["has no room now: needs 1 CPU, 0 CPUs free"]


def test_somebody_has_room_for_it() -> None:
    why = explain(task(), [busy(A, 4.0), B])
    assert why.summary == "may start at any moment: b has room for it"
    assert explain(task(), [A, B]).summary == "may start at any moment: a, b have room for it"


def test_many_names_are_counted() -> None:
    nodes = [replace(A, node_id=f"id-{n}", name=f"n{n}") for n in range(5)]
    assert explain(task(), nodes).summary == "may start at any moment: n0, n1, n2 and 2 more have room for it"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("drained", "is drained: it claims nothing until node drain --undo"),
        ("draining", "is draining or stopping: it claims nothing more"),
        ("at_risk", "gets no answer from etcd: it claims nothing until it does"),
        ("joining", "has no lease yet"),
        ("unreachable", "does not answer; its lease has not run out yet"),
        ("thinking", "is thinking"),  # a state of a newer version
    ],
)
def test_a_node_that_does_not_claim(state: str, reason: str) -> None:
    why = explain(task(), [replace(A, state=state)])
    assert (one(why).fits, words(one(why))) == (True, [reason])
    assert why.summary == f"waits: no node that could hold it claims now (a is {state.replace('_', ' ')})"


def test_a_node_that_pauses() -> None:
    paused = replace(A, pause="its spawner is being started again")
    why = explain(task(), [paused])
    assert words(one(why)) == ["its spawner is being started again"]
    assert why.summary == "waits a moment: on a, its spawner is being started again"
    assert explain(task(), [paused, busy(B, 8.0)]).summary.startswith("waits for room: a, b")
    assert words(one(explain(task(), [replace(paused, state="drained")]))) == [
        "is drained: it claims nothing until node drain --undo"
    ]


def test_a_node_that_does_not_answer_says_nothing_of_its_room() -> None:
    silent = replace(A, state="unreachable", reserved=None, allowed=None)
    why = explain(task(cpu=3), [silent, busy(B, 7.0)])
    assert words(why.nodes[0]) == ["does not answer; its lease has not run out yet"]
    assert why.summary == "waits for room: b could hold it, once what runs there leaves enough"


def test_mounts_and_network_that_no_node_allows() -> None:
    asking = TaskSpec("true", mounts=(Mount("/data", "/data"),), network=Network.HOST)
    why = explain(task(asking), [A])
    assert not one(why).fits
    mount, network = words(one(why))
    assert mount.startswith("mounts[0].source: /data may not be mounted")
    assert network.startswith("network: this node gives no task")
    assert why.summary.startswith("may run nowhere: on a, mounts[0].source: /data may not be mounted")
    willing = replace(A, allowed=Allowed(("/data",), (), host_network=True))
    assert explain(task(asking), [willing]).summary == "may start at any moment: a has room for it"


def test_the_refusal_told_is_that_of_a_node_that_is_large_enough() -> None:
    asking = TaskSpec("true", network=Network.HOST, requirements=Requirements(cpu=8))
    why = explain(task(asking), [A, B])
    assert why.summary.startswith("may run nowhere: on b, network:")


@pytest.mark.parametrize(
    ("held", "is_held"),
    [
        (Held(OLDER, Requirements(cpu=4)), True),
        (Held(OLDER, None), True),
        (Held(OLDER, Requirements(cpu=2)), False),  # there is room beside it
        (Held(YOUNGER, Requirements(cpu=4)), False),
        (Held(TASK, Requirements(cpu=1)), False),  # it is this one
    ],
)
def test_room_is_held_for_an_older_task(held: Held, is_held: bool) -> None:
    why = explain(task(), [replace(busy(A, 1.0), held=held)])
    if is_held:
        assert words(one(why)) == [f"holds what is free for an older task that needs more: {OLDER}"]
        assert why.summary == "waits behind an older task that needs more, for which a saves up room"
    else:
        assert words(one(why)) == []


def test_what_became_of_the_last_attempt() -> None:
    claimed = lifecycle.claim(task(), node_id="id-a", host_id="host", now=2.0)
    outcome = Outcome(Reason.SETUP_FAILED, step="cgroup", detail="cgroup: no space")
    back = lifecycle.give_back(claimed, outcome, started_at=None, now=3.0)
    assert explain(back, [A]).summary == (
        "may start at any moment: a has room for it; attempt 1 could not be set up (cgroup: no space)"
    )


def test_a_task_that_runs() -> None:
    running = lifecycle.claim(task(), node_id="id-a", host_id="host", now=2.0)
    assert explain(running, [A, B]) == Why("runs on a (attempt 1)")
    asked = lifecycle.request_cancel(running)
    assert explain(asked, [A]).summary == "runs on a (attempt 1); its cancel is requested"
    assert explain(running, [replace(A, state="unreachable")]).summary == (
        "runs on a (attempt 1), which does not answer; its lease has not run out yet"
    )
    assert explain(running, [replace(A, state="draining")]).summary == "runs on a (attempt 1)"
    for gone in ([B], [replace(A, state="gone")]):
        assert explain(running, gone).summary == "is requeued in a moment: its node id-a is gone (attempt 1)"


@pytest.mark.parametrize(
    ("outcome", "summary"),
    [
        (Outcome(Reason.EXITED, exit_code=3), "is complete: exited with 3"),
        (Outcome(Reason.SIGNALED, signal=11), "is complete: was killed by signal 11"),
        (Outcome(Reason.TIMED_OUT), "is complete: ran out of its time"),
        (Outcome(Reason.SETUP_FAILED, detail="no such file"), "is failed: could not be set up (no such file)"),
    ],
)
def test_a_task_that_has_ended(outcome: Outcome, summary: str) -> None:
    running = lifecycle.claim(task(), node_id="id-a", host_id="host", now=2.0)
    assert explain(lifecycle.finish(running, outcome, started_at=2.5, now=3.0), []) == Why(summary)


def test_every_reason_has_its_words() -> None:
    running = lifecycle.claim(task(), node_id="id-a", host_id="host", now=2.0)
    for reason in Reason:
        ended = replace(
            lifecycle.finish(running, Outcome(Reason.EXITED, exit_code=0), started_at=2.5, now=3.0),
            outcome=Outcome(reason),
        )
        assert explain(ended, []).summary.startswith("is complete: ")
