"""How a command ended is told as the command meant it."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from isolation.errors import SandboxFailed
from isolation.spec import BindMount
from tests.isolation_live.conftest import Runner, with_limits
from tests.support.require import require

pytestmark = pytest.mark.isolation

#: Allocates and touches the given number of MiB.
HOG = "import sys; b = bytearray(int(sys.argv[1]) << 20); print(len(b) >> 20)"
PYTHON = "/usr/bin/python3"


async def test_every_exit_code(runner: Runner) -> None:
    """Those above 128 too, which shells use for signals: here they are what they are."""
    results = await asyncio.gather(*(runner.sh(f"exit {code}") for code in range(256)))
    told = [(r.ended.exit_code, r.ended.signal, r.ended.ended_by, r.ended.out_of_memory) for r in results]
    assert told == [(code, None, "", False) for code in range(256)]


#: signal(7): what is sent and does nothing by default, and what stops.
IGNORED = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


async def test_every_signal_of_its_own(runner: Runner) -> None:
    """Real-time signals, and those that leave a core dump, too: the bit for the dump is no part of the number."""
    numbers = [number for number in range(1, 65) if number not in STOPS]
    results = await asyncio.gather(*(runner.sh(f"kill -{number} $$; exit 77") for number in numbers))
    told = {number: (r.ended.exit_code, r.ended.signal) for number, r in zip(numbers, results, strict=True)}
    assert told == {number: (77, None) if number in IGNORED else (None, number) for number in numbers}
    assert {r.ended.ended_by for r in results} == {""}


#: What the processor or the kernel answers a command with: C-level code that does it, and the signal.
FAULTS = {
    "import os; os.abort()": signal.SIGABRT,
    "import ctypes; ctypes.string_at(0)": signal.SIGSEGV,
    "import mmap\nf = open('x', 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096); f.truncate(0); m[0]": (
        signal.SIGBUS
    ),
    "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (1, 9))\nwhile True: pass": signal.SIGXCPU,
    "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(60)": signal.SIGALRM,
}


@pytest.mark.parametrize(("code", "number"), FAULTS.items(), ids=[number.name for number in FAULTS.values()])
async def test_faults(runner: Runner, code: str, number: signal.Signals) -> None:
    ended = (await runner.run(PYTHON, "-c", code)).ended
    assert (ended.exit_code, ended.signal, ended.ended_by) == (None, number, "")


async def test_a_core_dump_changes_nothing(runner: Runner) -> None:
    """A status has a bit for it. Bounds on its size keep it from being written; with a small one the bit may be set."""
    ended = (await runner.sh("ulimit -c; kill -ABRT $$")).ended
    assert (ended.exit_code, ended.signal) == (None, signal.SIGABRT)


async def test_a_signal_from_inside_to_a_sleeping_command(runner: Runner) -> None:
    ended = (await runner.sh("(sleep 0.1; kill -TERM $$) & exec sleep 60")).ended
    assert (ended.exit_code, ended.signal, ended.ended_by) == (None, signal.SIGTERM, "")


async def test_a_stop_that_the_command_takes_well(runner: Runner) -> None:
    """It was asked to end and says that all is well: both are told."""
    script = "trap 'exit 0' TERM; echo on; while :; do sleep 0.05; done"
    sandbox = await runner.start("sh", "-c", script, says="on")
    sandbox.stop(60)
    ended = await sandbox.wait()
    assert (ended.exit_code, ended.signal, ended.ended_by) == (0, None, "stop")
    ended = (await runner.sh(script, timeout_s=0.5, grace_s=60.0)).ended
    assert (ended.exit_code, ended.signal, ended.ended_by) == (0, None, "timeout")


async def test_a_stop_that_the_command_does_not_heed_and_ends_later(runner: Runner) -> None:
    """By itself, within the grace: still the answer to a stop."""
    sandbox = await runner.start("sh", "-c", "trap '' TERM; echo on; sleep 0.5; exit 9", says="on")
    sandbox.stop(60)
    ended = await sandbox.wait()
    assert (ended.exit_code, ended.signal, ended.ended_by) == (9, None, "stop")


async def test_output_and_input_go_where_they_belong(runner: Runner) -> None:
    result = await runner.sh("cat; echo wrong >&2", stdin=b"in\0\xff")
    assert result.stdout == "in\0�"
    assert result.stderr == "wrong\n"


async def test_times_and_usage(runner: Runner) -> None:
    ended = (await runner.run(PYTHON, "-c", "import time\nwhile time.process_time() < 0.3: pass")).ended
    assert 0.3 <= ended.usage.cpu_s < 3
    assert ended.usage.wall_s >= 0.29
    assert ended.finished_at - ended.started_at == pytest.approx(ended.usage.wall_s)
    assert ended.usage.memory_peak_bytes > 1 << 20


async def test_wall_time(runner: Runner) -> None:
    """From the command's start to its end: neither the making of the sandbox nor its removal."""
    result = await runner.run(PYTHON, "-c", "import time\nprint(time.time())\ntime.sleep(0.5)\nprint(time.time())")
    first, last = map(float, result.stdout.split())
    ended = result.ended
    assert ended.started_at <= first
    assert last <= ended.finished_at
    assert ended.usage.wall_s >= 0.5


async def test_cpu_of_children_that_nobody_waited_for(runner: Runner) -> None:
    """They tell by a file when they are done, and live on; a grandchild that was killed counts as well."""
    busy = 'import time, sys\nwhile time.process_time() < 0.3: pass\nopen(sys.argv[1], "w")\ntime.sleep(60)'
    script = f"""
        setsid {PYTHON} -c '{busy}' a & (setsid {PYTHON} -c '{busy}' b &)
        until [ -e a ] && [ -e b ]; do sleep 0.05; done
    """
    ended = (await runner.sh(script, limits=with_limits(cpu=4.0))).ended
    assert 0.6 <= ended.usage.cpu_s < 6


async def test_peak_memory_is_of_this_sandbox_alone(runner: Runner) -> None:
    big = (await runner.run(PYTHON, "-c", HOG, "100")).ended.usage.memory_peak_bytes
    assert 100 << 20 <= big < 160 << 20
    for _ in range(3):
        small = (await runner.run("/bin/true")).ended.usage
        assert small.memory_peak_bytes < 10 << 20
        assert small.cpu_s < 0.2


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize(
    "script", ["exec {}", "{} & wait", "({} &) ; sleep 0.1; while pgrep -x python3; do sleep 0.05; done"]
)
async def test_peak_memory_is_what_was_touched(runner: Runner, script: str) -> None:
    """Within 10 %, of a child and of a grandchild too, beside what the same command has without it."""
    peaks = []
    for mib in (1, 101):
        command = script.format(f"{PYTHON} -c '{HOG}' {mib}")
        ended = (await runner.sh(command)).ended
        assert ended.exit_code == 0
        peaks.append(ended.usage.memory_peak_bytes)
    assert 90 << 20 <= peaks[1] - peaks[0] <= 110 << 20


#: Writes and reads so many MiB past the page cache, in steps of one.
DIRECT = """
import mmap, os, sys
fd = os.open("x", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 20)
for i in range(int(sys.argv[1])): os.pwrite(fd, page, i << 20)
for i in range(int(sys.argv[2])): os.preadv(fd, [page], i << 20)
"""


@pytest.mark.parametrize("how", ["exec", "setsid", "timeout 60"])
async def test_io_is_what_was_moved(runner: Runner, how: str) -> None:
    """By the command or a child of it. The file system's own writes come on top, and what programs are read by."""
    require_disk_io(runner)
    usage = (await runner.sh(f"{how} {PYTHON} -c '{DIRECT}' 8 4")).ended.usage
    assert 8 << 20 <= usage.io_write_bytes <= 10 << 20
    assert usage.io_read_bytes >= 4 << 20
    # Nothing of it shows in the next one's.
    usage = (await runner.sh(f"{how} {PYTHON} -c '{DIRECT}' 0 0")).ended.usage
    assert usage.io_write_bytes < 1 << 20


def require_disk_io(runner: Runner) -> None:
    lacking = [words for words in runner.spawner.report.not_enforced if "disk io" in words]
    require("isolation", is_there=not lacking, reason="; ".join(lacking))


async def test_out_of_memory(runner: Runner) -> None:
    ended = (await runner.run(PYTHON, "-c", HOG, "200", limits=with_limits(memory_bytes=64 << 20))).ended
    assert (ended.exit_code, ended.signal, ended.out_of_memory, ended.ended_by) == (None, signal.SIGKILL, True, "")
    assert ended.usage.memory_peak_bytes <= 64 << 20


@pytest.mark.usefixtures("groups")
async def test_out_of_memory_of_a_grandchild_shows(runner: Runner) -> None:
    script = f"{PYTHON} -c '{HOG}' 200; exit 3"
    result = await runner.sh(script, limits=with_limits(memory_bytes=64 << 20))
    assert result.ended.out_of_memory
    # Version 1 kills one process and the shell goes on; version 2 kills the task as a whole.
    assert result.ended.exit_code in (3, None)


@pytest.mark.usefixtures("groups")
async def test_out_of_memory_does_not_stick_to_the_group(runner: Runner) -> None:
    await runner.run(PYTHON, "-c", HOG, "200", limits=with_limits(memory_bytes=64 << 20))
    for _ in range(3):
        assert not (await runner.run("/bin/true")).ended.out_of_memory
    assert (await runner.run(PYTHON, "-c", HOG, "100")).ended.exit_code == 0  # nor the limit


@pytest.mark.usefixtures("groups")
async def test_tmp_counts_as_memory(runner: Runner) -> None:
    script = "dd if=/dev/zero of=/tmp/full bs=1M count=100 2>/dev/null"
    ended = (await runner.sh(script, limits=with_limits(memory_bytes=32 << 20))).ended
    assert ended.out_of_memory


@pytest.mark.usefixtures("groups")
async def test_a_limit_too_small_to_start_is_out_of_memory(runner: Runner) -> None:
    sandbox, _, _ = await runner.launch(runner.spec("/bin/true", limits=with_limits(memory_bytes=4096)))
    ended = await sandbox.wait()
    assert (ended.out_of_memory, ended.exit_code) == (True, None)


async def _failure(runner: Runner, *argv: str, **fields: Any) -> tuple[str, int, str]:
    with pytest.raises(SandboxFailed) as failed:
        await runner.run(*argv, **fields)
    report = failed.value.report
    return report.step, report.errno, report.detail


async def test_no_such_command(runner: Runner) -> None:
    step, number, detail = await _failure(runner, "no-such-command")
    assert (step, number) == ("exec", errno.ENOENT)
    assert "no-such-command: no such command" in detail
    assert (await _failure(runner, "/no/such/command"))[:2] == ("exec", errno.ENOENT)
    assert (await _failure(runner, "/etc/passwd/x"))[:2] == ("exec", errno.ENOTDIR)


async def test_not_executable(runner: Runner) -> None:
    step, number, detail = await _failure(runner, "/etc/passwd")
    assert (step, number) == ("exec", errno.EACCES)
    assert "/etc/passwd" in detail
    # Found on the way, but not allowed: said so, as execvp does, rather than "not found".
    assert (await _failure(runner, "passwd", env={"PATH": "/nowhere:/etc:/also"}))[:2] == ("exec", errno.EACCES)


#: Name of a file that everybody may run, what is in it, and what comes of running it.
PROGRAMS = [
    ("text", b"no program", errno.ENOEXEC, "not a program"),
    ("empty", b"", errno.ENOEXEC, "not a program"),
    ("half", b"\x7fELF\x02\x01\x01", errno.ENOEXEC, "not a program"),
    ("foreign", b"\x7fELF\x02\x02\x01" + bytes(57), errno.ENOEXEC, "not a program"),
    ("lost", b"#!/no/such/interpreter\n", errno.ENOENT, "interpreter"),
    ("nested", b"#!/programs/text\n", errno.ENOEXEC, "not a program"),
    ("round", b"#!/programs/round\n", errno.ELOOP, "symbolic links"),
]


@pytest.mark.parametrize("row", PROGRAMS, ids=[row[0] for row in PROGRAMS])
async def test_what_cannot_be_run(runner: Runner, tmp_path: Path, row: tuple[str, bytes, int, str]) -> None:
    """Never an exit code: no command ever ran."""
    name, _, number, words = row
    programs = tmp_path / "programs"
    programs.mkdir()
    for each, its_content, _, _ in PROGRAMS:
        (programs / each).write_bytes(its_content)
    for path in (programs, *programs.iterdir()):
        path.chmod(0o755)
    command = f"/programs/{name}"
    step, found, detail = await _failure(runner, command, mounts=(BindMount(str(programs), "/programs"),))
    assert (step, found) == ("exec", number), detail
    assert command in detail
    assert words in detail


async def test_names_that_lead_nowhere(runner: Runner, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.mkdir(mode=0o755)
    (names / "loop").symlink_to("loop")
    (names / "dangling").symlink_to("nothing")
    (names / "directory").mkdir()
    mounts = (BindMount(str(names), "/names"),)
    for command, number, words in (
        ("/names/loop", errno.ELOOP, "symbolic links"),
        ("/names/dangling", errno.ENOENT, "no such command"),
        ("/names/directory", errno.EACCES, "executable"),
        ("/" + "x" * 300, errno.ENAMETOOLONG, "too long"),
        ("/names/" * 700, errno.ENAMETOOLONG, "too long"),
    ):
        step, found, detail = await _failure(runner, command, mounts=mounts)
        assert (step, found) == ("exec", number), (command, detail)
        assert words in detail


async def test_no_path_at_all(runner: Runner) -> None:
    """An empty PATH means the current directory (as for execvp), and nothing is there."""
    step, number, detail = await _failure(runner, "true", env={"PATH": ""})
    assert (step, number) == ("exec", errno.ENOENT)
    assert "true: no such command" in detail


async def test_a_missing_cwd_is_not_a_missing_command(runner: Runner) -> None:
    step, number, detail = await _failure(runner, "/bin/true", cwd="/no/such/place")
    assert (step, number) == ("chdir", errno.ENOENT)
    assert "/no/such/place" in detail


async def test_path_lookup_is_of_the_sandbox(runner: Runner) -> None:
    result = await runner.run("env", env={"PATH": "/nowhere:/usr/bin", "A": "1"})
    assert sorted(result.stdout.split()) == ["A=1", "PATH=/nowhere:/usr/bin"]


async def test_command_without_path_in_its_environment(runner: Runner) -> None:
    spec = runner.spec("true")
    sandbox, _, _ = await runner.launch(type(spec)(spec.id, spec.argv, {}, spec.limits))
    assert (await sandbox.wait()).exit_code == 0


async def test_arguments_longer_than_the_kernel_takes(runner: Runner) -> None:
    step, number, detail = await _failure(runner, "/bin/echo", "x" * (128 << 10))
    assert (step, number) == ("exec", errno.E2BIG)
    assert "longer" in detail


async def test_a_spec_of_a_megabyte(runner: Runner) -> None:
    args = ["y" * 100_000] * 10
    result = await runner.run("/bin/sh", "-c", 'echo "$# ${#10}"', "sh", *args)
    assert result.stdout == "10 100000\n"


async def test_bytes_that_are_no_text(runner: Runner) -> None:
    odd = b"\xff\xfe".decode(sys.getfilesystemencoding(), "surrogateescape")
    result = await runner.sh('printf %s "$1$X" | od -An -tx1', env={"X": odd})
    assert result.stdout.split() == ["ff", "fe"]
