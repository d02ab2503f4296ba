"""A backup, and a cluster that begins again from it: what was acknowledged before it is there, and runs once more."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilfer import TaskSpec
from tests.support.node_process import LiveNode, live_node
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node


@pytest.fixture
def node() -> Iterator[LiveNode]:
    with live_node("--cpu", "2") as node:
        yield node


def _restore(file: Path, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node", "restore", str(file), "--data-dir", str(directory), *more],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def _backed_up(node: LiveNode, file: Path) -> Path:
    done = node.cli("backup", str(file))
    assert done.returncode == 0, done.stderr
    return file


def test_a_cluster_begins_again_in_an_empty_directory(node: LiveNode, tmp_path: Path) -> None:
    with node.client() as client:
        ended = client.submit(TaskSpec.of("true"))
        client.wait(ended, timeout_s=30.0)
        running = client.submit(TaskSpec.of("sleep", "1000", cpu=2.0))
        wait_until_sync(lambda: client.status(running).status == "running", what="it runs")
        queued = client.submit(TaskSpec.of("sh", "-c", "echo $PILFER_FENCE", cpu=2.0))
        file = _backed_up(node, tmp_path / "backup")
        lost = client.submit(TaskSpec.of("true"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    node.kill()

    plan = _restore(file, tmp_path / "again")
    assert (plan.returncode, "it fits its checksum" in plan.stdout, "Nothing was changed" in plan.stderr) == (
        2, True, True,
    )  # fmt: skip
    assert not (tmp_path / "again").exists()
    done = _restore(file, tmp_path / "again", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {key: told[key] for key in ("tasks", "queued", "running", "before")} == {
        "tasks": 3, "queued": 1, "running": 1, "before": None,
    }  # fmt: skip

    again = LiveNode(tmp_path / "again", "--cpu", "4")
    try:
        again.start()
        with again.client() as client:
            assert client.wait(queued, timeout_s=30.0).status == "complete"
            wait_until_sync(lambda: client.status(running).attempt == 2, what="what ran then runs again")
            assert client.status(ended).outcome == client.status(ended).attempts[0].outcome
            fence = int(b"".join(chunk.data for chunk in client.log(queued)))
        assert fence >> 48 == told["epoch"] > 1
        assert again.cli("status", lost).returncode == 3  # submitted after the backup was made
    finally:
        again.end()


def test_a_host_goes_back_to_its_own_backup(node: LiveNode, tmp_path: Path) -> None:
    with node.client() as client:
        kept = client.submit(TaskSpec.of("true"))
        client.wait(kept, timeout_s=30.0)
        file = _backed_up(node, tmp_path / "backup")
        lost = client.submit(TaskSpec.of("true"))
        client.wait(lost, timeout_s=30.0)
    busy = _restore(file, node.data_dir, "--yes")
    assert (busy.returncode, "is in use by the node with pid" in busy.stderr) == (1, True)
    node.stop()
    done = _restore(file, node.data_dir, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["before"], "member", "wal").is_dir()
    node.start()
    assert node.cli("status", kept).returncode == 0
    assert node.cli("status", lost).returncode == 3


def test_what_is_no_backup_changes_nothing(node: LiveNode, tmp_path: Path) -> None:
    file = _backed_up(node, tmp_path / "backup")
    content = file.read_bytes()
    node.stop()
    before = sorted(path.name for path in (node.data_dir / "etcd").iterdir())
    for name, damaged in {
        "cut": content[:-4096],
        "flipped": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "empty": b"",
        "other": b"x" * 100_000,
    }.items():
        (tmp_path / name).write_bytes(damaged)
        for more in ((), ("--yes",)):
            done = _restore(tmp_path / name, node.data_dir, *more)
            assert (done.returncode, done.stdout) == (1, ""), (name, done)
            assert "cannot be restored: it is" in done.stderr
        assert sorted(path.name for path in (node.data_dir / "etcd").iterdir()) == before
    node.start()


def test_another_clusters_backup_is_refused(node: LiveNode, tmp_path: Path) -> None:
    file = _backed_up(node, tmp_path / "backup")
    with live_node() as other:
        other.stop()
        done = _restore(file, other.data_dir, "--yes")
        assert done.returncode == 1
        assert "is of cluster" in done.stderr
        other.start()


def test_a_backup_replaces_nothing_unasked_and_leaves_nothing_half(node: LiveNode, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_text("precious")
    refused = node.cli("backup", str(file))
    assert (refused.returncode, file.read_text()) == (2, "precious")
    assert node.cli("backup", str(file), "--force").returncode == 0
    assert file.stat().st_size > 10_000
    assert node.cli("backup", str(tmp_path / "no" / "such" / "place")).returncode == 1
    node.kill()
    failed = node.cli("backup", str(tmp_path / "never"), timeout_s=60.0)
    assert failed.returncode == 5
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]


def _recover(node: LiveNode) -> list[str]:
    return [sys.executable, "-m", "node", "recover", "--yes", "--data-dir", str(node.data_dir)]


def test_a_recovery_that_is_interrupted_has_changed_nothing_and_may_be_repeated(node: LiveNode) -> None:
    with node.client() as client:
        kept = client.submit(TaskSpec.of("sh", "-c", "echo $PILFER_FENCE"))
        client.wait(kept, timeout_s=30.0)
    node.kill()  # its lease lives on for some seconds
    data = node.data_dir / "etcd" / "data"
    with subprocess.Popen(_recover(node), stderr=subprocess.PIPE, text=True) as recovering:
        assert recovering.stderr is not None
        said = next(line for line in recovering.stderr if "waiting until the leases of 1 nodes" in line)
        recovering.kill()
    assert said
    node.start()
    with node.client() as client:
        fence = int(b"".join(chunk.data for chunk in client.log(kept)))
        same = client.submit(TaskSpec.of("sh", "-c", "echo $PILFER_FENCE"))
        client.wait(same, timeout_s=30.0)
        assert int(b"".join(chunk.data for chunk in client.log(same))) >> 48 == fence >> 48 == 1
    node.stop()

    done = subprocess.run([*_recover(node), "--json"], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sorted(path.name for path in data.parent.iterdir() if path.is_dir()) == ["data", Path(told["before"]).name]
    node.start()
    with node.client() as client:
        assert client.status(kept).status == "complete"
        after = client.submit(TaskSpec.of("sh", "-c", "echo $PILFER_FENCE"))
        client.wait(after, timeout_s=30.0)
        assert int(b"".join(chunk.data for chunk in client.log(after))) >> 48 == told["epoch"] > 1
