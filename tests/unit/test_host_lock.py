"""One node per host id on a machine: a copied data directory must not end the tasks of the living original."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from node.datadir import DataDir, DataDirError
from node.host_lock import HostIdBusy, HostLock, runtime_directory

HOST = str(uuid.UUID(int=3))


def test_a_second_of_the_same_host_id_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    first = HostLock.take(HOST, tmp_path)
    assert first is not None
    with pytest.raises(HostIdBusy, match=f"pid {os.getpid()}"):
        HostLock.take(HOST, tmp_path)
    other = HostLock.take(str(uuid.UUID(int=4)), tmp_path)
    assert other is not None
    other.close()
    first.close()
    first.close()
    again = HostLock.take(HOST, tmp_path)
    assert again is not None
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_node_holds_nothing(tmp_path: Path) -> None:
    code = "import os, sys; from node.host_lock import HostLock; from pathlib import Path;"
    code += f"HostLock.take({HOST!r}, Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [f"{HOST}.lock"]
    lock = HostLock.take(HOST, tmp_path)
    assert lock is not None
    lock.close()


def test_of_many_that_come_and_go_never_two_hold_it(tmp_path: Path) -> None:
    """The file is removed when it is given back: who opened it before must not hold a file that nobody finds."""
    holders, most, taken = [0], [0], [0]

    def come_and_go() -> None:
        for _ in range(200):
            try:
                lock = HostLock.take(HOST, tmp_path)
            except HostIdBusy:
                continue
            assert lock is not None
            holders[0] += 1
            most[0] = max(most[0], holders[0])
            taken[0] += 1
            holders[0] -= 1
            lock.close()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert taken[0] > 0


def test_without_a_place_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert HostLock.take(HOST, tmp_path / "file") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_place_of_another_user_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    assert HostLock.take(HOST, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uid", "environ", "directory"),
    [
        (0, {}, Path("/run/pilfer")),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, Path("/run/user/1000/pilfer")),
        (1000, {}, Path("/tmp/pilfer-1000")),
        (1000, {"XDG_RUNTIME_DIR": "relative"}, Path("/tmp/pilfer-1000")),
    ],
)
def test_where_it_lies(uid: int, environ: dict[str, str], directory: Path) -> None:
    assert runtime_directory(environ, uid=uid) == directory


def test_a_copied_data_directory_is_refused_while_the_original_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.datadir.runtime_directory", lambda: tmp_path / "run")
    with DataDir.open(tmp_path / "original") as original:
        shutil.copytree(original.path, tmp_path / "copy")
        with pytest.raises(DataDirError, match="copied"):
            DataDir.open(tmp_path / "copy")
    with DataDir.open(tmp_path / "copy") as moved:
        assert moved.host_id == original.host_id
