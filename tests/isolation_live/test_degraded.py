"""A host that lacks something: it is said, and what can be kept is kept. Above all: no root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from isolation.errors import HostLacks
from isolation.probe import probe
from tests.support import ordinary_user
from tests.support.delegated_groups import delegated_groups
from tests.support.leaks import cgroups_of
from tests.support.require import require
from tests.support.wait import patient, wait_until_sync

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("root")]

ROOT = Path(__file__).parents[2]

#: What the programs below have in common: a spawner, and `run(name, script, **limits)`.
PRELUDE = """
import asyncio, os, sys, time
from pathlib import Path
from isolation import client
from isolation.client import Spawner, SpawnerConfig
from isolation.errors import HostLacks, SandboxFailed
from isolation.spec import BindMount, Limits, SandboxSpec
from tests.support.wait import patient

client.START_LIMIT_S = patient(client.START_LIMIT_S)

async def launch(spawner, name, script, **fields):
    out = os.memfd_create("out")
    null = os.open("/dev/null", os.O_RDWR)
    fields.setdefault("limits", Limits(1.0, None, 20))
    spec = SandboxSpec(name, ("sh", "-c", script), {"PATH": "/usr/bin:/bin"}, **fields)
    return await spawner.launch(spec, stdin=null, stdout=out, stderr=out), out

async def run(spawner, name, script, **fields):
    sandbox, out = await launch(spawner, name, script, **fields)
    ended = await sandbox.wait()
    return ended, os.pread(out, 100000, 0).decode().strip()

async def start(**fields):
    return await Spawner.start(SpawnerConfig(host_id=sys.argv[1], scratch_root=Path(sys.argv[2]), **fields))
"""

WITHOUT_CGROUPS = (
    PRELUDE
    + """
async def main():
    spawner = await start()
    print(spawner.report.cgroup_version, spawner.report.limits, *spawner.report.not_enforced)
    print((await run(spawner, "a", "exit 3"))[0].exit_code)
    sleeper, _ = await launch(spawner, "b", "sleep 60")
    spawner.set_deadline(time.clock_gettime(time.CLOCK_BOOTTIME))
    print((await sleeper.wait()).ended_by)
    await spawner.close()

asyncio.run(main())
"""
)

#: Starts, and prints what a host that cannot is told.
REFUSED = (
    PRELUDE
    + """
async def main():
    try:
        await start()
    except HostLacks as lacks:
        print(lacks)

asyncio.run(main())
"""
)


def test_without_cgroups_tasks_run_and_die_at_the_deadline(config: SpawnerConfig) -> None:
    """In a mount namespace of the test's own, in which the groups are covered."""
    script = 'mount -t tmpfs cover /sys/fs/cgroup && exec "$@"'
    program = [sys.executable, "-c", WITHOUT_CGROUPS, config.host_id, str(config.scratch_root)]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    report, code, ended_by = done.stdout.splitlines()
    assert report.startswith("0 () cpu, memory, process and disk io limits")
    assert (code, ended_by) == ("3", "fence"), done.stderr


def test_an_old_kernel_is_told(config: SpawnerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        release = "5.4.0-100-generic"

    monkeypatch.setattr(os, "uname", Old)
    with pytest.raises(HostLacks, match=r"5\.4\.0.*5\.12"):
        probe(config)


def test_root_without_its_capability_is_told(config: SpawnerConfig) -> None:
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--", sys.executable, "-c", REFUSED]
    done = subprocess.run(
        [*command, config.host_id, str(config.scratch_root)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "CAP_SYS_ADMIN" in done.stdout, done.stderr
    assert "ordinary user" in done.stdout
    assert cgroups_of(config.host_id) == []


def in_a_container(program: str, *args: str) -> str:
    """What a program prints that runs as the root of a user namespace with 65,536 users, as in many containers."""
    names = ["unshare", "--user", "--net", "--mount", "--propagation", "private"]
    command = [*names, "sh", "-c", 'read _ && exec "$@"', "sh", sys.executable, "-c", program, *args]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        own = Path("/proc/self/ns/user").readlink()
        wait_until_sync(lambda: Path(f"/proc/{process.pid}/ns/user").readlink() != own, what="the namespace is made")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536")
        out, _ = process.communicate("go\n", timeout=patient(60))
    return out


def test_root_of_a_container(config: SpawnerConfig) -> None:
    """Which may make no device nodes, and has too few users to give each task its own."""
    program = f"{PRELUDE}\nasync def main():\n    spawner = await start()\n"
    program += "    print((await run(spawner, 'a', 'id -u; echo x >/dev/null; wc -c </dev/null'))[1])\n"
    program += "    print(*spawner.report.not_enforced)\n    await spawner.close()\nasyncio.run(main())"
    said = in_a_container(program, config.host_id, str(config.scratch_root))
    assert said.startswith("65534\n0\na user of its own for each task")
    assert cgroups_of(config.host_id) == []


# ---- an ordinary user ------------------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of that user."""
    directory = ordinary_user.directory()
    yield directory
    shutil.rmtree(directory)


#: Runs a program as that user, with its host id and scratch directory as arguments, and gives the lines that it
#: printed. `outside`: a command that runs all this, as root.
Ordinary = Callable[..., list[str]]


@pytest.fixture
def ordinary(config: SpawnerConfig, home: Path) -> Ordinary:
    def run(program: str, *, outside: Sequence[str] = (), groups: Sequence[Path] = ()) -> list[str]:
        prefix = ordinary_user.prefix(groups=groups)
        done = subprocess.run(
            [*outside, *prefix, sys.executable, "-c", program, config.host_id, str(home / "scratch")],
            cwd=home,
            env=ordinary_user.environment(home),
            capture_output=True,
            text=True,
            timeout=patient(120),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def in_mounts(script: str, *args: str) -> list[str]:
    """A command that runs another one in a mount namespace of its own, after a script, which gets the arguments."""
    script = f'{script}; shift {len(args)}; exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *args]


#: Quick ones at each run; the others where there is time.
QUICK = ("view", "proc", "mounts", "ending", "limits", "death", "fencing")
LONG = ("outcomes", "hung", "requests", "scratch_limit")


#: Attacks by calls and on who shares the user's id; that they are real, only root can show (tests/hostile).
ATTACKS = (
    "test_calls.py::test_calls_are_refused_unseen",
    "test_calls.py::test_no_way_out_by_mounts_and_namespaces",
    "test_calls.py::test_doors_are_shut",
    "test_calls.py::test_pid_1_can_be_neither_read_nor_steered",
    "test_calls.py::test_pid_1_is_not_put_behind_everybody",
    "test_sockets.py::test_what_one_task_hands_on_leads_to_no_third_one",
)


def _pytest_passes(home: Path, *paths: str) -> None:
    """Runs tests as that user."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(home / "t"), *paths]
    environment = ordinary_user.environment(home) | {"TMPDIR": str(home)}
    done = subprocess.run(
        [*ordinary_user.prefix(), *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert " passed" in done.stdout


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_promises_hold_for_an_ordinary_user(name: str, home: Path) -> None:
    """All but those that a fixture (`root`, `groups`, `freezer`) takes out, which docs/isolation.md lists."""
    _pytest_passes(home, str(Path(__file__).with_name(f"test_{name}.py")))


@pytest.mark.timeout(400)
def test_attacks_fail_for_an_ordinary_user_too(home: Path) -> None:
    _pytest_passes(home, *(str(ROOT / "tests/hostile" / attack) for attack in ATTACKS))


def test_what_is_not_enforced_is_said(ordinary: Ordinary) -> None:
    program = f"{PRELUDE}\nasync def main():\n    spawner = await start()\n    print(*spawner.report.limits)\n"
    program += "    print(*spawner.report.not_enforced, sep='\\n')\n    await spawner.close()\nasyncio.run(main())"
    limits, *sentences = ordinary(program)
    assert limits == "pids"
    subjects = [sentence.partition(" (")[0] for sentence in sentences]
    assert subjects == [
        "a user of its own for each task",
        "cpu limits",
        "memory limits of a task as a whole",
        "disk io limits",
        "freezing at the fence deadline",
        "exact usage",
    ]


#: Forks until it is refused or has 40 children, and prints how many.
FORKS = """/usr/bin/python3 -c '
import os, time
n = 0
try:
    while n < 40:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        n += 1
except OSError:
    pass
print(n, flush=True)
os._exit(0)'"""


def test_processes_are_limited_each_sandbox_for_itself(ordinary: Ordinary) -> None:
    """What RLIMIT_NPROC counts is the user's processes in a user namespace: its own, whatever others do."""
    program = (
        PRELUDE
        + f"""
async def main():
    spawner = await start()
    other, _ = await launch(spawner, "other", {FORKS!r} + "; sleep 60", limits=Limits(1.0, None, 60))
    for n in (10, 20):
        print((await run(spawner, f"n{{n}}", {f"exec {FORKS}"!r}, limits=Limits(1.0, None, n)))[1])
    await spawner.close()

asyncio.run(main())
"""
    )
    assert ordinary(program) == ["9", "19"]


def test_memory_is_limited_process_by_process(ordinary: Ordinary) -> None:
    """An error in the program, and not told as out of memory; /tmp is bounded too."""
    hog = "/usr/bin/python3 -c 'b = bytearray(200 << 20)'"
    program = (
        PRELUDE
        + f"""
async def main():
    spawner = await start()
    small, large = Limits(1.0, 64 << 20, 20), Limits(1.0, 512 << 20, 20)
    for limits in (small, large):
        ended, said = await run(spawner, "hog", {hog!r}, limits=limits)
        print(ended.exit_code, "MemoryError" in said, ended.out_of_memory)
    full = "head -c 100M /dev/zero >/tmp/x"
    print((await run(spawner, "full", full, limits=small))[1])
    print((await run(spawner, "fits", full, limits=large))[1])
    await spawner.close()

asyncio.run(main())
"""
    )
    small, large, full, fits = (*ordinary(program), "")[:4]
    assert (small, large) == ("1 True False", "0 False False")
    assert "No space left" in full
    assert fits == ""


def test_the_users_home_is_covered_wherever_it_is(ordinary: Ordinary, tmp_path: Path) -> None:
    """Tasks have his id. A share that lies in it is there nevertheless."""
    place = Path("/opt/pilfer-test-home")
    (place / "shared").mkdir(parents=True)
    passwd = tmp_path / "passwd"
    try:
        (place / "secret").write_text("x")
        (place / "shared/file").write_text("content")
        for path in (place, *place.rglob("*")):
            os.chown(path, ordinary_user.UID, ordinary_user.GID)
        passwd.write_text(f"tester:x:{ordinary_user.UID}:{ordinary_user.GID}::{place}:/bin/sh\n")
        program = (
            PRELUDE
            + f"""
async def main():
    spawner = await start(shares=(BindMount("{place}/shared", "{place}/shared"),))
    print((await run(spawner, "a", "ls -A {place}; cat {place}/shared/file"))[1])
    await spawner.close()

asyncio.run(main())
"""
        )
        outside = in_mounts('mount --bind "$1" /etc/passwd', str(passwd))
        assert ordinary(program, outside=outside) == ["shared", "content"]
        passwd.write_text("")
        assert ordinary(program, outside=outside) == ["secret", "shared", "content"]  # so that it means something
    finally:
        shutil.rmtree(place)


def test_the_nodes_own_directory_comes_in_by_no_mount(ordinary: Ordinary, home: Path) -> None:
    """Permissions do not keep a task from it, which has the node's user: not where a mount or a share holds it."""
    own = home / "node"
    own.mkdir()
    (own / "key").write_text("secret")
    (home / "data").write_text("content")
    for path in (own, own / "key", home / "data"):
        os.chown(path, ordinary_user.UID, ordinary_user.GID)
    program = (
        PRELUDE
        + f"""
async def main():
    spawner = await start(shares=(BindMount("{home}", "{home}", False),), hidden=(Path("{own}"),))
    mount = BindMount("{home}", "/data", False)
    script = "cat {home}/data /data/data; ls -A {home}/node /data/node; mv /data/node /data/x; ls -A /data/x"
    print((await run(spawner, "a", script, mounts=(mount,)))[1])
    for source in ("{own}/key", "{own}"):
        try:
            print(await run(spawner, "b", "ls -A /data", mounts=(BindMount(source, "/data"),)))
        except SandboxFailed as failed:
            print(failed.report.step, failed.report.errno)
    await spawner.close()

asyncio.run(main())
"""
    )
    said = "\n".join(ordinary(program))
    assert "secret" not in said
    assert "key" not in said
    assert said.startswith("contentcontent")
    assert "mount 2" in said  # ENOENT


def test_a_host_that_forbids_user_namespaces_is_told(ordinary: Ordinary) -> None:
    """In a user namespace of the test's own, which has that setting for itself."""
    forbid = """
from isolation import _sandbox, kernel
kernel.unshare(_sandbox.CLONE_NEWUSER)
Path("/proc/sys/user/max_user_namespaces").write_text("0")
"""
    (said,) = ordinary(REFUSED.replace("asyncio.run(", f"{forbid}\nasyncio.run("))
    assert "user.max_user_namespaces is 0" in said
    assert "sysctl user.max_user_namespaces=" in said
    assert "start the node as root" in said


def test_a_host_that_covers_parts_of_proc_is_told(ordinary: Ordinary) -> None:
    """As container engines do; then the kernel lets no other be mounted."""
    (said,) = ordinary(REFUSED, outside=in_mounts("mount -t tmpfs cover /proc/tty"))
    assert "covers parts of /proc" in said


# ---- an ordinary user who was given control groups -------------------------------------------------------------------


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    with delegated_groups(ordinary_user.UID, ordinary_user.GID) as made:
        require("isolation", is_there=bool(made), reason="no control group of this process may have children")
        yield made


def test_limits_with_groups_of_ones_own(ordinary: Ordinary, groups: list[Path]) -> None:
    """A system's manager hands a part of the tree to the user (systemd: Delegate=yes); then all limits hold."""
    hog = "/usr/bin/python3 -c 'b = bytearray(200 << 20)'"
    busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    program = (
        PRELUDE
        + f"""
from tests.isolation_live.test_fencing import is_frozen

async def main():
    spawner = await start()
    print(*spawner.report.limits)
    print(*spawner.report.not_enforced, sep="|")
    ended, _ = await run(spawner, "hog", {hog!r} + "; exit 3", limits=Limits(1.0, 64 << 20, 20))
    print(ended.out_of_memory)
    print((await run(spawner, "forks", {f"exec {FORKS}"!r}, limits=Limits(1.0, None, 10)))[1])
    usage = (await run(spawner, "busy", {busy!r}, limits=Limits(0.2, None, 10)))[0].usage
    print(usage.cpu_s / usage.wall_s < 0.4)
    sleeper, out = await launch(spawner, "loop", "while :; do echo x; sleep 0.01; done")
    spawner.set_deadline(time.clock_gettime(time.CLOCK_BOOTTIME) + 0.3)
    while not is_frozen(sleeper.started.pid):
        await asyncio.sleep(0.01)
    spawner.set_deadline(time.clock_gettime(time.CLOCK_BOOTTIME) + 60)
    size = os.fstat(out).st_size
    while os.fstat(out).st_size == size:  # thawed, it goes on
        await asyncio.sleep(0.01)
    sleeper.kill()
    print((await sleeper.wait()).ended_by)
    await spawner.close()

asyncio.run(main())
"""
    )
    limits, lacks, *rest = ordinary(program, groups=groups)
    assert {"cpu", "memory", "pids"} <= set(limits.split())
    assert lacks.startswith("a user of its own for each task")
    assert "memory" not in lacks
    assert rest == ["True", "9", "True", "stop"]
    assert all(not any(child.is_dir() for child in group.iterdir()) for group in groups)  # nothing of it is left
