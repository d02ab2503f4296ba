"""Three nodes are one cluster: any of them answers, wherever the thing itself is."""

from __future__ import annotations

import json
import re
import time

import pytest

from pilfer import TaskSpec
from tests.cluster_live.conftest import Note
from tests.support.lab import API_PORT, Lab
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.cluster


def test_every_node_lists_all_three_as_ready_voters(lab: Lab) -> None:
    for through in lab.nodes.values():
        done = through.cli("nodes", "--json")
        assert done.returncode == 0, done.stderr
        listed = [json.loads(line) for line in done.stdout.splitlines()]
        assert {(n["name"], n["state"], n["role"], n["address"]) for n in listed} == {
            (node.name, "ready", "voter", f"{node.place.address}:{API_PORT}") for node in lab.nodes.values()
        }


def test_a_task_is_seen_and_its_log_read_through_every_node(lab: Lab) -> None:
    for node in lab.nodes.values():
        ids = lab.submit(*[TaskSpec.of("/bin/sh", "-c", "echo out of $PILFER_NODE_ID; echo err >&2")] * 4, through=node)
        for through in lab.nodes.values():
            with through.client() as client:
                for task in client.wait(ids, timeout_s=30.0):
                    assert task.status == "complete"
                    text = b"".join(chunk.data for chunk in client.log(task.id, stream="stdout"))
                    assert text.decode() == f"out of {task.attempts[-1].node_id}\n"
                    assert b"".join(chunk.data for chunk in client.log(task.id, stream="stderr")) == b"err\n"


def test_a_log_is_followed_through_a_node_that_does_not_run_the_task(lab: Lab) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done"
    (task_id,) = lab.submit(TaskSpec.of("/bin/sh", "-c", script))
    wait_until_sync(lambda: task_id in lab.places_of([task_id]), what="it runs")
    runs_on = lab.places_of([task_id])[task_id]
    for through in lab.nodes.values():
        if through.name != runs_on:
            with through.client() as client:
                text = b"".join(chunk.data for chunk in client.log(task_id, follow=True))
            assert re.findall(r"line (\d)", text.decode()) == list("12345")


def test_cancel_through_a_third_node(lab: Lab, note: Note) -> None:
    placed = lab.spread(1)
    taken = []
    names = list(placed)
    for number, name in enumerate(names):
        (task_id,) = placed[name]
        through = lab.nodes[names[(number + 1) % len(names)]]
        with through.client() as client:
            start = time.monotonic()
            client.cancel(task_id)
            assert client.wait(task_id, timeout_s=30.0).status == "canceled"
            taken.append(time.monotonic() - start)
        (run,) = lab.witness.look().of(task_id)
        assert run.last_sent < time.monotonic()
    note("cancel through another node than it runs on, to its end (at most 0.5)", max(taken))
    assert max(taken) < 5.0


def test_work_is_shared_among_equals(lab: Lab) -> None:
    ids = lab.submit(*[lab.witness.task(0.1, cpu=1.0)] * 90)
    with lab.first.client() as client:
        assert {task.status for task in client.wait(ids, timeout_s=90.0)} == {"complete"}
    counts = [list(lab.places_of(ids).values()).count(name) for name in lab.nodes]
    jain = sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))
    assert jain >= 0.9, counts


def test_a_task_that_fits_nowhere_is_explained(lab: Lab) -> None:
    (task_id,) = lab.submit(TaskSpec.of("/bin/true", cpu=64))
    done = lab.first.cli("why", task_id)
    assert done.returncode == 0, done.stderr
    assert "fits nowhere" in done.stdout
    assert all(name in done.stdout for name in lab.nodes)


def test_a_drained_node_gives_back_and_claims_nothing_until_it_is_undone(lab: Lab) -> None:
    placed = lab.spread(1)
    other, drained = list(lab.nodes.values())[:2]
    done = other.cli("drain", drained.name)
    assert done.returncode == 0, done.stderr
    (moved,) = placed[drained.name]
    lab.witness.wait_run(moved, 2)
    assert lab.places_of([moved])[moved] != drained.name
    more = lab.submit(*[lab.witness.task(0.1, cpu=1.0)] * 12)
    with other.client() as client:
        client.wait(more, timeout_s=60.0)
    assert drained.name not in lab.places_of(more).values()
    assert other.cli("drain", drained.name, "--undo").returncode == 0
    wait_until_sync(lambda: [view.state for view in lab.views()].count("ready") == len(lab.nodes), what="undone")
    lab.clear()
    filled = lab.spread(1)
    assert len(filled[drained.name]) == 1
