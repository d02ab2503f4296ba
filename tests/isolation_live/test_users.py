"""A user of its own for each task: what two that meet can do to each other, and what they could if they shared one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from isolation.config import FIRST_UID, NOBODY
from isolation.spec import BindMount
from tests.isolation_live.conftest import Runner, running, text
from tests.support.wait import wait_until

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("root")]


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A directory that the group of tasks may write to, as an operator would open one: nobody removes another's."""
    directory = tmp_path / "share"
    directory.mkdir()
    os.chown(directory, 0, FIRST_UID)
    directory.chmod(0o3770)
    return directory


def _sharing(config: SpawnerConfig, share: Path) -> SpawnerConfig:
    return replace(config, shares=(BindMount(str(share), "/share", read_only=False),))


#: One task leaves files of several modes in a share; another tries what it can.
LEAVE = (
    "umask 077; echo mine >/share/private; umask 022; echo ours >/share/public; mkdir /share/dir; echo left; sleep 60"
)
TRY = (
    "cat /share/private; cat /share/public; echo x >>/share/public; rm -f /share/public; mv /share/dir /share/moved; "
    "chmod 777 /share/private; echo new >/share/own; cat /share/own; ln /share/private /share/hard"
)


async def test_two_at_once_are_two_users(runner: Runner) -> None:
    running_one = await runner.start("sh", "-c", "id -u; sleep 60", says="\n")
    ids = [(await runner.sh("id -u; id -g")).stdout.split() for _ in range(3)]
    running_one.kill()
    await running_one.wait()
    assert len({uid for uid, _ in ids}) == 3
    assert {gid for _, gid in ids} == {str(FIRST_UID)}


async def test_over_a_share_they_own_nothing_of_each_other(config: SpawnerConfig, share: Path) -> None:
    async for runner in running(_sharing(config, share)):
        first = await runner.start("sh", "-c", LEAVE, says="left")
        result = await runner.sh(TRY)
        assert result.stdout == "ours\nnew\n"
        assert (share / "public").read_text() == "ours\n"
        assert sorted(path.name for path in share.iterdir()) == ["dir", "own", "private", "public"]
        owners = {(share / name).stat().st_uid for name in ("private", "own")}
        assert len(owners) == 2
        first.kill()
        await first.wait()


async def test_one_user_for_all_could(config: SpawnerConfig, share: Path) -> None:
    """So that the refusals above mean something."""
    share.chmod(0o1777)
    async for runner in running(replace(_sharing(config, share), uid_base=NOBODY, uid_count=1, gid=NOBODY)):
        first = await runner.start("sh", "-c", LEAVE, says="left")
        result = await runner.sh(TRY)
        assert result.stdout == "mine\nours\nnew\n"
        assert {"moved", "hard"} < {path.name for path in share.iterdir()}
        first.kill()
        await first.wait()


async def test_scratch_belongs_to_each_in_turn(runner: Runner) -> None:
    """Empty directories are used again: the next one owns its own, and the one before nothing any more."""
    seen = [(await runner.sh("stat -c '%u %g %a' . && id -u && ls -A && echo x >x && rm x")).stdout for _ in range(4)]
    for output in seen:
        owner, group, mode, uid = output.split()
        assert (owner, group, mode) == (uid, str(FIRST_UID), "700")


async def test_output_can_be_opened_again_and_not_read(runner: Runner, tmp_path: Path) -> None:
    """As the node's log files are: written by everybody who can reach them, which is the task alone."""
    directory = tmp_path / "logs"
    directory.mkdir(mode=0o700)
    path = directory / "out"
    path.touch()
    path.chmod(0o622)
    out, null = os.open(path, os.O_WRONLY | os.O_APPEND), os.open("/dev/null", os.O_RDWR)
    script = "echo one; echo two >>/dev/stdout; echo three >>/proc/self/fd/1; cat /dev/stdout; chmod 777 /dev/stdout"
    try:
        sandbox = await runner.spawner.launch(runner.spec("sh", "-c", script), stdin=null, stdout=out, stderr=null)
        await sandbox.wait()
    finally:
        os.close(out)
        os.close(null)
    assert path.read_text() == "one\ntwo\nthree\n"
    assert path.stat().st_mode & 0o777 == 0o622


async def test_a_program_that_asks_who_it_is_goes_on(runner: Runner) -> None:
    """There is no account of that number: what programs do then is their own, and ordinary ones go on."""
    script = "id; whoami; ls -l /dev/null; HOME=/home/task python3 -c 'import pathlib; print(pathlib.Path.home())'"
    result = await runner.sh(script)
    assert result.ended.exit_code == 0, result.stderr
    assert "/home/task" in result.stdout
    assert f"gid={FIRST_UID}" in result.stdout


async def test_the_kernels_counts_per_user_are_its_own(runner: Runner) -> None:
    """Inotify instances are counted per user, 128 as a rule: one task that takes them all takes none of another's."""
    code = (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nn = 0\n"
        "while c.inotify_init1(0) >= 0: n += 1\nprint(n, flush=True)\nimport time; time.sleep(60)"
    )
    sandbox, out, _ = await runner.launch(runner.spec("/usr/bin/python3", "-c", code))
    await wait_until(lambda: text(out).endswith("\n"), what="a task that has taken all")
    other = await runner.run("/usr/bin/python3", "-c", code.replace("time.sleep(60)", "pass"))
    assert other.stdout == text(out)
    assert int(other.stdout) > 0
    sandbox.kill()
    await sandbox.wait()
