"""Two of three voters are gone for good: an operator makes the third a cluster again, and what is left comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from pilfer import TaskSpec
from tests.cluster_live.conftest import Note
from tests.support.beats import overlaps, setbacks
from tests.support.lab import Lab, LabNode, laboratory
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.cluster


def _recover(node: LabNode, *more: str) -> subprocess.CompletedProcess[str]:
    """`node recover` of a stopped node, in its place."""
    return node.run(sys.executable, "-m", "node", "recover", "--data-dir", str(node.data_dir), *more, timeout_s=90.0)


def _fence_of(lab: Lab, task_id: str) -> int:
    with lab.any_node().client(patience_s=20.0) as client:
        return int(b"".join(chunk.data for chunk in client.log(task_id, stream="stdout")))


def test_a_survivor_is_made_a_cluster_of_its_own(note: Note) -> None:
    tell_fence = TaskSpec.of("/bin/sh", "-c", "echo $PILFER_FENCE")
    with laboratory() as lab:
        lab.grow("a", "b", "c", voters=3)
        lab.grow("d", voters=3)
        a, b, c, d = lab.nodes.values()
        (before,) = lab.submit(tell_fence, through=c)
        with c.client() as client:
            assert client.wait(before, timeout_s=30.0).status == "complete"
        fence_before = _fence_of(lab, before)
        waiting = lab.submit(*[lab.witness.task(0.5, cpu=4.0)] * 12, through=c)

        refused = _recover(c, "--yes")
        assert (refused.returncode, "is in use by the node with pid" in refused.stderr) == (1, True)

        lab.judge()
        for lost in (a, b):
            lost.kill()
        began = time.monotonic()
        c.kill()
        # A host without a vote has nothing to recover from.
        d_copy = _recover(d)
        assert d_copy.returncode == 1
        plan = _recover(c)
        assert (plan.returncode, "Nothing was changed" in plan.stderr) == (2, True)
        done = _recover(c, "--yes", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["tasks"] == 13
        assert (c.data_dir / "etcd" / "data").exists()
        lab.begin(c)
        c.wait_serving()
        with c.client(patience_s=30.0) as client:
            ended = client.wait([before, *waiting], timeout_s=120.0)
        assert {task.status for task in ended} == {"complete"}
        note("quorum lost for good: recovered, and all that was queued has run", time.monotonic() - began)
        (after,) = lab.submit(tell_fence, through=c)
        with c.client() as client:
            client.wait(after, timeout_s=30.0)
        assert _fence_of(lab, after) > fence_before

        # The node that lived all along is a client of the new cluster, with the tasks that it had.
        wait_until_sync(lambda: [view.state for view in lab.views(d)].count("ready") == 2, 40.0, what="d is ready")
        # What it starts from now on is of the new epoch too, although it read the old one at its own start.
        assert c.cli("drain", "c").returncode == 0
        (on_d,) = lab.submit(tell_fence, through=c)
        with c.client() as client:
            client.wait(on_d, timeout_s=30.0)
        assert lab.places_of([on_d]) == {on_d: "d"}
        assert _fence_of(lab, on_d) > _fence_of(lab, after)
        assert c.cli("drain", "c", "--undo").returncode == 0
        # What was lost may come back after all: its old data are put aside, and it votes again as a new member.
        lab.heal()
        lab.wait_voters(3)
        assert any((lost.data_dir / "etcd").glob("data.removed-*") for lost in (a, b))
        # (The history before the recovery is compacted.)
        assert lab.witness.flaws() == []


def test_a_voter_that_is_left_stops_at_one_signal(note: Note) -> None:
    """As the manual tells it before `node recover`: what it ran is frozen by then, and hears no signal."""
    with laboratory() as lab:
        lab.grow("a", "b", "c", voters=3)
        a, b, c = lab.nodes.values()
        ids = lab.submit(*[lab.witness.task(600.0, cpu=4.0)] * 3, through=a)
        lab.witness.wait_runs(ids, 1)
        (on_c,) = (task_id for task_id, place in lab.places_of(ids).items() if place == "c")
        for lost in (a, b):
            lost.kill()
        seen = [0.0]

        def is_frozen() -> bool:
            seen.append(lab.witness.look().of(on_c)[0].last_sent)
            return seen[-1] == seen[-2]

        wait_until_sync(is_frozen, 20.0, what="c's task is frozen", every_s=1.0)
        began = time.monotonic()
        assert c.stop(timeout_s=60.0) == 0
        note("quorum lost: a voter with a frozen task stops after one signal", time.monotonic() - began)


def test_a_survivor_that_lagged_and_a_node_that_knew_more() -> None:
    """c has not received that d claimed a task when the others are lost. For the cluster that c becomes, the task is
    queued; d, which lives through all of it, runs it. It must have ended that before anybody runs it again."""
    with laboratory() as lab:
        for name in ("a", "b"):
            lab.grow(name, cpu=1.0)
        lab.grow("c", voters=3)
        lab.grow("d", voters=3)
        a, b, c, _ = lab.nodes.values()
        endless, wanted = lab.witness.task(600.0, cpu=4.0), lab.witness.task(600.0, cpu=4.0, name="wanted")
        blockers = lab.submit(endless, endless, through=a)
        wait_until_sync(lambda: set(lab.places_of(blockers).values()) == {"c", "d"}, 30.0, what="c and d are full")
        (task_id,) = lab.submit(wanted, through=a)
        wait_until_sync(lambda: lab.revision(c) == lab.revision(a), what="c has heard of the task")
        c.pause("etcd")
        on_d = next(blocker for blocker, place in lab.places_of(blockers).items() if place == "d")
        with a.client() as client:
            client.cancel(on_d)
        wait_until_sync(lambda: lab.places_of([task_id]) == {task_id: "d"}, 30.0, what="d runs the task")
        lab.witness.wait_run(task_id, 1)
        for lost in (a, b, c):
            lost.power_off()
        for lost in (a, b):
            lab.wipe(lost)
        done = _recover(c, "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["queued"] == 1, "c has not heard that the task runs"
        lab.begin(c)
        c.wait_serving()
        with c.client(patience_s=30.0) as client:
            client.cancel(blockers)
        lab.witness.wait_run(task_id, 2, 60.0)
        with c.client() as client:
            client.cancel(task_id)
            client.wait(task_id, timeout_s=30.0)
        runs = lab.witness.look()
        # The claim that c never heard of is counted anew; its fence token is not.
        assert overlaps(runs) + setbacks(runs, epochs=[runs.of(task_id)[0].last_sent]) == []
        # d has heard that what it knew is no more: it goes by what the new cluster says.
        drained = c.cli("drain", "d", "--wait", timeout_s=60.0)
        assert drained.returncode == 0, drained.stderr
