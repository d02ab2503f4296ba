"""Files that are not the task's: the view, programs, PID 1's, the output's, devices."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import isolation
from isolation.client import SpawnerConfig
from isolation.errors import SandboxFailed
from isolation.spec import SCRATCH_DIR, BindMount
from node.running.logs import LogStore
from tests.hostile.harness import PLACE, PYTHON, Hostile, Report, throwaway
from tests.isolation_live.conftest import Runner, running, text
from tests.support.guest import in_guest

pytestmark = pytest.mark.isolation

PROJECT = Path(isolation.__file__).parents[1]
#: What the spawner, PID 1 and the node run, and what an attacker would like them to run.
OURS = [
    str(Path(isolation.__file__).parent / "spawner.py"),
    str(next(Path(isolation.__file__).parent.glob("_sandbox*.so"))),
    str(Path(isolation.__file__).parent),
    str(PROJECT / "node" / "app.py"),
    sys.executable,
    os.path.dirname(os.__file__),  # noqa: PTH120  (as text)
    str(Path(sys.prefix) / "lib"),
]
SYSTEM = ["/", "/etc", "/etc/passwd", "/etc/ld.so.preload", "/etc/ld.so.cache", "/usr/bin/python3", "/usr/lib", "/opt"]
SYSTEM += ["/lib", "/bin/sh", "/proc", "/sys", "/dev", "/dev/shm/..", "/run", "/home", "/var", "/var/lib", "/boot"]
SYSTEM += ["/usr/lib/python3/dist-packages", "/var/log", "/var/cache", "/var/mail", PLACE]


async def test_files_of_the_machine_and_of_the_project(hostile: Hostile) -> None:
    """Programs, libraries, our own code and what might be loaded with it: nothing can be changed in any way."""
    report = await hostile.run("files", "change", *SYSTEM, *OURS)
    assert report.succeeded == frozenset(), report.said
    reached = {name.partition(" ")[2] for name, outcome in report.said.items() if outcome.startswith("refused")}
    assert {"/etc/passwd", "/usr/bin/python3", "/"} <= reached


async def test_that_files_can_be_changed_where_they_may(hostile: Hostile, tmp_path: Path) -> None:
    """The same attempts on the task's own, and on a writable mount: so that they mean something above."""
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o777)
    own = f"{SCRATCH_DIR}/own"
    sandbox, out, _ = await hostile.runner.launch(
        hostile.spec(
            "files",
            "change",
            "/tmp",
            SCRATCH_DIR,
            "/data",
            own,
            mounts=(BindMount(str(place), "/data", read_only=False),),
        )
    )
    await sandbox.wait()
    for place_inside in ("/tmp", SCRATCH_DIR, "/data"):
        for way in ("create", "mkdir", "symlink"):
            assert f"{way} {place_inside}: SUCCEEDED" in text(out), (way, place_inside)
    for way in ("chmod", "times"):
        assert f"{way} {SCRATCH_DIR}: SUCCEEDED" in text(out)


async def test_nothing_in_the_whole_view_is_writable(hostile: Hostile, config: SpawnerConfig) -> None:
    """Every file and directory is asked, with the machine's own world-writable ones among them; no socket that listens
    on the machine and no device but our few is in sight."""
    # The guest has the same files, through a device that takes a millisecond for each.
    skipped = ["/usr", str(PROJECT)] if in_guest() else []
    report = await hostile.run("files", "walk", "/", "/proc", *skipped)
    assert int(report.get("looked at")) > 1000
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx")}
    writable = set(report.get("writable").split())
    assert writable == {"/tmp", SCRATCH_DIR} | devices
    assert set(report.get("devices").split()) == devices
    assert report.get("fifos") == ""
    listening = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if " /" in line}
    assert not listening & set(report.get("sockets").split())


async def test_that_the_walk_finds_what_is_there(config: SpawnerConfig, tmp_path: Path) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o777)
    (place / "file").touch()
    (place / "file").chmod(0o666)
    os.mkfifo(place / "fifo")
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (place / "null").chmod(0o666)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
        share = BindMount(str(place), "/shared", read_only=False)
        async for runner in running(replace(config, shares=(share,))):
            report = await Hostile(runner).run("files", "walk", "/shared")
            await _device_is_dead(runner, "/shared/null")
    assert {"/shared", "/shared/file"} <= set(report.get("writable").split())
    found = [report.get(kind) for kind in ("sockets", "devices", "fifos")]
    assert found == ["/shared/socket", "/shared/null", "/shared/fifo"]


async def _device_is_dead(runner: Runner, path: str) -> None:
    """A device that lies in a mount can be seen and not be opened; here it is /dev/null, so that nothing can happen."""
    code = f"import os\ntry: os.open({path!r}, os.O_WRONLY)\nexcept PermissionError: print('refused')"
    assert (await runner.run(*PYTHON, "-c", code)).stdout == "refused\n"


async def test_programs_through_proc_exe(hostile: Hostile) -> None:
    """CVE-2019-5736: the interpreter of the machine, which the spawner itself is one of."""
    report = await hostile.run("files", "exe", "/usr/bin/python3")
    assert report.said == {"while it runs": "refused EACCES", "when it has ended": "refused EACCES"}


async def test_that_a_program_of_ones_own_can_be_overwritten_so(hostile: Hostile) -> None:
    sandbox, out, err = await hostile.runner.launch(
        hostile.runner.spec(
            *("sh", "-c", f"cp /usr/bin/python3 own && {' '.join(PYTHON)} {PLACE}/files.py exe $PWD/own"),
            mounts=(BindMount(str(Path(__file__).parent / "attacks"), PLACE),),
            env=hostile.environment,
        )
    )
    await sandbox.wait()
    assert text(out).splitlines() == ["while it runs: refused ETXTBSY", "when it has ended: SUCCEEDED"], text(err)


async def test_pid_1_and_what_leads_out_through_it(hostile: Hostile) -> None:
    report = await hostile.run("files", "neighbours")
    assert report.succeeded <= {"read /proc/1/auxv", "read /proc/1/maps"}, report.said
    for name in ("readlink /proc/1/exe", "list /proc/1/fd", "list /proc/1/root", "read /proc/1/environ"):
        assert report.get(name) == "refused EACCES"
    assert {report.get(f"fd {number}") for number in range(3, 40)} == {"refused ENOENT"}
    assert report.get("above /proc/self/cwd") == report.get("above /proc/self/root") == "refused"


async def test_that_pid_1_could_be_read_otherwise() -> None:
    """Where PID 1 is of the same user and dumpable. It cannot be shown by leaving our step out: the kernel makes a
    process undumpable when it changes its user, too (prctl(2), PR_SET_DUMPABLE), and the user is always changed."""
    report = await throwaway("files", "neighbours")
    assert {"readlink /proc/1/exe", "list /proc/1/root", "read /proc/1/environ"} <= report.succeeded, report.said


@pytest.mark.parametrize(
    "cwd", [f"/proc/self/fd/{number}" for number in range(13)] + ["/proc/1/fd/5", "/proc/self/exe"]
)
async def test_a_cwd_through_a_descriptor(hostile: Hostile, cwd: str) -> None:
    """CVE-2024-21626: only the output's descriptors and the report socket are open when the directory is entered."""
    with pytest.raises(SandboxFailed) as failed:
        await hostile.runner.run("pwd", cwd=cwd)
    assert failed.value.report.step == "chdir"


@pytest.mark.parametrize(
    "cwd", ["/proc/1/cwd", "/proc/self/cwd", "/proc/1/root", "/proc/self/root", "/proc/1/task/1/cwd"]
)
async def test_a_cwd_through_proc_is_in_the_view(hostile: Hostile, cwd: str) -> None:
    result = await hostile.runner.sh("cd ../../../..; ls -A root run home tmp; stat -c %m .", cwd=cwd)
    assert result.stdout.split() == ["home:", "task", "root:", "run:", "tmp:", "/"]


@pytest.mark.parametrize(
    "source", ["/proc/self/fd/3", "/proc/1/root/etc", "/proc/self/cwd", "/proc/1/exe", "/dev/fd/1"]
)
async def test_a_mount_through_a_descriptor(hostile: Hostile, source: str) -> None:
    with pytest.raises(SandboxFailed) as failed:
        await hostile.runner.run("true", mounts=(BindMount(source, "/data"),))
    assert failed.value.report.step == "mount"


#: Output as the node opens it; what a task may do to its own output is none of the attempts that count.
_MAY = {f"{name} {what}" for name in ("stdout", "stderr") for what in ("attribute", "space")}


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    root = tmp_path / "logs"
    root.mkdir()
    store = LogStore(root)
    yield store
    store.close()


async def _with_output(hostile: Hostile, logs: LogStore, mode: str, task_id: str) -> tuple[Report, Path]:
    """Runs it with its output where a node would put it, on stderr, so that stdout may stay empty."""
    log = logs.open(task_id, 1)
    null = os.open("/dev/null", os.O_RDONLY)
    spec = hostile.spec("files", mode)
    try:
        sandbox = await hostile.runner.spawner.launch(spec, stdin=null, stdout=log.stdout, stderr=log.stderr)
        ended = await sandbox.wait()
    finally:
        os.close(null)
    await logs.settle(task_id, 1)
    path = logs.path(task_id, 1, "stdout")
    said = dict(line.split(": ", 1) for line in path.read_text().splitlines())
    return Report(said, path.read_text(), "", ended, ended.exit_code), path


async def test_the_files_of_the_output(hostile: Hostile, logs: LogStore) -> None:
    """Written, and nothing else: not read, not kept, not locked, not linked into a place of the task's own."""
    report, path = await _with_output(hostile, logs, "stdio", "a" * 32)
    assert report.succeeded <= _MAY, report.said
    assert report.get("stdout read") == "refused EBADF"
    assert (
        report.get("stdout open to read") == report.get("stdout chmod").replace("EPERM", "EACCES") == "refused EACCES"
    )
    assert report.get("stdout link by path") == "refused EXDEV"
    assert stat.S_IMODE(path.stat().st_mode) == 0o602


async def test_that_output_could_be_read_otherwise(hostile: Hostile) -> None:
    """The same attempts on output that the task may read: the memory files of the tests' own runner."""
    report = await hostile.run("files", "stdio")
    assert {"stdout open to read", "stdout open for both"} <= report.succeeded


async def test_no_device_of_the_machine(hostile: Hostile) -> None:
    report = await hostile.run("files", "devices")
    assert report.succeeded == frozenset()
    assert set(report.said.values()) <= {"refused ENOENT"}, report.said


async def test_that_devices_are_there_otherwise() -> None:
    """Where the view is the machine's own they are found; an ordinary user may open few of them."""
    report = await throwaway("files", "devices")
    assert set(report.said.values()) - {"refused ENOENT"}, report.said
