"""How a command ended is told as the command meant it."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Any

import pytest

from isolation.errors import SandboxFailed
from tests.isolation_live.conftest import Runner, with_limits

pytestmark = pytest.mark.isolation

#: Allocates and touches the given number of MiB.
HOG = "import sys; b = bytearray(int(sys.argv[1]) << 20); print(len(b) >> 20)"
PYTHON = "/usr/bin/python3"


@pytest.mark.parametrize("code", [0, 1, 3, 127, 128 + 9, 255])
async def test_exit_code(runner: Runner, code: int) -> None:
    ended = (await runner.sh(f"exit {code}")).ended
    assert (ended.exit_code, ended.signal, ended.ended_by, ended.out_of_memory) == (code, None, "", False)


@pytest.mark.parametrize("name", ["ABRT", "TERM", "KILL", "SEGV", "HUP", "PIPE", "USR1"])
async def test_signal_of_its_own(runner: Runner, name: str) -> None:
    ended = (await runner.sh(f"kill -{name} $$; sleep 60")).ended
    assert (ended.exit_code, ended.signal, ended.ended_by) == (None, signal.Signals[f"SIG{name}"], "")


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


async def test_cpu_of_a_child_that_nobody_waited_for(runner: Runner) -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    ended = (await runner.sh(f"setsid {PYTHON} -c '{busy}' & sleep 2", limits=with_limits(cpu=4.0))).ended
    assert ended.usage.cpu_s >= 0.3


async def test_peak_memory_is_of_this_sandbox_alone(runner: Runner) -> None:
    big = (await runner.run(PYTHON, "-c", HOG, "100")).ended.usage.memory_peak_bytes
    assert 100 << 20 <= big < 160 << 20
    for _ in range(3):
        small = (await runner.run("/bin/true")).ended.usage
        assert small.memory_peak_bytes < 10 << 20
        assert small.cpu_s < 0.2


@pytest.mark.usefixtures("groups")
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


async def test_not_a_program(runner: Runner) -> None:
    script = "printf 'no program' >x; chmod +x x; exec ./x"
    result = await runner.run(PYTHON, "-c", f"import os\nos.system({script!r})")
    assert result.ended.exit_code == 0  # the shell makes a script of it; exec itself refuses:
    code = "open('x', 'w').write('no program')\nimport os\nos.chmod('x', 0o755)\nos.execv('./x', ['x'])"
    assert "Exec format error" in (await runner.run(PYTHON, "-c", code)).stderr


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
