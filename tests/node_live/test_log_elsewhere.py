"""Logs through a node that did not run the task: two whole nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node_process import LiveNode
from tests.support.two_nodes import two_nodes
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

#: From kill -9 of a node until its key is gone and its tasks run elsewhere or again, with room for a busy machine.
GONE_S = 30.0


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[LiveNode, LiveNode]]:
    """One that is asked and too small for these tasks, and one that runs them."""
    with two_nodes(tmp_path) as two:
        yield two


def submit(node: LiveNode, script: str) -> str:
    ran = node.cli("submit", "--cpu", "2", "--", "sh", "-c", script)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def status(node: LiveNode, task_id: str) -> dict[str, Any]:
    ran = node.cli("status", "--json", task_id)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_the_exact_bytes_come_from_the_host_that_has_them(two: tuple[LiveNode, LiveNode]) -> None:
    asked, runs = two
    task_id = submit(asked, "seq 100000; echo complaint >&2")
    followed = asked.cli("log", "-f", task_id)
    assert (followed.returncode, followed.stderr) == (0, "complaint\n")
    assert followed.stdout == "".join(f"{number}\n" for number in range(1, 100_001))
    assert asked.cli("log", "--tail", "1", "--stream", "stdout", task_id).stdout == "100000\n"

    runs.kill()  # and it stays away
    wait_until_sync(lambda: asked.cli("log", task_id).returncode == 1, GONE_S, what="its host is known to be gone")
    gone = asked.cli("log", task_id)
    assert gone.stdout == ""
    assert f"host runs ({runs.host_id})" in gone.stderr
    assert "no node since 20" in gone.stderr
    runs.start()
    assert asked.cli("log", "--tail", "1", "--stream", "stdout", task_id).stdout == "100000\n"


def test_a_follower_goes_on_with_the_next_attempt_and_is_told(two: tuple[LiveNode, LiveNode], tmp_path: Path) -> None:
    """The node that runs the task is killed and started again: the first attempt's last bytes are on its disk."""
    asked, runs = two
    task_id = submit(asked, "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done")
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [sys.executable, "-m", "node", "log", "-f", task_id, "--address", asked.address]
        follower = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
        wait_until_sync(lambda: b"line 2\n" in out.read_bytes(), GONE_S, what="the first lines have come")
        runs.kill()
        runs.start()
        assert follower.wait(120) == 0
    finally:
        follower.kill()
        follower.wait()
    assert status(asked, task_id)["attempt"] == 2
    assert err.read_text() == "node: attempt 2 begins on runs\n"
    whole = [f"line {number}" for number in range(1, 9)]
    lines = out.read_text().splitlines()
    assert lines[-8:] == whole
    first = asked.cli("log", "--attempt", "1", task_id).stdout.splitlines()
    assert lines[:-8] == first == whole[: len(first)]
    assert len(first) >= 2
