"""Whoever dies, no task goes on: the spawner, the node, and what an earlier run left, frozen or not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolation.client import Spawner, SpawnerConfig
from isolation.errors import HostLacks, NotLaunched, SandboxFailed, SpawnerDied
from isolation.protocol import INLINE_BYTES
from tests.isolation_live.conftest import Runner, running
from tests.isolation_live.test_fencing import boottime, is_frozen
from tests.support.leaks import cgroups_of
from tests.support.wait import patient, wait_until, wait_until_sync

pytestmark = pytest.mark.isolation


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_spawner_killed(config: SpawnerConfig) -> None:
    told: list[str] = []
    spawner = await Spawner.start(config, on_died=told.append)
    runner = Runner(spawner)
    sandbox = await runner.start("sleep", "60")
    os.kill(spawner.pid, signal.SIGKILL)
    with pytest.raises(SpawnerDied):
        await sandbox.wait()
    assert "gone" in await spawner.wait_died()
    assert len(told) == 1
    await wait_until(lambda: not is_alive(sandbox.started.pid), 1)
    with pytest.raises(SpawnerDied):
        await runner.run("/bin/true")
    await spawner.close()
    runner.close()
    async for again in running(config):  # removes what the killed one could not
        assert (await again.run("/bin/true")).ended.exit_code == 0


async def test_what_was_never_sent_was_never_launched(config: SpawnerConfig) -> None:
    """The spawner stands still, and its socket is full when it is killed: what lies in the socket may have been read,
    what still waits here cannot have been. A task that may run only once may go on elsewhere."""
    spawner = await Spawner.start(config)
    runner = Runner(spawner)
    os.kill(spawner.pid, signal.SIGSTOP)
    # More than a socket holds, in as few datagrams as can be: their descriptors count as open files meanwhile.
    many = [runner.spec("/bin/true", env={"WORDS": "x" * (INLINE_BYTES - 2000)}) for _ in range(400)]
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    launches = [asyncio.create_task(spawner.launch(spec, stdin=fd, stdout=fd, stderr=fd)) for spec in many]
    await wait_until(lambda: spawner.running_count == len(launches), what="all of them are asked for")
    os.kill(spawner.pid, signal.SIGKILL)
    ends = [type(end) for end in await asyncio.gather(*launches, return_exceptions=True)]
    os.close(fd)
    assert set(ends) == {SpawnerDied, NotLaunched}
    first_unsent = ends.index(NotLaunched)
    assert set(ends[first_unsent:]) == {NotLaunched}, "they leave in order"
    await spawner.close()
    runner.close()
    async for again in running(config):  # removes what the killed one could not
        assert (await again.run("/bin/true")).ended.exit_code == 0


@pytest.mark.usefixtures("freezer")
async def test_frozen_leftovers_are_gone_before_the_next_is_ready(config: SpawnerConfig) -> None:
    spawner = await Spawner.start(config)
    runner = Runner(spawner)
    sandboxes = [await runner.start("sleep", "60") for _ in range(3)]
    pids = [sandbox.started.pid for sandbox in sandboxes]
    spawner.set_deadline(boottime())
    await wait_until(lambda: all(map(is_frozen, pids)))
    os.kill(spawner.pid, signal.SIGKILL)
    await spawner.wait_died()
    if spawner.report.cgroup_version == 1:
        assert any(map(is_alive, pids))  # so that what follows means something
    await spawner.close()
    runner.close()
    again = await Spawner.start(config)
    assert not any(map(is_alive, pids))
    await again.close()
    assert cgroups_of(config.host_id) == []


async def test_a_stopped_spawner_makes_room(config: SpawnerConfig, tmp_path: Path) -> None:
    """Its node is gone, and it does not see that: the next one ends it, and its tasks, before it is ready."""
    config = replace(config, lock=tmp_path / "spawner.lock")
    stopped = await Spawner.start(config)
    runner = Runner(stopped)
    sandbox = await runner.start("sleep", "60")
    os.kill(stopped.pid, signal.SIGSTOP)
    async for again in running(config):
        assert not is_alive(stopped.pid)
        assert not is_alive(sandbox.started.pid)
        assert (await again.run("/bin/true")).ended.exit_code == 0
    with pytest.raises(SpawnerDied):
        await sandbox.wait()
    await stopped.close()
    runner.close()


@pytest.mark.usefixtures("freezer")
async def test_its_lock_is_no_sandboxs(config: SpawnerConfig, tmp_path: Path) -> None:
    """A frozen sandbox of a spawner that was killed must not keep the next one waiting."""
    config = replace(config, lock=tmp_path / "spawner.lock")
    spawner = await Spawner.start(config)
    runner = Runner(spawner)
    sandbox = await runner.start("sleep", "60")
    spawner.set_deadline(boottime())
    await wait_until(lambda: is_frozen(sandbox.started.pid))
    os.kill(spawner.pid, signal.SIGKILL)
    await spawner.wait_died()
    await spawner.close()
    runner.close()
    with (tmp_path / "spawner.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    async for again in running(config):
        assert (await again.run("/bin/true")).ended.exit_code == 0


@pytest.mark.usefixtures("groups")
async def test_a_removed_control_group(config: SpawnerConfig) -> None:
    """By an administrator, or a tool that tidies up, while nothing ran: the fence does not break, and the next launch
    is one that the node repeats, with the next spawner."""
    spawner = await Spawner.start(config)
    runner = Runner(spawner)
    assert (await runner.run("/bin/true")).ended.exit_code == 0
    for _ in range(2):  # those of sandboxes, kept for the next, and then the node's own
        for group in cgroups_of(config.host_id)[::-1]:
            await wait_until(lambda group=group: _is_removed(group), what=f"{group} can be removed")
    assert cgroups_of(config.host_id) == []
    spawner.set_deadline(boottime())
    spawner.ping()
    await wait_until(lambda: spawner.is_answered)
    spawner.set_deadline(boottime() + 60)
    with pytest.raises(SandboxFailed) as failed:
        await runner.run("/bin/true")
    assert failed.value.report.step == "closing"
    await spawner.wait_died()
    await spawner.close()
    runner.close()
    async for again in running(config):
        assert (await again.run("/bin/true")).ended.exit_code == 0


def _is_removed(group: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            group.rmdir()
        except OSError:
            return False
    return True


NODE = """
import asyncio, os, sys
from pathlib import Path
from isolation.client import Spawner, SpawnerConfig
from isolation.spec import Limits, SandboxSpec

async def main():
    spawner = await Spawner.start(SpawnerConfig(host_id=sys.argv[1], scratch_root=Path(sys.argv[2])))
    null = os.open("/dev/null", os.O_RDWR)
    argv = ("sh", "-c", "trap '' TERM HUP; (setsid sleep 60 &); sleep 60")
    spec = SandboxSpec("t", argv, {"PATH": "/usr/bin:/bin"}, Limits(1.0, None, 20))
    sandbox = await spawner.launch(spec, stdin=null, stdout=null, stderr=null)
    print(spawner.pid, sandbox.started.pid, flush=True)
    await sandbox.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("frozen", [False, True])
def test_node_killed(config: SpawnerConfig, *, frozen: bool) -> None:
    root = Path(__file__).parents[2]
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, config.host_id, str(config.scratch_root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert node.stdout is not None
    try:
        spawner_pid, pid = map(int, node.stdout.readline().split())
        if frozen:
            for state in Path("/sys/fs/cgroup/freezer").glob(f"**/{config.host_id}/freezer.state"):
                state.write_text("FROZEN")
    finally:
        node.kill()
        node.wait()
        node.stdout.close()
    began = time.monotonic()
    wait_until_sync(lambda: not is_alive(pid) and not is_alive(spawner_pid), 5)
    assert time.monotonic() - began < patient(2)  # 1 s is promised; the test's machine may be busy
    assert cgroups_of(config.host_id) == []
    assert list(config.scratch_root.iterdir()) == []


async def test_close_kills_what_runs(config: SpawnerConfig) -> None:
    spawner = await Spawner.start(config)
    runner = Runner(spawner)
    sandboxes = [await runner.start("sh", "-c", "trap '' TERM; echo on; sleep 60", says="on") for _ in range(3)]
    waiting = [asyncio.create_task(sandbox.wait()) for sandbox in sandboxes]
    await spawner.close()
    ends = await asyncio.gather(*waiting)
    assert {end.ended_by for end in ends} == {"stop"}
    assert not is_alive(spawner.pid)
    assert cgroups_of(config.host_id) == []
    await spawner.close()
    runner.close()


async def test_signals_to_the_group_do_not_end_it(runner: Runner) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(runner.spawner.pid, number)
    assert (await runner.run("/bin/true")).ended.exit_code == 0


async def test_a_host_that_cannot_is_told_in_words(config: SpawnerConfig, tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("a file in the way")
    with pytest.raises(HostLacks, match="scratch"):
        await Spawner.start(config)
    assert cgroups_of(config.host_id) == []


@pytest.fixture
def full_disk(tmp_path: Path, request: pytest.FixtureRequest, root: None) -> Iterator[Path]:
    """A file system that takes no more; the parameter is its limit. Mounting needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "pilfer-test", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


#: Room for the root and one directory, and none for what is made in it.
@pytest.mark.parametrize("full_disk", ["nr_inodes=2"], indirect=True)
async def test_a_full_disk_is_told_by_its_path(config: SpawnerConfig, full_disk: Path) -> None:
    """Found by chaos: a node that was started on a full disk ended with the bare name of a directory in it."""
    with pytest.raises(HostLacks, match=rf"{full_disk}/scratch.*No space left on device; make"):
        await Spawner.start(replace(config, scratch_root=full_disk / "scratch"))


@pytest.mark.parametrize("full_disk", ["size=4k"], indirect=True)
async def test_a_lock_that_cannot_be_written_is_told_by_its_path(config: SpawnerConfig, full_disk: Path) -> None:
    """Found by chaos: "No space left on device", and not a word more."""
    (full_disk / "filler").write_bytes(bytes(4096))
    lock = full_disk / "lock"
    with pytest.raises(HostLacks, match=rf"{lock} .*No space left on device; make"):
        await Spawner.start(replace(config, lock=lock))
