"""The spawner is flooded, lied to, and left without what it needs; it says so, and goes on when there is some again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import resource
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isolation import protocol
from isolation.client import Spawner, SpawnerConfig
from isolation.errors import SandboxFailed, SpawnerDied
from isolation.spec import BindMount, Ended, Limits, SandboxSpec, SetupFailed, Started
from tests.isolation_live.conftest import LIMITS, Runner, running
from tests.isolation_live.raw import RawSpawner
from tests.support.leaks import cgroups_of
from tests.support.wait import patient, wait_until

pytestmark = pytest.mark.isolation

SEED = 31
#: Of a flood in `make test`; ten thousand in the long variation.
FLOOD = 500


@pytest.fixture
async def raw(config: SpawnerConfig) -> AsyncIterator[RawSpawner]:
    spawner = RawSpawner(config)
    try:
        yield spawner
    finally:
        spawner.close()


async def _runs_a_task(runner: Runner) -> None:
    assert (await runner.sh("echo $((6 * 7))")).stdout == "42\n"


async def _errnos(runner: Runner, count: int, *argv: str, **fields: Any) -> Counter[int]:
    """Starts so many at once; of those that could not be started the errno, of the others 0."""
    found: Counter[int] = Counter()

    async def one() -> None:
        try:
            sandbox, _, _ = await runner.launch(runner.spec(*argv, **fields))
            await sandbox.wait()
            found[0] += 1
        except SandboxFailed as failed:
            found[failed.report.errno] += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return found


# ---- nonsense ---------------------------------------------------------------------------------------------------


#: Descriptors that nobody expects, of every kind that can be sent.
ODD: dict[str, Callable[[], int]] = {
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "path": lambda: os.open("/", os.O_PATH),
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "event": lambda: os.eventfd(0),
    "terminal": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "process": lambda: os.pidfd_open(os.getpid()),
    "endless": lambda: os.open("/dev/zero", os.O_RDWR),
}


@pytest.fixture
def odd() -> Iterator[dict[str, int]]:
    fds = {name: make() for name, make in ODD.items()}
    yield fds
    for fd in fds.values():
        os.close(fd)


async def test_descriptors_of_every_kind(raw: RawSpawner, odd: dict[str, int]) -> None:
    """In the place of a large body, of output, and too many of them: always an answer, never an end."""
    spec = SandboxSpec("odd", ("/bin/true",), {}, Limits(1.0, None, 10))
    for fd in odd.values():
        socket.send_fds(raw.requests, [protocol.MEMFD_MARK + b"odd"], [fd, fd, fd, fd])
        answer = await asyncio.to_thread(raw.receive)
        assert isinstance(answer, protocol.Refused | SetupFailed), answer
        raw.send(protocol.Launch(spec), (fd, fd, fd))
        assert await asyncio.to_thread(_outcome, raw, "odd") is not None
    socket.send_fds(raw.requests, [protocol.encode(protocol.Launch(spec))], list(odd.values()))
    assert isinstance(await asyncio.to_thread(raw.receive), SetupFailed)
    for fd in odd.values():
        socket.send_fds(raw.control, [protocol.encode(protocol.Ping(1))], [fd])
        assert await asyncio.to_thread(raw.receive) == protocol.Pong(1)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


def _outcome(raw: RawSpawner, sandbox_id: str) -> protocol.Message:
    """The last report about it; or a refusal, which has no id."""
    while True:
        report = raw.receive()
        if isinstance(report, protocol.Refused) or (
            isinstance(report, Ended | SetupFailed) and report.id == sandbox_id
        ):
            return report
        assert isinstance(report, Started), report


EXTREMES: dict[str, tuple[object, ...]] = {
    "cpu": (0.01, 65536, 1e-9, -1, "1", None, 1e300),
    "memory_bytes": (1, 4096, 2**62, 2**63, 0, -1, 1.5, True),
    "pids": (1, 4_000_000, 0, -1, 2**40, None),
    "io_read_bytes_per_s": (1, 2**62, 2**64, 0),
    "io_write_bytes_per_s": (1, 2**62, 2**64, "x"),
    "scratch_bytes": (1, 2**62, 0, [], {}),
    "cwd": ("", "/", "relative", "/nowhere", "/" + "x" * 5000, "/\ud83d", "/\0", 3),
    "argv": ([], [""], ["/bin/true"] * 5000, ["x" * 200_000], ["/bin/" + "y" * 100_000], [1], "x", ["\udcff\ud83d"]),
    "env": ({"": "x"}, {"A": 1}, {"A=": "x"}, {f"N{i}": "v" * 1000 for i in range(300)}, []),
    "mounts": (
        [{"source": "/proc/1/root", "target": "/data", "read_only": True}],
        [{"source": "/dev/zero", "target": "/data", "read_only": True}],
        [{"source": "/nowhere", "target": "/data", "read_only": True}],
        [{"source": "relative", "target": "/data", "read_only": True}],
        [{"source": "/usr", "target": "/../etc", "read_only": False}],
        [{"source": "/usr", "target": "/data/" + "d/" * 3000, "read_only": True}],
        [{"source": "/usr", "target": "/tmp/" + "e" * 300, "read_only": True}],
        [{"source": "/usr", "target": f"/data/{i}", "read_only": True} for i in range(200)],
        [{"source": "/usr"}],
        ["x"],
    ),
    "host_network": (0, "yes", None),
    "timeout_s": (0, 1e-9, 3.1e8, 1e300, -1),
    "grace_s": (0, 3e7, 1e300, None),
    "id": ("", "..", "a/b", "x" * 81, 5),
}


async def test_extreme_values_are_run_or_refused(raw: RawSpawner) -> None:
    """Each field at its ends and beyond, alone and with others; after all of it a plain task still runs."""
    source = random.Random(SEED)
    sound = json.loads(protocol.encode(protocol.Launch(SandboxSpec("x", ("/bin/true",), {}, Limits(1.0, None, 10)))))
    odd = [{field: value} for field, values in EXTREMES.items() for value in values]
    odd += [dict(pair for one in source.sample(odd, 3) for pair in one.items()) for _ in range(40)]
    null = os.open("/dev/null", os.O_RDWR)
    try:
        for number, changes in enumerate(odd):
            message = json.loads(json.dumps(sound))
            spec = message[2]["spec"]
            spec["id"] = f"n{number}"
            for field, value in changes.items():
                (spec["limits"] if field in spec["limits"] else spec)[field] = value
            data = json.dumps(message).encode()
            await asyncio.to_thread(_send, raw, data, null, f"n{number}")
            report = await asyncio.to_thread(_outcome, raw, f"n{number}")
            if isinstance(report, SetupFailed) and report.step == "request":
                named = (*changes, "target", "surrogates", "a message of")
                assert any(name in report.detail for name in named), report
    finally:
        os.close(null)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


def _send(raw: RawSpawner, data: bytes, fd: int, label: str) -> None:
    protocol.send_encoded(raw.requests, data, (fd, fd, fd), label=label)


# ---- floods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [FLOOD, pytest.param(20 * FLOOD, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
async def test_a_flood_of_launches(runner: Runner, count: int) -> None:
    """All asked for at once: every one is answered, and what came through was run."""
    null = os.open("/dev/null", os.O_RDWR)

    async def one(number: int) -> str:
        spec = replace(runner.spec("/bin/true", limits=replace(LIMITS, memory_bytes=16 << 20)), id=f"flood-{number}")
        try:
            sandbox = await runner.spawner.launch(spec, stdin=null, stdout=null, stderr=null)
        except SandboxFailed as failed:
            return failed.report.step
        ended = await sandbox.wait()
        return "ran" if ended.exit_code == 0 else f"ended {ended}"

    try:
        found = Counter(await asyncio.gather(*(one(number) for number in range(count))))
    finally:
        os.close(null)
    assert found["ran"] > count / 2, found
    # Refused for want of something is an answer; anything else is not.
    assert not [how for how in found if how.startswith("ended")], found
    await _runs_a_task(runner)


async def test_a_flood_of_stops_and_pings(raw: RawSpawner) -> None:
    """Ten thousand stops of what there is not, with deadlines between them."""

    def flood() -> None:
        for number in range(10_000):
            message = protocol.Stop(f"nobody-{number}", float(number % 3))
            raw.control.setblocking(True)
            raw.control.send(protocol.encode(message))

    await asyncio.to_thread(flood)
    protocol.send(raw.control, protocol.Ping(7))
    assert await asyncio.to_thread(raw.receive) == protocol.Pong(7)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


async def test_a_node_that_does_not_read(raw: RawSpawner) -> None:
    """Its reports wait; what it asks for is done meanwhile, and control gets through."""
    count = 400
    null = os.open("/dev/null", os.O_RDWR)
    try:
        for number in range(count):
            spec = SandboxSpec(f"unread-{number}", ("no such command" + "." * 900,), {}, Limits(1.0, None, 10))
            await asyncio.to_thread(raw.send, protocol.Launch(spec), (null, null, null))
        long = SandboxSpec("long", ("/bin/sleep", "60"), {}, Limits(1.0, None, 10))
        await asyncio.to_thread(raw.send, protocol.Launch(long), (null, null, null))
    finally:
        os.close(null)
    # By its command: for a moment, one of those before it may be the only child too.
    await wait_until(lambda: _commands(raw.process.pid) == [b"/bin/sleep\x0060\0"], 60, what="only the last is left")
    protocol.send(raw.control, protocol.Stop("long", 0))
    await wait_until(lambda: _children(raw.process.pid) == [], what="the last one is killed")
    reports = [await asyncio.to_thread(raw.receive) for _ in range(count + 2)]
    assert len([r for r in reports if isinstance(r, SetupFailed) and r.step == "exec"]) == count
    assert isinstance(reports[-1], Ended)
    assert (await asyncio.to_thread(raw.run_true)).exit_code == 0


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _commands(pid: int) -> list[bytes]:
    """What the sandboxes of a spawner run; "" while PID 1 has not noted that it was started, and does not sleep yet
    (waiting for an exec it is in state D)."""
    found: list[bytes] = []
    for sandbox in _children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in _children(int(sandbox))]
            is_noted = Path(f"/proc/{sandbox}/stat").read_text().rpartition(")")[2].split()[0] == "S"
            found += commands if is_noted else [b""]
    return found


# ---- want of something ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _group_of_its_own(pid: int, controller: str, name: str) -> Iterator[Path]:
    """Moves a process into a control group of the test's below its own, and back again at the end."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    paths = {kinds: path for _, kinds, path in lines}
    on_v1 = controller in paths
    root = Path("/sys/fs/cgroup") / (controller if on_v1 else "")
    own = root / paths[controller if on_v1 else ""].lstrip("/")
    if not on_v1 and controller not in (own / "cgroup.subtree_control").read_text().split():
        pytest.skip(f"version 2: {own} has processes and so no children with the {controller} controller")
    group = own / name
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (own / "cgroup.procs").write_text(left)
        group.rmdir()


async def test_no_processes_for_the_sandbox(runner: Runner, config: SpawnerConfig) -> None:
    """The parent of all sandboxes is at its limit of processes."""
    await _runs_a_task(runner)
    parent = min((p for p in cgroups_of(config.host_id) if (p / "pids.max").exists()), key=lambda p: len(p.parts))
    (parent / "pids.max").write_text("0")
    assert await _errnos(runner, 10, "/bin/true") == {errno.EAGAIN: 10}
    (parent / "pids.max").write_text("max")
    await _runs_a_task(runner)


async def test_no_processes_for_the_spawner(runner: Runner, config: SpawnerConfig) -> None:
    """The table is full where the spawner itself is: it can clone nothing."""
    with _group_of_its_own(runner.spawner.pid, "pids", config.host_id) as group:
        (group / "pids.max").write_text("1")
        assert await _errnos(runner, 10, "/bin/true") == {errno.EAGAIN: 10}
        (group / "pids.max").write_text("max")
        await _runs_a_task(runner)
    await _runs_a_task(runner)


async def test_no_memory_for_the_spawner(runner: Runner) -> None:
    """It may map no more than it has: what needs more is refused as such, in words."""
    await _runs_a_task(runner)
    pid = runner.spawner.pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    (used,) = (line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmSize" in line)
    resource.prlimit(pid, resource.RLIMIT_AS, ((int(used) << 10) + (256 << 10), before[1]))
    words = ["x" * 100_000] * 12
    found = await _errnos(runner, 5, "/bin/echo", *words)
    assert found == {errno.ENOMEM: 5}
    resource.prlimit(pid, resource.RLIMIT_AS, before)
    assert await _errnos(runner, 2, "/bin/echo", *words) == {0: 2}
    await _runs_a_task(runner)


@pytest.fixture
def narrow(config: SpawnerConfig) -> Iterator[Path]:
    """Scratch on a file system with room for a hundred files."""
    config.scratch_root.mkdir()
    place = str(config.scratch_root)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "narrow", place], check=True)
    try:
        yield config.scratch_root
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


async def test_no_inodes_for_scratch(config: SpawnerConfig, narrow: Path) -> None:
    async for runner in running(config):
        await _runs_a_task(runner)
        filler = narrow / "filler"
        with contextlib.suppress(OSError):
            filler.mkdir()
            for number in range(200):
                (filler / str(number)).touch()
        found = await _errnos(runner, 30, "sleep", "0.5")
        assert set(found) == {0, errno.ENOSPC} or set(found) == {errno.ENOSPC}, found
        for path in filler.iterdir():
            path.unlink()
        assert await _errnos(runner, 30, "/bin/true") == {0: 30}
        filler.rmdir()


async def test_no_bytes_for_scratch(config: SpawnerConfig, narrow: Path) -> None:
    """A full disk is the task's own error; the spawner needs no room on it."""
    async for runner in running(config):
        filler = narrow / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(1 << 21))
        assert "No space left" in (await runner.sh("head -c 100000 /dev/zero > file")).stderr
        await _runs_a_task(runner)
        filler.unlink()
        assert (await runner.sh("head -c 100000 /dev/zero > file")).ended.exit_code == 0


async def test_its_control_groups_are_removed(config: SpawnerConfig) -> None:
    """By somebody else, while nothing runs: the next launch is refused, the spawner ends, and the next one works."""
    told: list[str] = []
    spawner = await Spawner.start(config, on_died=told.append)
    runner = Runner(spawner)
    try:
        await _runs_a_task(runner)
        for path in sorted(cgroups_of(config.host_id), key=lambda p: -len(p.parts)):
            path.rmdir()
        with pytest.raises((SandboxFailed, SpawnerDied)):
            await _runs_a_task(runner)
        await asyncio.wait_for(spawner.wait_died(), patient(20))
        assert told
    finally:
        await spawner.close()
        runner.close()
    async for again in running(config):
        await _runs_a_task(again)


async def test_a_task_that_names_what_is_not_there(runner: Runner) -> None:
    """A report about a path as long as an argument may be fits in a datagram, also without a descriptor for more."""
    pid = runner.spawner.pid
    await _runs_a_task(runner)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with pytest.raises(SandboxFailed) as failed:
        await runner.run("/" + "x" * 100_000, mounts=(BindMount("/usr", "/data"),))
    assert failed.value.report.errno == errno.ENAMETOOLONG
    assert len(failed.value.report.detail) < 10_000
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == limits
    await _runs_a_task(runner)
