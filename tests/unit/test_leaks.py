"""The check for leaks notices each kind of leak, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import psutil
import pytest

from tests.support.leaks import Belongings


@pytest.fixture(autouse=True)
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the whole machine's, and tests that run beside these make some."""
    monkeypatch.setattr("tests.support.leaks._mount_points", list)


def test_nothing_done_is_nothing_leaked() -> None:
    before = Belongings.now()
    with socket.socket(), open(os.devnull):  # noqa: PTH123  (a descriptor, no path)
        pass
    assert Belongings.now().leaked_since(before) == []


def test_descriptors_of_one_kind_are_counted() -> None:
    before = Belongings.now()
    pairs = [socket.socketpair() for _ in range(3)]
    try:
        assert Belongings.now().leaked_since(before) == ["descriptor of socket"]
    finally:
        for left, right in pairs:
            left.close()
            right.close()
    assert Belongings.now().leaked_since(before) == []


def test_a_file_is_named(tmp_path: os.PathLike[str]) -> None:
    before = Belongings.now()
    with open(f"{os.fspath(tmp_path)}/precious", "w"):  # noqa: PTH123  (as above)
        assert Belongings.now().leaked_since(before) == [f"descriptor of {os.fspath(tmp_path)}/precious"]


def test_a_child_and_its_child_are_named() -> None:
    before = Belongings.now()
    shell = subprocess.Popen(["sh", "-c", "cat; exit 0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(b"up\n")
        shell.stdin.flush()
        # Once cat has answered, both are there.
        assert shell.stdout.readline() == b"up\n"
        assert len(psutil.Process(shell.pid).children()) == 1
        leaks = Belongings.now().leaked_since(before)
    finally:
        shell.communicate()
    assert f"process {shell.pid}: sh -c cat; exit 0" in leaks
    assert sum(leak.startswith("process ") for leak in leaks) == 2
    assert Belongings.now().leaked_since(before) == []


@pytest.mark.parametrize(("is_daemon", "leaks"), [(False, ["thread told"]), (True, [])])
def test_threads_that_hold_up_the_end_are_named(is_daemon: bool, leaks: list[str]) -> None:
    before = Belongings.now()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="told", daemon=is_daemon)
    thread.start()
    try:
        assert Belongings.now().leaked_since(before) == leaks
    finally:
        end.set()
        thread.join(10)
