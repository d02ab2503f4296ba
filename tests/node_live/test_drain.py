"""A drain of a real node: gives back or lets finish, holds over a restart, and ends when it is undone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pilfer import Client, PreconditionFailed, Status
from tests.support.node_process import LiveNode, live_node
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node


@pytest.fixture
def node() -> Iterator[LiveNode]:
    with live_node("--name", "here", "--cpu", "2") as started:
        yield started


def is_running(client: Client, task_id: str) -> bool:
    return client.status(task_id).status is Status.RUNNING


def state_of(client: Client) -> str:
    (view,) = client.nodes()
    return view.state


def test_a_drain_gives_back_what_may_run_again_and_holds_over_a_restart(node: LiveNode) -> None:
    with node.client() as client:
        again = client.submit("sleep", "300")
        once = client.submit("sleep", "300", restart_on_node_loss=False)
        wait_until_sync(lambda: is_running(client, again) and is_running(client, once), what="both run")
        client.drain("here")
        wait_until_sync(lambda: client.status(again).status is Status.QUEUED, what="it is given back")
        outcome = client.status(again).attempts[0].outcome
        assert outcome is not None
        assert outcome.detail == "its node was drained"
        assert client.why(again).nodes[0].reasons == ("is draining or stopping: it claims nothing more",)
        assert client.status(once).status is Status.RUNNING, "it may not run a second time"
        client.cancel(once)
        wait_until_sync(lambda: state_of(client) == "drained", what="nothing runs there")
    assert node.stop() == 0
    node.start()
    with node.client() as client:
        wait_until_sync(lambda: state_of(client) == "drained", what="it is drained again")
        why = client.why(again)
        assert why.summary.startswith("waits: no node that could hold it claims now (here is drained)")
        assert client.status(again).attempt == 1
        client.drain(node.host_id[:8], undo=True)
        wait_until_sync(lambda: is_running(client, again), what="it is claimed again")
        assert client.why(again).summary == "runs on here (attempt 2)"


def test_a_drain_that_waits_lets_finish(node: LiveNode) -> None:
    with node.client() as client:
        task_id = client.submit("sh", "-c", "sleep 2; echo done")
        wait_until_sync(lambda: is_running(client, task_id), what="it runs")
        ran = node.cli("drain", "here", "--wait", "--json")
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["state"] == "drained"
        task = client.status(task_id)
        assert (task.status, task.attempt, task.exit_code) == (Status.COMPLETE, 1, 0)


def test_a_living_node_is_not_removed_and_a_large_task_is_explained(node: LiveNode) -> None:
    with node.client() as client:
        with pytest.raises(PreconditionFailed, match="drain it"):
            client.remove("here")
        assert state_of(client) == "ready"
        why = client.why(client.submit("true", cpu=64))
        assert why.summary == "fits nowhere: needs 64 CPUs, the largest node lends 2"
        assert [(of.name, of.fits) for of in why.nodes] == [("here", False)]
