"""A whole node of an ordinary user, with nothing but a directory: it runs tasks, and says what it does not enforce."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import psutil
import pytest

from etcd.binary import find_etcd
from pilfer import Status, TaskSpec
from tests.node_live.test_recovery import wait_output, wait_running
from tests.support import ordinary_user
from tests.support.node_process import LiveNode, require_node
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node


@pytest.fixture
def node() -> Iterator[LiveNode]:
    require_node()
    home = ordinary_user.directory()
    # Where the lock of the host id lies, which root's tests would look for in root's place.
    environment = ordinary_user.environment(home) | {"XDG_RUNTIME_DIR": str(home)}
    etcd = find_etcd(None).path.parent
    node = LiveNode(home / "node", "--cpu", "2", prefix=ordinary_user.prefix(etcd), environment=environment)
    try:
        node.start()
        yield node
    except BaseException:
        print(node.tail())
        raise
    finally:
        node.end()
        shutil.rmtree(home)


def task_processes(node: LiveNode) -> list[psutil.Process]:
    """All below its spawner."""
    return node.child("spawner").children(recursive=True)


def test_tasks_run_and_end_as_they_do_for_root(node: LiveNode) -> None:
    assert {child.uids().real for child in psutil.Process(node.pid).children(recursive=True)} == {ordinary_user.UID}
    with node.client() as client:
        script = "id -u; pwd; ls -A / /home /root | grep -c node.sock; cat; exit 3"
        done = client.wait(client.submit("sh", "-c", script, stdin=b"input"))
        assert (done.status, done.exit_code) == (Status.COMPLETE, 3)
        log = b"".join(chunk.data for chunk in client.log(done.id))
        assert log == f"{ordinary_user.UID}\n/home/task\n0\ninput".encode()
        many = client.submit_many([TaskSpec("true") for _ in range(50)])
        assert {task.exit_code for task in client.wait(many)} == {0}


def test_a_canceled_task_is_gone(node: LiveNode) -> None:
    with node.client() as client:
        task_id = client.submit("sh", "-c", "trap '' TERM; echo here; while :; do sleep 1; done", grace_s=0.2)
        wait_output(client, task_id, b"here")
        client.cancel(task_id)
        assert client.wait(task_id).status is Status.CANCELED
        wait_until_sync(lambda: not task_processes(node), what="no process of it is left")


def test_a_killed_node_takes_its_tasks_along_and_comes_back(node: LiveNode) -> None:
    with node.client() as client:
        task_id = client.submit("sh", "-c", "(setsid sleep 300 &); echo here; sleep 300")
        wait_output(client, task_id, b"here")
        lost = task_processes(node)
        assert len(lost) >= 3
        node.kill()
        wait_until_sync(lambda: not any(process.is_running() for process in lost), 5, what="its tasks are gone")
    node.start()
    with node.client() as client:
        wait_running(client, task_id, attempt=2)
        wait_output(client, task_id, b"here")
        client.cancel(task_id)
        assert client.wait(task_id).status is Status.CANCELED


def test_a_task_that_demands_its_limits_waits_for_another_node(node: LiveNode) -> None:
    with node.client() as client:
        demanding = client.submit("true", require_limits=True)
        content = client.submit("true")
        assert client.wait(content).exit_code == 0
        assert client.status(demanding).status is Status.QUEUED
        (here,) = client.why(demanding).nodes
        assert not here.fits
        assert "memory" in " ".join(here.reasons)


def test_what_is_not_enforced_is_said(node: LiveNode) -> None:
    wanted = ["a user of its own", "cpu limits", "memory limits", "disk io limits", "freezing", "exact usage"]
    row = json.loads(node.cli("nodes", "--json").stdout)
    assert [words for words in wanted if not any(said.startswith(words) for said in row["not_enforced"])] == []
    shown = node.cli("nodes")
    assert (shown.stdout + shown.stderr).count("does not enforce") == len(row["not_enforced"])
    log = node.log.read_text()
    assert all(f"not enforced on this host: {words}" in log for words in wanted)
