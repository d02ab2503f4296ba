"""Nothing of a task is left for the next one, nor on the machine."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from isolation import process
from isolation.client import SpawnerConfig
from node.running.logs import SPARES_MAX, LogStore
from tests.hostile.harness import Hostile
from tests.hostile.snapshot import Snapshot
from tests.isolation_live.conftest import names_in, running
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation

#: ioctl_iflags(2)
_FS_IOC_SETFLAGS, _IMMUTABLE = 0x40086602, 0x10

#: How a task finds things that nobody was in before.
_NEW = {
    **{"scratch": "", "scratch attributes": "", "tmp": "", "unix sockets": "0", "packets": "0", "port": "free"},
    **{"tcp": "0", "tcp6": "0", "udp": "0", "raw": "0", "ip6_flowlabel": "0"},
    **{"sysv shm": "0", "sysv msg": "0", "sysv sem": "0"},
}


#: Attacks come by a mount, and what a task with mounts had is never used again; here it is, as after other tasks.
_REUSING = (
    "import sys; sys.path[:0] = sys.argv[3:]; from isolation import launch, namespaces; "
    "launch.Launcher._can_meet_others = lambda *_: False; "
)
_CARELESS = _REUSING + "namespaces.NetworkPool._is_as_new = lambda *_: True; "
_MAIN = "from isolation.spawner import main; main(int(sys.argv[1]), int(sys.argv[2]))"


@pytest.fixture
async def reusing(config: SpawnerConfig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hostile]:
    monkeypatch.setattr(process, "_PROGRAM", _REUSING + _MAIN)
    async for runner in running(config):
        yield Hostile(runner)


async def test_the_next_task_finds_everything_new(reusing: Hostile) -> None:
    """Several times, since scratch directories, network namespaces and groups are used again."""
    mounts = (await reusing.run("searching", "left")).get("mounts")
    for _ in range(4):
        left = await reusing.run("leave")
        assert left.exit_code == 0, left.stderr
        report = await reusing.run("searching", "left")
        assert {name: report.get(name) for name in _NEW} == _NEW
        assert report.get("mounts") == mounts


async def test_that_networks_would_tell_otherwise(config: SpawnerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With namespaces used again whatever was done in them: packets are counted, and a port is taken for a minute."""
    monkeypatch.setattr(process, "_PROGRAM", _CARELESS + _MAIN)
    async for runner in running(config):
        hostile = Hostile(runner)
        await hostile.run("leave", "network")
        report = await hostile.run("searching", "left")
    assert report.get("port") == "taken"
    assert int(report.get("packets")) > 0
    assert int(report.get("tcp")) > 0


async def test_the_machine_is_as_it_was(hostile: Hostile, config: SpawnerConfig) -> None:
    """Processes, mounts, namespaces, control groups, objects and files, after each kind of leaving."""
    await hostile.run("leave")  # pools grow to what they stay at
    before = Snapshot.of(hostile.runner.spawner.pid, config)
    for kind in ("processes", "files", "objects", "network", "descriptors"):
        assert (await hostile.run("leave", kind)).exit_code == 0
        await wait_until(lambda: Snapshot.of(hostile.runner.spawner.pid, config).left_since(before) == [], what=kind)


async def test_files_are_removed_whatever_their_names(hostile: Hostile, config: SpawnerConfig) -> None:
    assert (await hostile.run("leave", "files")).exit_code == 0
    await wait_until(lambda: names_in(config.scratch_root) == [".spare", ".trash"])
    await wait_until(lambda: names_in(config.scratch_root / ".trash") == [])
    assert Path("/etc/passwd").exists()


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    root = tmp_path / "logs"
    root.mkdir()
    store = LogStore(root)
    yield store
    store.close()


async def test_no_log_file_carries_a_message(hostile: Hostile, logs: LogStore) -> None:
    """One that stayed empty is used again: not with an attribute that its last task gave it. (Space that no size tells
    of can no longer be had, and would not be handed on: tests/unit/test_log_watch.py.)"""
    log = logs.open("0" * 32, 1)
    null = os.open("/dev/null", os.O_RDWR)
    try:
        spec = hostile.spec("leave", "log")
        sandbox = await hostile.runner.spawner.launch(spec, stdin=null, stdout=null, stderr=log.stderr)
        assert (await sandbox.wait()).exit_code == 0
    finally:
        os.close(null)
    assert os.listxattr(log.stderr)  # the attack worked
    await logs.settle("0" * 32, 1)
    for number in range(1, 2 * SPARES_MAX):
        again = logs.open(f"{number:032}", 1)
        for fd in (again.stdout, again.stderr):
            assert os.listxattr(fd) == []
            assert os.fstat(fd).st_blocks == 0
        await logs.settle(f"{number:032}", 1)


async def test_what_cannot_be_removed_now_is_removed_later(hostile: Hostile, config: SpawnerConfig) -> None:
    """Trash that withstands (a file that even root may not remove, as a task that writes on makes for moments) is tried
    again when the next sandbox is gone, not only at the next start."""
    sandbox = await hostile.runner.start("sh", "-c", "echo x >held; echo there; exec sleep 100", says="there")
    (file,) = config.scratch_root.glob("*/*/held")
    held = os.open(file, os.O_RDONLY)
    try:
        fcntl.ioctl(held, _FS_IOC_SETFLAGS, struct.pack("l", _IMMUTABLE))
    except OSError:
        pytest.skip("this file system knows no immutable files")
    try:
        sandbox.kill()
        await sandbox.wait()
        assert (await hostile.runner.run("true")).ended.exit_code == 0
        await wait_until(lambda: names_in(config.scratch_root) == [".spare", ".trash"])
        assert names_in(config.scratch_root / ".trash") != []
    finally:
        fcntl.ioctl(held, _FS_IOC_SETFLAGS, struct.pack("l", 0))
        os.close(held)
        sandbox.kill()
    await hostile.runner.run("true")
    await wait_until(lambda: names_in(config.scratch_root / ".trash") == [], what="the trash is empty")


async def test_what_nobody_can_tell_from_new_is_used_again(hostile: Hostile) -> None:
    """Networks and scratch directories are dear to make: those of tasks that left nothing serve the next ones."""
    look = ("stat", "-L", "-c", "%i", "/proc/self/ns/net", ".")
    seen = {(await hostile.runner.run(*look)).stdout for _ in range(4)}
    assert len(seen) == 1
    await hostile.run("leave", "network")
    assert not seen & {(await hostile.runner.run(*look)).stdout for _ in range(2)}
