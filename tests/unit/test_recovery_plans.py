"""`node recover` and `node restore` before they do anything: what they tell, what they refuse, and that they leave no
trace. What they do is in `node_live/test_backup.py`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from node.cli import failures
from node.datadir import DataDir
from node.joining.cluster_memory import ClusterMemory, Contacts

CLUSTER = "00000000-0000-4000-8000-00000000c000"
VOTERS = ("192.0.2.1:7401", "192.0.2.2:7401")
WRITTEN_AT = 1_700_000_000
WRITTEN = "2023-11-14T22:13:20.000000Z"


def _database(pages: int = 8) -> bytes:
    """As much of etcd's database as tells that it is one."""
    head = bytes(16) + (0xED0CDAED).to_bytes(4, "little")
    return head + bytes(range(256)) * (pages * 16) + bytes(512 - len(head))


def _backup(database: bytes) -> bytes:
    return database + hashlib.sha256(database).digest()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    file = tmp_path / "backup"
    file.write_bytes(_backup(_database()))
    os.utime(file, (WRITTEN_AT, WRITTEN_AT))
    return file


@pytest.fixture
def voter(tmp_path: Path) -> Path:
    """The data directory of a host that had a vote, whose node is stopped."""
    path = tmp_path / "voter"
    DataDir.open(path).close()
    ClusterMemory(path, cluster_id=CLUSTER, name="a", is_founder=True, contacts=Contacts(VOTERS)).save()
    wal = path / "etcd" / "data" / "member" / "wal"
    wal.mkdir(parents=True)
    (wal / "0.wal").write_bytes(bytes(1000))
    os.utime(wal / "0.wal", (WRITTEN_AT, WRITTEN_AT))
    return path


def _tree(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is below, with what a write would change."""
    return {
        str(below): (below.stat().st_mode, below.stat().st_mtime_ns, below.read_bytes() if below.is_file() else b"")
        for below in [path, *sorted(path.rglob("*"))]
        if below.exists()
    }


def _plan(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """What is told for programs, and for people."""
    assert failures.run([*arguments, "--json"]) == 2
    told = capfd.readouterr()
    found = json.loads(told.out)
    assert isinstance(found, dict)
    return found, told.err


def test_what_a_recovery_would_do_is_told_to_programs_too(voter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = _tree(voter)
    found, words = _plan(capfd, "recover", "--data-dir", str(voter))
    assert found == {
        "cluster_id": CLUSTER,
        "data": f"{voter}/etcd/data",
        "size_bytes": 1000,
        "written_at": WRITTEN,
        "voters": list(VOTERS),
        "before": f"{voter}/etcd/data.before-recover-*",
    }
    assert "With --yes: " in words
    assert "Nothing was changed." in words
    assert _tree(voter) == before

    assert failures.run(["recover", "--data-dir", str(voter)]) == 2
    told = capfd.readouterr().out
    assert CLUSTER in told
    assert "last written 2023-11-14 22:13:20 UTC; kept as data.before-recover-*" in told


def test_what_a_restore_would_do_is_told_to_programs_too(
    voter: Path, backup: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = _tree(voter)
    found, words = _plan(capfd, "restore", str(backup), "--data-dir", str(voter))
    assert found == {
        "cluster_id": CLUSTER,
        "file": str(backup),
        "size_bytes": backup.stat().st_size,
        "written_at": WRITTEN,
        "data": f"{voter}/etcd/data",
        "before": f"{voter}/etcd/data.before-restore-*",
    }
    assert f"With --yes: {backup} becomes the data of {voter}, which belongs to cluster {CLUSTER}." in words
    assert "Nothing was changed." in words
    assert _tree(voter) == before

    assert failures.run(["restore", str(backup), "--data-dir", str(voter)]) == 2
    told = capfd.readouterr().out
    assert f"{backup}, 32.5K, last written 2023-11-14 22:13:20 UTC" in told
    assert "kept as data.before-restore-*" in told


@pytest.mark.parametrize("is_there", [False, True])
def test_the_plan_of_a_restore_leaves_an_empty_directory_as_it_is(
    tmp_path: Path, backup: Path, capfd: pytest.CaptureFixture[str], is_there: bool
) -> None:
    place = tmp_path / "place"
    if is_there:
        place.mkdir(mode=0o755)
    before = _tree(place)
    found, words = _plan(capfd, "restore", str(backup), "--data-dir", str(place))
    assert (found["cluster_id"], found["before"]) == (None, None)
    assert "which belongs to no cluster yet" in words
    assert _tree(place) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"x" * 100_000, "it is no backup"),
        (b"\x1f\x8b", "it is no backup"),
        (_database(), "it is cut off, or a copy of etcd's own files: it does not end with its checksum"),
        (_backup(_database())[:-1], "it is cut off"),
        (_backup(_database())[:40], "it is cut off"),
        (_backup(_database())[:-4096], "it is damaged or cut off"),
        (_database() + bytes(32), "it is damaged or cut off"),
    ],
    ids=["empty", "other", "short", "no checksum", "a byte less", "a beginning", "a page less", "wrong checksum"],
)
@pytest.mark.parametrize("more", [(), ("--yes",)], ids=["plan", "yes"])
def test_a_file_that_is_no_whole_backup_is_refused_before_anything_is_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, words: str, more: tuple[str, ...]
) -> None:
    """In words of our own: those of etcd's program speak of its flags and of slices of bytes."""
    file = tmp_path / "file"
    file.write_bytes(content)
    assert failures.run(["restore", str(file), "--data-dir", str(tmp_path / "place"), "--json", *more]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert f"{file} cannot be restored: {words}" in told.err
    assert "node backup" in told.err or "Copy it again" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert failures.run(["restore", str(tmp_path / "pipe"), "--data-dir", str(tmp_path / "place")]) == 1
    assert "it is no plain file" in capfd.readouterr().err


@pytest.mark.parametrize("more", [(), ("--yes",)], ids=["plan", "yes"])
def test_a_recovery_in_a_wrong_directory_makes_nothing_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert failures.run(["recover", "--data-dir", str(tmp_path / "wrong"), *more]) == 1
    assert f"there is no {tmp_path}/wrong: give the data directory" in capfd.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    before = _tree(tmp_path)
    assert failures.run(["recover", "--data-dir", str(empty), *more]) == 1
    assert f"{empty} belongs to no cluster" in capfd.readouterr().err
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("more", [(), ("--yes",)], ids=["plan", "yes"])
def test_where_a_node_runs_it_is_to_be_stopped(
    voter: Path, backup: Path, capfd: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    """What a start says, to take another directory, is no help here."""
    with DataDir.open(voter):
        for verb in (["recover"], ["restore", str(backup)]):
            assert failures.run([*verb, "--data-dir", str(voter), *more]) == 1
            told = capfd.readouterr().err
            assert f"{voter} is in use by the node with pid {os.getpid()}: stop that first" in told
            assert f"kill {os.getpid()}" in told
            assert "of its own" not in told
            assert ("quorum is there needs no recovery" in told) == (verb == ["recover"])


def test_a_plan_names_a_directory_that_could_not_be_had(
    tmp_path: Path, backup: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in (backup, backup / "below"):
        assert failures.run(["restore", str(backup), "--data-dir", str(place)]) == 1
        assert "not a directory" in capfd.readouterr().err
    strange = tmp_path / "strange"
    strange.mkdir(mode=0o755)
    (strange / "thesis.tex").touch()
    assert failures.run(["restore", str(backup), "--data-dir", str(strange)]) == 1
    assert "thesis.tex" in capfd.readouterr().err
