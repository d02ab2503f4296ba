"""What a task may leave on a node's disks, as its user sees it: through the command line, end to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pilfer.types import Reason, Task
from tests.support.node_process import LiveNode, live_node

pytestmark = pytest.mark.node

MIB = 1 << 20


@pytest.fixture(scope="module")
def node() -> Iterator[LiveNode]:
    with live_node("--cpu", "2", "--log-limit", "2M", "--scratch-limit", "32M") as node:
        yield node


def _run(node: LiveNode, *arguments: str) -> Task:
    """Submits a task and waits for its end."""
    submitted = node.cli("submit", *arguments)
    assert submitted.returncode == 0, submitted.stderr
    with node.client() as client:
        return client.wait(submitted.stdout.strip(), timeout_s=60.0)


def test_long_output_keeps_its_beginning_and_end_and_says_what_is_missing(node: LiveNode) -> None:
    script = "echo begin; head -c 12000000 /dev/zero | tr '\\0' x; echo; echo end"
    task = _run(node, "--", "sh", "-c", script)
    shown = node.cli("log", task.id)
    assert shown.returncode == 0
    assert shown.stdout.startswith("begin\nxxx")
    assert shown.stdout.endswith("xxx\nend\n")
    assert len(shown.stdout) <= 2 * MIB + 1024
    assert "\0" not in shown.stdout
    assert "of stdout are missing here" in shown.stderr
    with node.client() as client:
        missing = sum(chunk.missing_bytes for chunk in client.log(task.id))
    assert missing + len(shown.stdout) == len("begin\n\nend\n") + 12_000_000


def test_a_scratch_directory_that_is_too_full_ends_its_task(node: LiveNode) -> None:
    task = _run(node, "--timeout", "50s", "--", "sh", "-c", "head -c 200000000 /dev/zero > full; sleep 60")
    assert task.outcome is not None
    assert task.outcome.reason is Reason.OUT_OF_SCRATCH, task
    assert "out of scratch" in node.cli("list").stdout


def test_a_task_may_ask_for_less_and_not_for_more(node: LiveNode) -> None:
    task = _run(node, "--scratch", "4M", "--", "sh", "-c", "head -c 20000000 /dev/zero > full; sleep 60")
    assert task.outcome is not None
    assert task.outcome.reason is Reason.OUT_OF_SCRATCH, task
    waits = node.cli("submit", "--scratch", "1G", "--", "true").stdout.strip()
    why = node.cli("why", waits)
    assert "needs 1 GiB of scratch, the node allows 32 MiB to each task" in why.stdout
    node.cli("cancel", waits)


def test_limits_can_be_demanded_where_they_are_enforced(node: LiveNode) -> None:
    done = node.cli("run", "--require-limits", "--memory", "64M", "--", "echo", "held")
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr
