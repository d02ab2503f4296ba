"""Sockets: of the machine, of the node and of etcd; and what tasks hand to each other through one that they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolation import process
from isolation.client import SpawnerConfig
from isolation.spec import BindMount
from tests.hostile.harness import Hostile, Report
from tests.isolation_live.conftest import running, text
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


async def _third_task(hostile: Hostile, place: Path) -> tuple[Report, Report]:
    """What the taker and the victim say, where the giver has ended before the victim began."""
    mount = (BindMount(str(place), "/shared", read_only=False),)
    taker, out, err = await hostile.runner.launch(
        hostile.spec("passing", "take", "/shared/socket", "/shared/go", mounts=mount)
    )
    await wait_until(lambda: "door: open" in text(out), what=f"the door is open: {text(err)}")
    await hostile.run("passing", "give", "/shared/socket", mounts=mount)
    await wait_until(lambda: "took: " in text(out), what="the taker has them")
    victim, victims_out, victims_err = await hostile.runner.launch(
        hostile.spec("victim", "/shared/ready", "/shared/done", mounts=mount)
    )
    await wait_until((place / "ready").exists, what=f"the victim is ready: {text(victims_err)}")
    (place / "go").touch()
    await taker.wait()
    (place / "done").touch()
    await victim.wait()
    assert "write output" in text(out), text(err)
    return _said(text(out)), _said(text(victims_out))


def _said(words: str) -> Report:
    return Report(dict(line.split(": ", 1) for line in words.splitlines()), words, "")


async def test_what_one_task_hands_on_leads_to_no_third_one(hostile: Hostile, place: Path) -> None:
    """The scratch directory and the network namespace of a task may be another's a moment later; whoever was given a
    descriptor of them must not reach that one."""
    taker, victim = await _third_task(hostile, place)
    assert taker.succeeded <= {"write output"}, taker.said
    assert victim.said == {"scratch": "secret", "served": "nobody", "connected": "nobody"}


#: Both are used again whatever became of them.
_CARELESS = (
    "import sys; sys.path[:0] = sys.argv[3:]; from isolation import launch, namespaces; "
    "launch.Launcher._can_meet_others = lambda *_: False; namespaces.NetworkPool._is_as_new = lambda *_: True; "
    "from isolation.spawner import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


async def test_that_it_would_lead_there_otherwise(
    config: SpawnerConfig, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PROGRAM", _CARELESS)
    async for runner in running(config):
        taker, victim = await _third_task(Hostile(runner), place)
    assert taker.succeeded >= {"list scratch", "accept", "connect"}, taker.said
    assert victim.said == {"scratch": "secret", "served": "SUCCEEDED", "connected": "SUCCEEDED"}
