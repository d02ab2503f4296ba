"""One spawner per data directory at a time: the next one waits for the last, and ends it where it does not go."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation import succession
from isolation.errors import HostLacks

HOLDER = """
import sys
from pathlib import Path
from isolation.succession import succeed
fd = succeed(Path(sys.argv[1]), print)
print("held", flush=True)
sys.stdin.read()
"""


class Told:
    """What was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.events.append((event, fields.get("pid")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spawner.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_it_is_held_until_it_is_closed_and_says_by_whom(path: Path) -> None:
    fd = succession.succeed(path, Told())
    assert path.read_text() == f"{os.getpid()}\n"
    with path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    os.close(succession.succeed(path, Told()))


def test_one_that_goes_is_waited_for(
    path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "LEAVE_PATIENCE_S", 60.0)
    assert holder.stdin is not None
    told = Told()
    leaving = threading.Timer(0.05, holder.stdin.close)
    leaving.start()
    os.close(succession.succeed(path, told))
    leaving.join()
    assert holder.wait(10) == 0
    assert told.events == []


def test_one_that_is_stopped_is_killed(
    path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "LEAVE_PATIENCE_S", 0.01)
    holder.send_signal(signal.SIGSTOP)
    told = Told()
    os.close(succession.succeed(path, told))
    assert holder.wait(10) == -signal.SIGKILL
    assert told.events == [("the last spawner is still there: killing it", holder.pid)]


def test_nobody_else_is_killed(path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pid that was written down may have become another process's."""
    monkeypatch.setattr(succession, "LEAVE_PATIENCE_S", 0.01)
    monkeypatch.setattr(succession, "DEATH_PATIENCE_S", 0.01)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        try:
            path.write_text(f"{innocent.pid}\n")
            with pytest.raises(HostLacks, match=f"{innocent.pid}.*fuser"):
                succession.succeed(path, Told())
            assert innocent.poll() is None
            assert holder.poll() is None
        finally:
            innocent.kill()


def test_one_that_the_kernel_does_not_let_go_is_not_waited_for_without_end(
    path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed: it never takes another step, and a node must not go without a spawner for it."""
    monkeypatch.setattr(succession, "LEAVE_PATIENCE_S", 0.01)
    monkeypatch.setattr(succession, "DEATH_PATIENCE_S", 0.01)
    killed: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
        told = Told()
        os.close(succession.succeed(path, told))
    assert killed == [(holder.pid, signal.SIGKILL)]
    assert [event for event, _ in told.events][-1] == "the last spawner was killed, and the kernel does not let it go"
