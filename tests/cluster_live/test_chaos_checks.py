"""The checks of a chaos run, on a real cluster that somebody harms on purpose: each harm is told by its name.

(The judgements themselves, on forged observations: tests/unit/test_chaos_*.py.)
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.checks import Checks
from tests.chaos.load import FLAGS, Load
from tests.support.lab import Lab, LabNode, laboratory
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]

MANY = 30


@pytest.fixture
def lab() -> Iterator[Lab]:
    with laboratory() as lab:
        lab.grow("a", flags=FLAGS)
        yield lab


def running(load: Load, node: LabNode, *kinds: str) -> str:
    """A task of one of these kinds that runs, by its log's name or its first beat."""
    found: list[str] = []

    def look() -> bool:
        for task_id, entry in load.ledger.open().items():
            if entry.act.kind in kinds:
                is_heard = bool(load.lab.witness.look().of(task_id))
                if is_heard or log_of(node, task_id).exists():
                    found.append(task_id)
                    return True
        return False

    wait_until_sync(look, 60.0, what=f"a task of {kinds} runs")
    return found[0]


def log_of(node: LabNode, task_id: str) -> Path:
    return node.data_dir / "logs" / task_id[-2:] / f"{task_id}.1.stdout"


def forge_a_log(load: Load, node: LabNode) -> None:
    with log_of(node, running(load, node, "chatty")).open("r+b") as file:
        file.write(b"X")


def beat_beside(load: Load, node: LabNode) -> None:
    """A second run of a task, which its node knows nothing of."""
    witness = load.lab.witness
    (run,) = witness.runs.of(running(load, node, "middle", "long", "once", "twice"))
    subprocess.run(
        [witness.program, "task", witness.socket, "10000", "300"], check=True,
        env=os.environ | {"PILFER_TASK_ID": run.task_id, "PILFER_ATTEMPT": "2", "PILFER_FENCE": f"{run.fence + 1}"}
        | {"PILFER_NODE_ID": run.node_id},
    )  # fmt: skip


def delete_a_record(load: Load, node: LabNode) -> None:
    """As by hand: the record alone."""
    task_id = next(task_id for task_id in load.acknowledged if load.ledger.has_ended(task_id))
    assert load.lab.etcdctl(node, "del", f"/task/{task_id}").returncode == 0


def test_what_is_harmed_on_purpose_is_found(lab: Lab) -> None:
    load = Load(lab, random.Random(1), print)
    checks = Checks(lab, load, print)
    node = lab.first
    checks.start()
    load.start()
    wait_until_sync(lambda: load.ledger.ended_count > MANY, 60.0, what="tasks end")
    assert checks.flaws_so_far() == []
    delete_a_record(load, node)
    forge_a_log(load, node)
    beat_beside(load, node)
    load.stop()
    wait_until_sync(lambda: not load.open, 90.0, what="every task ends")
    flaws = checks.finish()
    told = {flaw.partition(":")[0].partition(" at revision")[0] for flaw in flaws}
    assert told >= {"StatusAgreesWithRecord", "LogIsWhatWasWritten", "OneRunAtATime"}, flaws
    assert not any(flaw.startswith("the instrument") for flaw in flaws), flaws
