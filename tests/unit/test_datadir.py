"""The data directory: private, one node's alone, and refused where it is not ours."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from node import app
from node.config import Settings
from node.datadir import DataDir, DataDirBusy, DataDirError, Incarnation, boot_id, machine_id

HERE = Incarnation(
    node_id=str(uuid.UUID(int=7)), lease_id=2**62, machine_id=machine_id(), boot_id=boot_id(), directory="7:11"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_tree_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with DataDir.open(tmp_path / "a" / "b") as data:
            assert mode(data.path) == 0o700
            for directory in (data.etcd, data.pki, data.logs, data.scratch):
                assert mode(directory) == 0o700
            assert mode(data.path / "host_id") == 0o600
            assert mode(data.path / "lock") == 0o600
            assert data.socket == tmp_path / "a" / "b" / "node.sock"
    finally:
        os.umask(before)


def test_the_host_id_stays(tmp_path: Path) -> None:
    with DataDir.open(tmp_path) as data:
        first = data.host_id
    assert uuid.UUID(first).version == 4
    with DataDir.open(tmp_path) as data:
        assert data.host_id == first


def test_a_broken_host_id_is_an_error_and_not_a_new_host(tmp_path: Path) -> None:
    DataDir.open(tmp_path).close()
    (tmp_path / "host_id").write_bytes(b"\xff rubbish")
    with pytest.raises(DataDirError, match="holds no UUID"):
        DataDir.open(tmp_path)
    # The refusal gave the lock back.
    (tmp_path / "host_id").unlink()
    DataDir.open(tmp_path).close()


def test_one_node_per_directory(tmp_path: Path) -> None:
    with DataDir.open(tmp_path):
        with pytest.raises(DataDirBusy, match=f"pid {os.getpid()}") as caught:
            DataDir.open(tmp_path)
        assert caught.value.pid == os.getpid()
    data = DataDir.open(tmp_path)
    data.close()
    data.close()


def test_no_child_keeps_the_lock_of_a_dead_node(tmp_path: Path) -> None:
    """The node is killed while a program that it started (as etcd is) lives on: the directory is free at once."""
    program = (
        "import subprocess, sys, pathlib\n"
        "from node.datadir import DataDir\n"
        "data = DataDir.open(pathlib.Path(sys.argv[1]))\n"
        "child = subprocess.Popen(['cat'], stdin=sys.stdin, stdout=subprocess.DEVNULL, close_fds=False)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.close() or child.wait()\n"
    )
    reader, writer = os.pipe()
    node = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    try:
        assert node.stdout is not None
        child = int(node.stdout.readline())
        with pytest.raises(DataDirBusy, match=f"pid {node.pid}"):
            DataDir.open(tmp_path)
        node.kill()
        node.wait(10)
        os.kill(child, 0)
        DataDir.open(tmp_path).close()
    finally:
        node.kill()
        node.communicate()
        # The end of its input ends cat.
        os.close(writer)


def test_a_directory_of_somebody_elses_things_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataDirError, match=r"thesis\.tex"):
        DataDir.open(tmp_path)
    assert mode(tmp_path) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_an_administrator_prepares_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "node.toml").touch()
    (tmp_path / "lost+found").mkdir()
    DataDir.open(tmp_path).close()
    assert mode(tmp_path) == 0o700
    # Ours by now: what else is put there is the administrator's business, an opened mode is closed again.
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    DataDir.open(tmp_path).close()
    assert mode(tmp_path) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(DataDirError, match="belongs to uid 65534"):
        DataDir.open(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError, match="not a directory"):
        DataDir.open(tmp_path / "file")
    with pytest.raises(DataDirError, match="not a directory"):
        DataDir.open(tmp_path / "file" / "below")


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    directory = tmp_path / "data"
    directory.mkdir()
    target.write_text("precious")
    (directory / "lock").symlink_to(target)
    with pytest.raises(DataDirError, match="lock"):
        DataDir.open(directory)
    assert target.read_text() == "precious"


def test_a_read_only_place_says_so() -> None:
    with pytest.raises(DataDirError, match="cannot use /proc"):
        DataDir.open(Path("/proc/pilfer"))


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataDirError, match="make room"):
        DataDir.open(tmp_path)
    monkeypatch.undo()
    with DataDir.open(tmp_path) as data:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataDirError, match="make room"):
            data.write_incarnation(HERE)
        assert data.find_incarnation() is None


def test_a_disk_that_is_full_is_told_with_what_to_do_whatever_call_met_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that are relative to an open directory say nothing to whoever reads them."""

    async def full(*_: object) -> None:
        raise ExceptionGroup("the node", [OSError(28, "No space left on device", "name")])

    monkeypatch.setattr(app, "_until_signal", full)
    monkeypatch.setattr(app, "start_logging", lambda _level: None)
    assert app.main(Settings(data_dir=tmp_path, name="a")) == 1
    told = capsys.readouterr().err
    assert f"cannot use {tmp_path}: No space left on device" in told
    assert "make room" in told


def test_the_incarnation_outlives_the_node(tmp_path: Path) -> None:
    with DataDir.open(tmp_path) as data:
        assert data.find_incarnation() is None
        data.write_incarnation(HERE)
    with DataDir.open(tmp_path) as data:
        found = data.find_incarnation()
        assert found == HERE
        assert found.is_of_this_boot


@pytest.mark.parametrize("content", ["", "[]", "{}", '"x"', "{", '{"node_id": 5}', "\x00"])
def test_a_torn_incarnation_counts_as_none(tmp_path: Path, content: str) -> None:
    with DataDir.open(tmp_path) as data:
        (tmp_path / "incarnation.json").write_text(content)
        assert data.find_incarnation() is None


def test_a_directory_is_told_from_its_copy(tmp_path: Path) -> None:
    """A copy must not revoke the lease of the original, even on the same machine; a directory that was moved may."""
    with DataDir.open(tmp_path / "original") as data:
        identity = data.identity
        run = dataclasses.replace(HERE, directory=identity)
        assert data.wrote(run)
        assert not data.wrote(dataclasses.replace(run, boot_id="before the reboot"))
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    with DataDir.open(tmp_path / "copy") as copy:
        assert copy.identity != identity
        assert not copy.wrote(run)
    (tmp_path / "original").rename(tmp_path / "moved")
    with DataDir.open(tmp_path / "moved") as moved:
        assert moved.wrote(run)


@pytest.mark.parametrize("changed", [{"machine_id": "other"}, {"boot_id": "other"}, {"boot_id": ""}])
def test_a_directory_of_another_machine_is_not_of_this_boot(changed: dict[str, str]) -> None:
    assert HERE.is_of_this_boot
    assert not dataclasses.replace(HERE, **changed).is_of_this_boot  # type: ignore[arg-type]  # all of them are texts
