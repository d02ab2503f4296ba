"""Where the file system has project quotas, it bounds scratch directories itself, and exactly. In the guest, whose
kernel has them, on an image of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolation import quota
from isolation.client import SpawnerConfig
from isolation.scratch_policy import Space
from tests.isolation_live.conftest import Runner, running, with_limits

pytestmark = [pytest.mark.isolation, pytest.mark.guest]

MIB = 1 << 20
LIMIT = 8 * MIB
ENDLESS = "while sleep 1; do :; done"
#: By the calls themselves: as chattr(1) does, and as nobody does.
ESCAPE = """
import fcntl, os, struct
fd = os.open(".", os.O_RDONLY)
for number, data in ((0x40086602, struct.pack("q", 0x80000)), (0x401C5820, bytes(28))):
    try:
        fcntl.ioctl(fd, number, data)
        print("escaped")
    except OSError as error:
        print(error.errno)
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    image.touch()
    os.truncate(image, 128 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "quota,project", image], check=True)
    subprocess.run(["mount", "-o", "loop,prjquota", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
async def runner(config: SpawnerConfig, mounted: Path) -> AsyncIterator[Runner]:
    config = replace(config, scratch_root=mounted / "scratch", scratch_limit_bytes=LIMIT)
    async for runner in running(config):
        yield runner


async def test_a_write_beyond_it_fails_and_the_task_goes_on(runner: Runner) -> None:
    result = await runner.sh("dd if=/dev/zero of=a bs=64k count=1000; stat -c %s a; rm a; echo again > a && cat a")
    size, again = result.stdout.split()
    assert "Disk quota exceeded" in result.stderr
    assert LIMIT - MIB < int(size) <= LIMIT
    assert (again, result.ended.exit_code, result.ended.ended_by) == ("again", 0, "")


async def test_its_own_limit_counts_where_that_is_less(runner: Runner) -> None:
    result = await runner.sh(
        "dd if=/dev/zero of=a bs=64k count=1000; stat -c %s a", limits=with_limits(scratch_bytes=MIB)
    )
    assert int(result.stdout) <= MIB


async def test_files_are_bounded_too(runner: Runner) -> None:
    result = await runner.run("/usr/bin/python3", "-c", "import os\nfor i in range(11_000): os.mknod(str(i))")
    assert "Disk quota exceeded" in result.stderr
    assert result.ended.exit_code == 1


async def test_files_without_a_name_count(runner: Runner) -> None:
    result = await runner.sh("exec 3>a; rm a; dd if=/dev/zero bs=64k count=1000 >&3")
    assert "Disk quota exceeded" in result.stderr


async def test_the_next_task_has_all_of_it_while_what_was_left_is_removed(runner: Runner) -> None:
    for _ in range(5):
        result = await runner.sh(
            f"head -c {LIMIT - MIB} /dev/zero > a && for i in $(seq 500); do : > f$i; done; echo whole"
        )
        assert (result.stdout, result.stderr) == ("whole\n", "")
    for _ in range(5):
        assert (await runner.sh("true")).ended.exit_code == 0  # empty ones, which are used again


async def test_a_task_cannot_leave_its_project(runner: Runner) -> None:
    result = await runner.run("/usr/bin/python3", "-c", ESCAPE)
    assert result.stdout.split() == ["1", "1"]


def test_the_owner_of_a_file_could_leave_it_without_the_filter(mounted: Path) -> None:
    """The attack is real: the kernel itself allows it."""
    directory = mounted / "d"
    directory.mkdir()
    mounted.chmod(0o755)
    fd = os.open(mounted, os.O_RDONLY)
    projects = quota.find(fd)
    assert projects is not None
    opened = os.open(directory, os.O_RDONLY)
    project = projects.bound(opened, Space(MIB, 100))
    os.fchown(opened, 65000, 65000)
    assert quota.project_of(opened) == project
    done = subprocess.run(
        ["setpriv", "--reuid", "65000", "--regid", "65000", "--clear-groups", "/usr/bin/python3", "-c", ESCAPE],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["escaped", "escaped"]
    assert quota.project_of(opened) == 0
    os.close(opened)
    os.close(fd)


def test_file_systems_without_them_have_none(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert quota.find(fd) is None
    os.close(fd)
