"""Cancel, in every order in which it can meet the task's own course."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pilfer import CancelStep, Client, Status
from tests.node_live.test_recovery import wait_output
from tests.support.node_process import LiveNode, live_node, processes_in
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def node() -> Iterator[LiveNode]:
    with live_node("--cpu", "2") as started:
        yield started


@pytest.fixture
def client(node: LiveNode) -> Iterator[Client]:
    with node.client() as opened:
        yield opened


def test_a_queued_task_is_canceled_at_once_and_never_runs(client: Client) -> None:
    blockers = [client.submit("sleep", "100") for _ in range(2)]
    wait_until_sync(lambda: all(client.status(b).status is Status.RUNNING for b in blockers))
    queued = client.submit("echo", "never")
    assert client.cancel(queued).step is CancelStep.CANCELED
    assert client.cancel(queued).step is CancelStep.ALREADY_ENDED
    client.cancel(blockers)
    client.wait(blockers, timeout_s=30)
    ended = client.status(queued)
    assert (ended.status, ended.attempt) == (Status.CANCELED, 0)


def test_a_running_task_gets_sigterm_and_time_to_tidy_up(client: Client) -> None:
    script = 'trap "echo tidied; exit 3" TERM; echo here; while :; do sleep 0.05; done'
    task_id = client.submit("sh", "-c", script)
    wait_output(client, task_id, b"here")
    assert client.cancel(task_id).step is CancelStep.REQUESTED
    ended = client.wait(task_id, timeout_s=20)
    assert (ended.status, ended.reason, ended.exit_code) == (Status.CANCELED, "canceled", 3)
    assert b"".join(chunk.data for chunk in client.log(task_id, stream="stdout")) == b"here\ntidied\n"


def test_a_task_that_ignores_sigterm_is_killed_after_its_grace(client: Client, node: LiveNode) -> None:
    task_id = client.submit("sh", "-c", 'trap "" TERM; echo here; sleep 300 & while :; do sleep 1; done', grace_s=0.5)
    wait_output(client, task_id, b"here")
    asked = time.monotonic()
    client.cancel(task_id)
    ended = client.wait(task_id, timeout_s=20)
    assert 0.4 < time.monotonic() - asked < 0.5 + 2 + 2
    assert (ended.status, ended.signal) == (Status.CANCELED, 9)
    assert not processes_in(node.cgroups())


def test_cancel_races_completion_and_one_of_them_wins_whole(client: Client) -> None:
    rounds = 40
    seen = set()
    for number in range(rounds):
        task_id = client.submit("true")
        deadline = time.monotonic() + number * 0.0006
        while time.monotonic() < deadline:
            pass
        step = client.cancel(task_id).step
        ended = client.wait(task_id, timeout_s=20)
        assert ended.status in {Status.COMPLETE, Status.CANCELED}
        if step is CancelStep.CANCELED:
            assert ended.status is Status.CANCELED
        if step is CancelStep.ALREADY_ENDED:
            assert ended.status is Status.COMPLETE
        if ended.status is Status.COMPLETE:
            assert (ended.exit_code, ended.reason) == (0, "exited")
        seen.add((step, ended.status))
        assert client.status(task_id) == ended
    assert len(seen) > 1, f"every round came out the same, nothing raced: {seen}"


def test_an_unknown_task_is_said_to_be_unknown(client: Client) -> None:
    missing = "01930000-0000-7000-8000-000000000001"
    assert client.cancel(missing).step is CancelStep.NOT_FOUND
