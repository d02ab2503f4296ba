"""Processes that die or stand still: their tasks run elsewhere, never twice at once, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil
import pytest

from pilfer import TaskSpec
from tests.cluster_live.conftest import Note
from tests.support.beats import Run
from tests.support.lab import API_PORT, CPU, LEASE_TTL_S, Lab
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.cluster
LONG = pytest.mark.long

#: What runs must be let beat on for, to say that they were not touched.
STEADY_S = 1.0


def still_the_first(lab: Lab, ids: Sequence[str]) -> list[Run]:
    """The only run of each of them, which goes on beating."""
    lab.witness.look()
    before = time.monotonic()
    wait_until_sync(
        lambda: all(lab.witness.look().of(task_id)[-1].last_sent > before + STEADY_S for task_id in ids),
        what="they beat on",
    )
    runs = [lab.witness.runs.of(task_id) for task_id in ids]
    assert all(len(of_one) == 1 for of_one in runs), [str(run) for of_one in runs for run in of_one]
    return [of_one[0] for of_one in runs]


@pytest.mark.parametrize("role", ["a follower of etcd", "the leader of etcd"])
def test_kill_9_of_a_node(lab: Lab, note: Note, role: str) -> None:
    placed = lab.spread()
    victim = lab.get_leader() if "leader" in role else lab.get_follower()
    pids = victim.task_processes()
    assert len(pids) >= len(placed[victim.name])
    start = time.monotonic()
    victim.kill()
    wait_until_sync(lambda: not any(map(psutil.pid_exists, pids)), what="its processes are gone", every_s=0.005)
    gone = time.monotonic() - start
    note(f"kill -9 of a node, {role}: its tasks' processes are gone (at most 1)", gone)
    again = lab.wait_moved(placed[victim.name]) - start
    limit = 9 if "leader" in role else 6
    note(f"kill -9 of a node, {role}: its tasks run elsewhere (p95 at most {limit})", again)
    assert gone < 5.0
    assert again < 20.0
    others = [task_id for name, ids in placed.items() if name != victim.name for task_id in ids]
    still_the_first(lab, others)


def test_a_node_that_restarts_has_its_tasks_requeued_at_once(lab: Lab, note: Note) -> None:
    placed = lab.spread()
    victim = lab.get_follower()
    victim.kill()
    start = time.monotonic()
    lab.begin(victim)
    again = lab.wait_moved(placed[victim.name]) - start
    victim.wait_serving()
    note("node process restarted on the same host: its tasks run again (at most 2)", again)
    assert again < LEASE_TTL_S + 8.0


def test_kill_9_of_the_leading_etcd(lab: Lab, note: Note) -> None:
    placed = lab.spread(1)
    victim = lab.get_leader()
    start = time.monotonic()
    victim.kill_part("etcd")
    lab.submit(lab.witness.task(0.0), through=lab.any_node(but=[victim]))
    answered = time.monotonic() - start
    note("etcd's leader killed: a submit through another node is answered (at most 2)", answered)
    lab.submit(lab.witness.task(0.0), through=victim)
    note("the same, through the node whose etcd was killed", time.monotonic() - start)
    assert answered < 10.0
    still_the_first(lab, [task_id for ids in placed.values() for task_id in ids])


def test_kill_9_of_a_spawner(lab: Lab, note: Note) -> None:
    placed = lab.spread()
    victim = lab.get_follower()
    start = time.monotonic()
    victim.kill_part("spawner")
    again = lab.wait_moved(placed[victim.name]) - start
    note("spawner killed: its tasks run again", again)
    assert again < 10.0


@pytest.mark.parametrize("part", ["node", pytest.param("etcd", marks=LONG), pytest.param("spawner", marks=LONG)])
def test_a_stop_shorter_than_the_lease_changes_nothing(lab: Lab, part: str) -> None:
    placed = lab.spread(1)
    victim = lab.get_follower()
    victim.pause(part)
    # The time itself is what is tested here.
    time.sleep(LEASE_TTL_S / 2 if part != "spawner" else 1.0)
    victim.resume()
    still_the_first(lab, [task_id for ids in placed.values() for task_id in ids])


@pytest.mark.parametrize(
    "parts",
    [
        ("node",),
        pytest.param(("node", "spawner"), marks=LONG),
        pytest.param(("spawner", "node", "etcd"), marks=LONG),
    ],
    ids="+".join,
)
def test_a_node_that_stands_still_longer_than_the_lease(lab: Lab, note: Note, parts: tuple[str, ...]) -> None:
    placed = lab.spread()
    victim = lab.get_follower()
    before = {view.name: view.id for view in lab.views()}[victim.name]
    start = time.monotonic()
    victim.pause(*parts)
    again = lab.wait_moved(placed[victim.name]) - start
    note(f"{'+'.join(parts)} stopped: its tasks run elsewhere (p95 at most 6)", again)
    victim.resume()
    lab.wait_ready()
    assert {view.name: view.id for view in lab.views()}[victim.name] != before, "it came back under its old id"
    assert lab.witness.flaws() == []
    assert again < 20.0


def test_a_spawner_that_stands_still_is_replaced(lab: Lab, note: Note) -> None:
    placed = lab.spread()
    victim = lab.get_follower()
    start = time.monotonic()
    victim.pause("spawner")
    again = lab.wait_moved(placed[victim.name]) - start
    note("spawner stopped: its tasks run again", again)
    assert again < 30.0


@LONG
def test_an_etcd_that_stands_still_costs_no_task(lab: Lab) -> None:
    """Its node goes on through the other voters."""
    placed = lab.spread(1)
    victim = lab.get_follower()
    victim.pause("etcd")
    time.sleep(LEASE_TTL_S * 1.5)
    still_the_first(lab, [task_id for ids in placed.values() for task_id in ids])


def test_everything_killed_at_once_comes_back_with_every_task(lab: Lab, note: Note) -> None:
    placed = lab.spread()
    waiting = lab.submit(*[lab.witness.task(0.1, cpu=1.0)] * 30)
    for node in lab.up():
        for part in ("spawner", "etcd"):
            node.kill_part(part)
        node.kill()
    start = time.monotonic()
    for node in lab.nodes.values():
        lab.begin(node)
    again = lab.wait_moved([task_id for ids in placed.values() for task_id in ids], timeout_s=60.0) - start
    for node in lab.nodes.values():
        node.wait_serving()
    note("whole cluster killed and started again: its tasks run again (at most 10)", again)
    with lab.first.client(patience_s=20.0) as client:
        assert {task.status for task in client.wait(waiting, timeout_s=60.0)} == {"complete"}
    assert again < 40.0


@LONG
def test_rolling_restart_under_load(lab: Lab) -> None:
    ids = []
    for node in lab.nodes.values():
        ids += lab.submit(*[lab.witness.task(0.5, cpu=1.0)] * 12)
        assert node.stop() == 0
        ids += lab.submit(*[lab.witness.task(0.5, cpu=1.0)] * 12)
        lab.begin(node)
        node.wait_serving()
        lab.wait_ready()
    with lab.first.client(patience_s=20.0) as client:
        tasks = client.wait(ids, timeout_s=60.0)
    assert {task.status for task in tasks} == {"complete"}
    reasons = {a.outcome.reason for task in tasks for a in task.attempts if a.outcome}
    assert reasons <= {"exited", "given_back"}, "an ordered stop loses no attempt"


@LONG
def test_the_leader_of_etcd_moves_under_load(lab: Lab) -> None:
    ids = lab.submit(*[lab.witness.task(0.2, cpu=1.0)] * 40)
    for _ in range(3):
        leader = lab.get_leader()
        lab.move_leader(next(node for node in lab.voters() if node is not leader))
        ids += lab.submit(*[lab.witness.task(0.0, cpu=1.0)] * 10)
    with lab.first.client(patience_s=20.0) as client:
        tasks = client.wait(ids, timeout_s=60.0)
    assert {(task.status, task.attempt) for task in tasks} == {("complete", 1)}


@LONG
def test_a_log_is_followed_across_the_death_of_a_node(lab: Lab) -> None:
    """The follower, at a node that never ran the task, sees the next attempt begin, and is told; what the dead host
    has is named, not passed over."""
    script = "echo attempt $PILFER_ATTEMPT; while [ $PILFER_ATTEMPT = 1 ]; do sleep 0.1; done"
    # As many as fill the cluster, so that one of them is on the node that is lost.
    ids = lab.submit(*[TaskSpec.of("/bin/sh", "-c", script, cpu=1.0)] * (CPU * len(lab.nodes)))
    wait_until_sync(lambda: len(lab.places_of(ids)) == len(ids), what="all run")
    victim = lab.get_follower()
    places = lab.places_of(ids)
    lost = next(task_id for task_id, name in places.items() if name == victim.name)
    with lab.first.client() as client:
        # Room for it on the others.
        client.cancel([task_id for task_id in ids if task_id != lost])
    reader = lab.any_node(but=[victim])
    following = subprocess.Popen(
        [sys.executable, "-m", "node", "log", "-f", lost],
        env=os.environ | {"PILFER_ADDRESS": reader.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        assert following.stdout.readline() == "attempt 1\n"
        victim.kill()
        output, errors = following.communicate(timeout=60.0)
    finally:
        following.kill()
        following.wait()
    assert output == "attempt 2\n", errors
    assert "attempt 2 begins on" in errors
    asked = reader.cli("log", "--attempt", "1", lost)
    assert asked.returncode != 0
    assert victim.host_id in asked.stderr
    assert "since" in asked.stderr
    lab.heal()
    again = reader.cli("log", "--attempt", "1", lost)
    assert (again.returncode, again.stdout) == (0, "attempt 1\n"), again.stderr


@LONG
def test_a_node_comes_back_under_another_address(lab: Lab) -> None:
    victim = lab.get_follower()
    before = victim.place.address
    assert victim.stop() == 0
    lab.network.readdress(victim.name, f"{before}7")
    try:
        lab.begin(victim)
        victim.wait_serving()
        lab.wait_ready()
        for through in lab.nodes.values():
            addresses = {view.name: view.address for view in lab.views(through)}
            assert addresses[victim.name] == f"{before}7:{API_PORT}"
        lab.get_leader()
        placed = lab.spread(1)
        assert len(placed[victim.name]) == 1
        lab.clear()
    finally:
        victim.stop()
        lab.network.readdress(victim.name, before)
