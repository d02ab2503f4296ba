"""The spawner survives what it is asked, and leaves the machine as it was."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isolation import protocol
from isolation.client import SpawnerConfig
from isolation.errors import ProtocolError, SandboxFailed
from isolation.spec import Limits, SandboxSpec
from tests.isolation_live.conftest import LIMITS, Runner, names_in, with_limits
from tests.isolation_live.raw import RawSpawner
from tests.support.leaks import cgroups_of
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation

SEED = 20


@pytest.fixture
async def raw(config: SpawnerConfig) -> AsyncIterator[RawSpawner]:
    spawner = RawSpawner(config)
    try:
        yield spawner
    finally:
        spawner.close()


async def test_bad_values_are_refused_by_name(runner: Runner) -> None:
    cases = {
        "env": runner.spec("true", env={"A=B": "x"}),
        "argv": SandboxSpec("x", (), {}, LIMITS),
        "NUL": runner.spec("tr\0ue"),
        "surrogates": runner.spec("echo", "half \ud83d"),
        "cpu": runner.spec("true", limits=with_limits(cpu=0.0)),
        "pids": runner.spec("true", limits=with_limits(pids=0)),
        "memory_bytes": runner.spec("true", limits=with_limits(memory_bytes=-1)),
        "timeout_s": runner.spec("true", timeout_s=-1.0),
        "grace_s": runner.spec("true", grace_s=float("nan")),
    }
    for field, spec in cases.items():
        with pytest.raises(SandboxFailed) as failed:
            await runner.launch(spec)
        assert (failed.value.report.step, failed.value.report.errno) == ("request", errno.EINVAL)
        assert field in failed.value.report.detail
    assert (await runner.run("/bin/true")).ended.exit_code == 0


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 81, "a b", "ä", "a\n"])
async def test_ids_that_cannot_name_a_sandbox(runner: Runner, name: str) -> None:
    with pytest.raises(ProtocolError):
        await runner.run("/bin/true", id=name)


async def test_garbage_does_not_end_it(raw: RawSpawner) -> None:
    random_source = random.Random(SEED)
    sound = protocol.encode(protocol.Launch(SandboxSpec("x", ("/bin/true",), {}, Limits(1.0, None, 10))))
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(random_source.randrange(1, 6)):
            data[random_source.randrange(len(data))] = random_source.randrange(256)
        for sock in (raw.requests, raw.control):
            sock.send(bytes(data[: random_source.randrange(1, len(data) + 1)]))
            await asyncio.to_thread(raw.drain)
    for odd in (b"[", b"[1]", b"[1,2,3]", b'[1,"Close",{}]', b'[2,"Launch",[]]', b"m", b"mx", b"[" * 10_000):
        raw.requests.send(odd)
        raw.control.send(odd)
        await asyncio.to_thread(raw.drain)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


async def test_wrong_number_of_descriptors(raw: RawSpawner) -> None:
    spec = SandboxSpec("few", ("/bin/true",), {}, Limits(1.0, None, 10))
    null = os.open("/dev/null", os.O_RDWR)
    try:
        for count in (0, 1, 2, 4):
            raw.send(protocol.Launch(spec), (null,) * count)
            report = await asyncio.to_thread(raw.receive)
            assert getattr(report, "step", None) == "request"
    finally:
        os.close(null)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


async def test_messages_on_the_wrong_socket(raw: RawSpawner) -> None:
    raw.send(protocol.Fence())
    assert isinstance(await asyncio.to_thread(raw.receive), protocol.Refused)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


@pytest.mark.usefixtures("root")
async def test_no_descriptors_left(runner: Runner) -> None:
    """The spawner at its limit of descriptors refuses, keeps going, and works again when there is room."""
    pid = runner.spawner.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert (await runner.run("/bin/true")).ended.exit_code == 0
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 4, limits[1]))
    failures: list[int] = []

    async def one() -> None:
        try:
            sandbox, _, _ = await runner.launch(runner.spec("sleep", "0.2"))
            await sandbox.wait()
        except SandboxFailed as failed:
            failures.append(failed.report.errno)

    await asyncio.gather(*(one() for _ in range(30)))
    assert failures
    assert set(failures) == {errno.EMFILE}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert (await runner.run("/bin/true")).ended.exit_code == 0


async def test_nothing_is_left_after_hundreds(runner: Runner, config: SpawnerConfig) -> None:
    pid = runner.spawner.pid
    scripts = [
        "exit 0",
        "mkdir -p a/b/c && touch a/b/c/d",
        "(setsid sleep 60 &); exit 1",
        "kill -9 $$",
        "dd if=/dev/zero of=/tmp/x bs=1M count=2 2>/dev/null",
        "cat /usr/lib/os-release",
    ]

    async def lane(count: int) -> None:
        for i in range(count):
            await runner.sh(scripts[i % len(scripts)])

    # The pools grow to what runs at once and stay there.
    await asyncio.gather(*(lane(6) for _ in range(8)))
    await wait_until(lambda: _children(pid) == [])
    fds, mounts = len(names_in(Path(f"/proc/{pid}/fd"))), Path(f"/proc/{pid}/mountinfo").read_text()
    await asyncio.gather(*(lane(36) for _ in range(8)))
    await wait_until(lambda: _children(pid) == [])
    await wait_until(lambda: names_in(config.scratch_root) == [".spare", ".trash"])
    await wait_until(lambda: names_in(config.scratch_root / ".trash") == [])
    # A group that still has memory charged is exchanged for another: a few more or less may be open.
    assert len(names_in(Path(f"/proc/{pid}/fd"))) <= fds + 40
    assert Path(f"/proc/{pid}/mountinfo").read_text() == mounts
    assert len(cgroups_of(config.host_id)) < 200


async def test_a_large_scratch_does_not_hold_up_others(runner: Runner, tmp_path: Path) -> None:
    """Twenty thousand files and a chain of a thousand directories are removed beside the work, not before it."""
    nest = 'import os\nfor i in range(1000): os.mkdir("d"); os.chdir("d")'
    script = f"seq -f 'f%g' 20000 | xargs touch; python3 -c '{nest}'"
    await runner.sh(script)
    assert (await runner.run("/bin/true")).ended.exit_code == 0
    assert any((tmp_path / "scratch" / ".trash").iterdir())  # still at it
    await wait_until(lambda: not any((tmp_path / "scratch" / ".trash").iterdir()), 60)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
