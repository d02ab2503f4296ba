"""Death and return of one node and of each of its processes: nothing acknowledged is lost, nothing old lives on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from pilfer import Client, Status, Task
from tests.support.node_process import LiveNode, live_node, processes_in
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node

#: From the start of a node to its line on stdout, after any death (the issue: within 3 s). Twice that, for a machine
#: that runs other tests.
RESTART_MAX_S = 6.0


def wait_running(client: Client, task_id: str, attempt: int = 1) -> Task:
    """The task once its newest attempt runs. (Its record says so from the claim on; its output from its start.)"""
    found: list[Task] = []

    def runs() -> bool:
        found[:] = [client.status(task_id)]
        return found[0].status is Status.RUNNING and found[0].attempt >= attempt

    wait_until_sync(runs, what=f"task {task_id} runs attempt {attempt}")
    return found[0]


def wait_output(client: Client, task_id: str, wanted: bytes) -> None:
    wait_until_sync(
        lambda: wanted in b"".join(chunk.data for chunk in client.log(task_id)), what=f"{task_id} writes {wanted!r}"
    )


def sleeper(client: Client, **options: Any) -> str:
    """A task that says so when it starts, and then sleeps."""
    return client.submit("sh", "-c", "echo here; sleep 300", **options)


def kill_node(node: LiveNode) -> None:
    node.kill()


def kill_all(node: LiveNode) -> None:
    victims = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    assert node.process is not None
    node.process.wait(10)
    node._close_pipe()


@pytest.mark.parametrize("kill", [kill_node, kill_all])
def test_a_killed_node_comes_back_with_every_task(kill: Callable[[LiveNode], None]) -> None:
    with live_node("--cpu", "2") as node:
        with node.client() as client:
            done = client.submit("sh", "-c", "echo kept")
            client.wait(done)
            running = [sleeper(client), sleeper(client)]
            for task_id in running:
                wait_output(client, task_id, b"here")
            queued = [client.submit("true") for _ in range(20)]
        pids = processes_in(node.cgroups())
        assert pids
        kill(node)
        killed_at = time.monotonic()
        wait_until_sync(lambda: not any(map(psutil.pid_exists, pids)), 5, what="task processes die with their node")
        gone_after_s = time.monotonic() - killed_at
        started = time.monotonic()
        node.start()
        assert time.monotonic() - started < RESTART_MAX_S
        with node.client() as client:
            assert client.status(done).exit_code == 0
            assert b"".join(chunk.data for chunk in client.log(done)) == b"kept\n"
            for task_id in running:
                again = wait_running(client, task_id, attempt=2)
                assert [a.outcome.reason for a in again.attempts[:1] if a.outcome] == ["node_lost"]
            client.cancel(running)
            assert all(task.exit_code == 0 for task in client.wait(queued, timeout_s=30))
            assert {task.status for task in client.wait(running, timeout_s=30)} == {Status.CANCELED}
        assert gone_after_s < 3


def test_a_stopped_spawner_of_a_killed_node_runs_nothing_beside_the_next() -> None:
    """It does not see that its node is gone: the next start ends it before it gives its tasks to others. The lease is
    long, so that nothing but the start can have ended them."""
    with live_node("--cpu", "1", "--lease-ttl", "60s") as node:
        with node.client() as client:
            task_id = sleeper(client)
            wait_output(client, task_id, b"here")
        pids = processes_in(node.cgroups())
        spawner = node.child("spawner")
        spawner.suspend()
        try:
            node.kill()
            assert all(map(_is_alive, pids))  # so that what follows means something
            node.start()
            assert not any(map(_is_alive, [spawner.pid, *pids]))
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                spawner.resume()
        with node.client() as client:
            again = wait_running(client, task_id, attempt=2)
            assert [a.outcome.reason for a in again.attempts[:1] if a.outcome] == ["node_lost"]
            client.cancel(task_id)
            client.wait(task_id, timeout_s=30)


def test_sigterm_gives_tasks_back_and_exits_with_zero() -> None:
    with live_node("--cpu", "1") as node:
        with node.client() as client:
            task_id = sleeper(client)
            wait_output(client, task_id, b"here")
        assert node.stop() == 0
        assert not processes_in(node.cgroups())
        assert not (node.data_dir / "node.sock").exists()
        node.start()
        with node.client() as client:
            again = wait_running(client, task_id, attempt=2)
            assert again.attempts[0].outcome is not None
            assert again.attempts[0].outcome.reason == "given_back"
            assert again.attempts[0].node_id != again.attempts[1].node_id
            client.cancel(task_id)
            client.wait(task_id, timeout_s=30)


def test_a_task_that_may_not_be_restarted_is_waited_for_and_then_failed() -> None:
    with live_node("--cpu", "2") as node:
        with node.client() as client:
            short = client.submit("sh", "-c", "echo here; sleep 2", restart_on_node_loss=False)
            long = sleeper(client, max_attempts=1)
            for task_id in (short, long):
                wait_output(client, task_id, b"here")
        assert node.stop() == 0
        node.start()
        with node.client() as client:
            assert client.status(short).exit_code == 0
            failed = client.status(long)
            assert failed.status is Status.FAILED
            assert failed.outcome is not None
            assert "attempts are used up" in failed.outcome.detail


def test_etcd_killed_the_node_lives_on_and_so_do_its_tasks() -> None:
    with live_node("--cpu", "2") as node:
        with node.client() as client:
            task_id = client.submit("sh", "-c", "echo here; sleep 4; echo end")
            wait_output(client, task_id, b"here")
            before = node.child("etcd").pid
            os.kill(before, signal.SIGKILL)
            # Repeated by the client until a node takes it; the id makes repeating harmless.
            started = time.monotonic()
            assert client.wait(client.submit("true"), timeout_s=20).exit_code == 0
            assert time.monotonic() - started < 10
            assert node.child("etcd").pid != before
            ended = client.wait(task_id, timeout_s=30)
            assert (ended.exit_code, ended.attempt) == (0, 1)
            assert b"".join(chunk.data for chunk in client.log(task_id)) == b"here\nend\n"
        assert "died" in node.tail(200)


def test_spawner_killed_its_tasks_run_again() -> None:
    with live_node("--cpu", "1") as node, node.client() as client:
        task_id = sleeper(client)
        wait_output(client, task_id, b"here")
        pids = processes_in(node.cgroups())
        os.kill(node.child("spawner").pid, signal.SIGKILL)
        wait_until_sync(lambda: not any(map(psutil.pid_exists, pids)), 5, what="its processes are gone")
        again = wait_running(client, task_id, attempt=2)
        assert again.attempts[0].outcome is not None
        assert again.attempts[0].outcome.reason == "given_back"
        client.cancel(task_id)
        assert client.wait(task_id, timeout_s=30).status is Status.CANCELED
        assert client.wait(client.submit("true"), timeout_s=30).exit_code == 0


def test_etcd_frozen_past_the_lease_the_task_never_runs_twice_at_once() -> None:
    with live_node("--cpu", "1", "--lease-ttl", "2s") as node, node.client() as client:
        # Writes a line every 20 ms: who it is and when.
        beat = 'while :; do echo "$PILFER_ATTEMPT $(date +%s%N)"; sleep 0.02; done'
        task_id = client.submit("sh", "-c", beat)
        wait_output(client, task_id, b"1 ")
        etcd = node.child("etcd")
        etcd.suspend()
        try:
            frozen_for_s = 5.0
            deadline = time.monotonic() + frozen_for_s
            wait_until_sync(lambda: time.monotonic() > deadline, frozen_for_s + 5)
        finally:
            etcd.resume()
        wait_until_sync(lambda: any(view.state == "ready" for view in client.nodes()), 30, what="it has a lease again")
        wait_until_sync(lambda: _is_beating(node, task_id), 30, what="the task beats again")
        client.cancel(task_id)
        attempts = client.wait(task_id, timeout_s=30).attempt
        beats = {n: _beats(node, task_id, n) for n in range(1, attempts + 1)}
        # While etcd was frozen nothing beat, from at most TTL on.
        moments = sorted(beat for some in beats.values() for beat in some)
        gaps = [later - earlier for earlier, later in pairwise(moments)]
        assert max(gaps) > (frozen_for_s - 2.0) * 1e9
        for n in range(1, attempts):
            if beats[n] and beats[n + 1]:
                assert max(beats[n]) < min(beats[n + 1])


def _is_alive(pid: int) -> bool:
    """Whether it may take another step: an orphan that nobody has reaped yet may not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _beats(node: LiveNode, task_id: str, attempt: int) -> list[int]:
    file = node.data_dir / "logs" / task_id[-2:] / f"{task_id}.{attempt}.stdout"
    lines = file.read_text().splitlines() if file.exists() else []
    return [int(line.split()[1]) for line in lines if len(line.split()) == 2]


def _is_beating(node: LiveNode, task_id: str) -> bool:
    newest = max((beats[-1] for n in (1, 2, 3) if (beats := _beats(node, task_id, n))), default=0)
    return time.time_ns() - newest < 200_000_000


def test_a_data_directory_in_use_is_refused() -> None:
    with live_node() as node:
        second = subprocess.run(
            [sys.executable, "-m", "node", "start", "--data-dir", str(node.data_dir)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert f"pid {node.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert node.cli("run", "--", "echo", "still here").stdout == "still here\n"


def test_a_copied_data_directory_does_its_living_original_no_harm(tmp_path: Path) -> None:
    with live_node("--cpu", "1") as node, node.client() as client:
        task_id = sleeper(client)
        wait_output(client, task_id, b"here")
        (before,) = client.nodes()
        pids = processes_in(node.cgroups())
        shutil.copytree(node.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock", "scratch"))
        second = subprocess.run(
            [sys.executable, "-m", "node", "start", "--data-dir", str(tmp_path / "copy")],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert "was the data directory copied?" in second.stderr
        assert f"pid {node.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        (after,) = client.nodes()
        assert (after.id, after.state) == (before.id, "ready")
        assert processes_in(node.cgroups()) == pids
        client.cancel(task_id)
        assert client.wait(task_id, timeout_s=30).attempt == 1


def test_a_copy_on_another_machine_does_not_start_its_member_of_etcd(tmp_path: Path) -> None:
    """Another machine has another /run, in which no lock of the original lies."""
    elsewhere = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh")
    with live_node("--cpu", "1", "--lease-ttl", "2s", "--listen", "127.0.0.2:0") as node, node.client() as client:
        task_id = sleeper(client)
        wait_output(client, task_id, b"here")
        (before,) = client.nodes()
        pids = processes_in(node.cgroups())
        shutil.copytree(node.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock", "scratch"))
        copy = LiveNode(tmp_path / "copy", "--listen", "127.0.0.3:0", prefix=elsewhere)
        copy.begin()
        try:
            assert copy.process is not None
            assert copy.process.wait(90) == 1
        finally:
            copy.end()
        assert "was the data directory copied?" in copy.tail()
        assert f"it answers at {before.address}" in copy.tail()
        assert "etcd" not in copy.tail()
        (after,) = client.nodes()
        assert (after.id, after.state) == (before.id, "ready")
        assert processes_in(node.cgroups()) == pids
        client.cancel(task_id)
        assert client.wait(task_id, timeout_s=30).attempt == 1


def test_an_address_in_use_is_refused(tmp_path: Path) -> None:
    with live_node("--listen", "127.0.0.1:0") as node:
        (view,) = node.client().nodes()
        assert not view.address.endswith(":0")
        second = subprocess.run(
            [sys.executable, "-m", "node", "start", "--data-dir", str(tmp_path / "other"), "--listen", view.address],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert view.address in second.stderr
        assert "Traceback" not in second.stderr


def test_a_data_directory_with_a_long_path_serves() -> None:
    with live_node() as node:
        assert node.stop() == 0
        long = node.data_dir.parent / ("d" * 120) / "node"
        long.parent.mkdir()
        node.data_dir.rename(long)
        node.data_dir = long
        node.start()
        with node.client() as client:
            assert client.wait(client.submit("true"), timeout_s=30).exit_code == 0
