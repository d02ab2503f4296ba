"""The client with the addresses of two whole nodes: the one that it talks to dies or freezes, and no one sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import pilfer
from tests.support.aside import Aside
from tests.support.node_process import LiveNode
from tests.support.two_nodes import two_nodes
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

#: A busy machine may take longer to bring a node back than the client's default patience.
PATIENCE_S = 60.0
SMALL = pilfer.TaskSpec("true", requirements=pilfer.Requirements(cpu=0.05))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[LiveNode, LiveNode]]:
    with two_nodes(tmp_path) as two:
        yield two


def addresses(*nodes: LiveNode) -> str:
    return ",".join(node.address for node in nodes)


def test_a_submit_and_a_wait_go_on_at_the_other_node(nodes: tuple[LiveNode, LiveNode]) -> None:
    other, dying = nodes
    with pilfer.Client(addresses(dying, other), patience_s=PATIENCE_S) as client:

        def on_progress(stored: int) -> None:
            if stored == 200:
                dying.kill()

        ids = client.submit_many([SMALL] * 400, batch=50, on_progress=on_progress)
        dying.start()
        tasks = client.wait(ids, timeout_s=120)
        assert [task.id for task in tasks] == ids
        assert all(task.succeeded for task in tasks)
        assert {task.id for task in client.list()} >= {*ids}
        assert len([*client.list()]) == len({task.id for task in client.list()})


def test_a_wait_and_a_followed_log_outlive_the_node_that_runs_the_task(
    nodes: tuple[LiveNode, LiveNode], tmp_path: Path
) -> None:
    """They go through the node that is killed; it is started again, and runs the task anew: it fits nowhere else."""
    other, dying = nodes
    every = addresses(dying, other)
    out, err = tmp_path / "out", tmp_path / "err"
    with pilfer.Client(every, patience_s=PATIENCE_S) as client:
        task_id = client.submit("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.4; done", cpu=2.0)
        command = [sys.executable, "-m", "node", "log", "-f", task_id]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            follower = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, env=os.environ | {"PILFER_ADDRESS": every}
            )
        try:

            def hurt() -> None:
                wait_until_sync(lambda: b"line 2\n" in out.read_bytes(), 60, what="the first lines have come")
                dying.kill()
                dying.start()

            with Aside(hurt):
                task = client.wait(task_id, timeout_s=120)
            assert follower.wait(60) == 0
        finally:
            follower.kill()
            follower.wait()
        assert (task.succeeded, task.attempt) == (True, 2)
        whole = [f"line {number}" for number in range(1, 9)]
        lines = out.read_text().splitlines()
        first = b"".join(chunk.data for chunk in client.log(task_id, attempt=1)).decode().splitlines()
        assert len(first) >= 2
        assert lines == first + whole
        assert err.read_text() == "node: attempt 2 begins on runs\n"


def test_a_node_that_is_frozen_is_left(nodes: tuple[LiveNode, LiveNode]) -> None:
    """The task runs on the other node; its log is followed through the one that freezes."""
    other, freezing = nodes
    with pilfer.Client(addresses(freezing, other), patience_s=PATIENCE_S) as client:
        client.drain("runs")
        task_id = client.submit("sh", "-c", "for i in 1 2 3 4 5 6; do echo line $i; sleep 2; done", cpu=1.0)
        with closing(client.log(task_id, follow=True, stream="stdout")) as chunks:
            text = next(chunks).data
            os.kill(freezing.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                assert client.status(task_id).id == task_id
                assert time.monotonic() - began < 30, "not the whole patience"
                text += b"".join(chunk.data for chunk in chunks)
            finally:
                os.kill(freezing.pid, signal.SIGCONT)
        assert text == b"".join(b"line %d\n" % number for number in range(1, 7))
        client.drain("runs", undo=True)
