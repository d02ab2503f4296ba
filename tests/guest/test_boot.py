"""The guest comes up, says how its command ended, and leaves nothing, also when it is killed. Where it was fetched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.guest.__main__ import FAILED, ROOT, cache
from tests.support.guest import in_guest
from tests.support.require import require
from tests.support.wait import patient, wait_until_sync

pytestmark = pytest.mark.isolation

LIMIT_S = 300.0


#: Before the developer's settings are hidden from tests.
FETCHED = cache()


@pytest.fixture(autouse=True)
def boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where boots have their files: a place of the test's own, beside what was fetched."""
    require("qemu", is_there=not in_guest(), reason="a guest in a guest would take minutes")
    require("qemu", is_there=os.geteuid() == 0, reason="the guest's files come by virtiofsd, which needs root")
    require("qemu", is_there=(FETCHED / "stamp").exists(), reason="the guest was not fetched (make test-v2 does)")
    for name in ("tree", "stamp"):
        (tmp_path / name).symlink_to(FETCHED / name)
    monkeypatch.setenv("PILFER_GUEST", str(tmp_path))
    return tmp_path / "boots"


def guest(*command: str, before: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-m", "tests.guest", *before, "--", *command]


def run(*command: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        guest(*command, before=before), cwd=ROOT, capture_output=True, text=True, timeout=patient(LIMIT_S), check=False
    )


@pytest.mark.timeout(400)
def test_what_a_command_finds() -> None:
    script = """
        id -u; pwd; cat /proc/self/cgroup; stat -f -c %T /sys/fs/cgroup /tmp
        grep -o pilfer.guest /proc/cmdline
        touch written && echo written here
        mount -o remount,rw /host 2>/dev/null || echo no way to the host
        ip -o link | wc -l; swapon --show
        seq 20000 | tail -n 1; exit 7
    """
    done = run("sh", "-c", script)
    assert done.stdout.splitlines() == [
        *("0", str(ROOT), "0::/session", "cgroup2fs", "ext2/ext3"),
        *("pilfer.guest", "written here", "no way to the host", "1", "20000"),
    ]
    assert done.returncode == 7, done.stderr
    assert not (ROOT / "written").exists()


@pytest.mark.timeout(400)
def test_a_guest_that_dies_is_a_failure_with_the_end_of_its_console() -> None:
    done = run("sh", "-c", "echo before; echo c >/proc/sysrq-trigger; sleep 600")
    assert done.returncode == FAILED
    assert done.stdout == "before\n"
    assert "sysrq" in done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_stays_of_one_that_is_ended(boots: Path, number: signal.Signals) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(guest("sh", "-c", "echo on; sleep 600"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as boot:
        try:
            assert boot.stdout is not None
            assert boot.stdout.readline() == "on\n"
            children = psutil.Process(boot.pid).children(recursive=True)
            assert {"virtiofsd", "qemu-system-x86_64"} <= {Path(child.exe()).name for child in children}
            boot.send_signal(number)
            boot.wait(patient(30))
        finally:
            boot.kill()
    wait_until_sync(_all_gone(children), what="its processes are gone")
    assert Path("/proc/self/mountinfo").read_text() == mounts
    if number == signal.SIGKILL:
        assert run("true").returncode == 0  # the next one removes its files
    assert list(boots.iterdir()) == []


def _all_gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(process.is_running() for process in processes)
