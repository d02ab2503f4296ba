"""A scratch directory holds no more than it may: real tasks, real files, watched and not bounded by quotas."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from isolation.client import SpawnerConfig
from tests.isolation_live.conftest import Runner, running, with_limits

pytestmark = pytest.mark.isolation

MIB = 1 << 20
LIMIT = 16 * MIB

FILL = "head -c {count} /dev/zero > {name}"
#: Goes on until it is killed.
ENDLESS = "while sleep 1; do :; done"


@pytest.fixture
def config(config: SpawnerConfig) -> SpawnerConfig:
    return replace(config, scratch_limit_bytes=LIMIT)


@pytest.fixture
async def runner(config: SpawnerConfig) -> AsyncIterator[Runner]:
    async for runner in running(config):
        yield runner


async def test_a_task_within_its_limit_is_left_alone(runner: Runner) -> None:
    result = await runner.sh(
        FILL.format(count=LIMIT - MIB, name="a") + "; sleep 0.5; rm a; " + FILL.format(count=LIMIT - MIB, name="b")
    )
    assert (result.ended.exit_code, result.ended.ended_by, result.ended.detail) == (0, "", "")


async def test_one_over_it_is_ended_as_a_whole_and_told_why(runner: Runner) -> None:
    result = await runner.sh(
        f"(trap '' TERM; {ENDLESS}) & " + FILL.format(count=LIMIT + MIB, name="a") + f"; {ENDLESS}"
    )
    assert (result.ended.exit_code, result.ended.signal, result.ended.ended_by) == (None, 9, "scratch")
    assert result.ended.detail.endswith("or more, and may hold 16.0 MiB")


async def test_its_own_limit_counts_where_that_is_less(runner: Runner) -> None:
    script = FILL.format(count=6 * MIB, name="a") + f"; {ENDLESS}"
    result = await runner.sh(script, limits=with_limits(scratch_bytes=4 * MIB))
    assert result.ended.ended_by == "scratch"
    assert "may hold 4.0 MiB" in result.ended.detail


async def test_it_cannot_have_more_than_the_node_allows(runner: Runner) -> None:
    script = FILL.format(count=LIMIT + MIB, name="a") + f"; {ENDLESS}"
    result = await runner.sh(script, limits=with_limits(scratch_bytes=1024 * MIB))
    assert result.ended.ended_by == "scratch"
    assert "may hold 16.0 MiB" in result.ended.detail


async def test_too_many_files(runner: Runner) -> None:
    script = "import os\nfor i in range(10_500):\n    os.mknod(str(i))\nimport time; time.sleep(1000)"
    result = await runner.run("/usr/bin/python3", "-c", script)
    assert result.ended.ended_by == "scratch"
    assert "files or more, and may hold 10000" in result.ended.detail


async def test_a_neighbour_is_not_held_responsible(runner: Runner) -> None:
    neighbour = await runner.start(
        "sh", "-c", FILL.format(count=LIMIT - 2 * MIB, name="a") + f"; echo full; {ENDLESS}", says="full"
    )
    results = await asyncio.gather(
        *(runner.sh(FILL.format(count=LIMIT + MIB, name="a") + f"; {ENDLESS}") for _ in range(3)),
        *(runner.sh(FILL.format(count=LIMIT // 2, name="a")) for _ in range(3)),
    )
    assert [result.ended.ended_by for result in results] == ["scratch"] * 3 + [""] * 3
    neighbour.stop(0)
    assert (await neighbour.wait()).ended_by == "stop"


@pytest.mark.parametrize(
    "script",
    [
        # Open, and without a name.
        "exec 3>a; rm a; head -c {count} /dev/zero >&3; {endless}",
        # Deep down.
        "for i in $(seq 400); do mkdir d; cd d; done; head -c {count} /dev/zero > a; {endless}",
    ],
)  # fmt: skip
async def test_what_a_task_may_try_instead(runner: Runner, script: str) -> None:
    result = await runner.sh(script.format(count=LIMIT + MIB, endless=ENDLESS))
    assert result.ended.ended_by == "scratch"


#: By the calls themselves: all of the disk at once, of a file, of the log (which is another file), of a file in memory;
#: what frees; and the C library's own way, which writes where the kernel cannot.
RESERVE = """
import ctypes, fcntl, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def reserve(fd, mode, count):
    ok = libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(count)) == 0
    return "done" if ok else ctypes.get_errno()
scratch, memory = os.open("a", os.O_RDWR | os.O_CREAT), os.memfd_create("m")
print(*(reserve(fd, mode, 4096) for fd in (scratch, 2, memory) for mode in (0, 1, 0x10)))
try:
    print(fcntl.ioctl(scratch, 0x4030582A, struct.pack("hhqq24x", 0, 0, 0, 4096)))
except OSError as error:
    print(error.errno)
os.posix_fallocate(scratch, 0, 1 << 20)
print(os.fstat(scratch).st_blocks >= 2048, reserve(scratch, 3, 1 << 20), os.fstat(scratch).st_blocks < 2048)
"""


async def test_nobody_reserves_room_that_he_does_not_write(runner: Runner) -> None:
    """In one call a task would have the disk of all others, until a watch has seen it."""
    result = await runner.run("/usr/bin/python3", "-c", RESERVE)
    assert result.stdout.split() == [*[str(errno.EOPNOTSUPP)] * 10, "True", "done", "True"], result.stderr


@pytest.mark.usefixtures("root")  # an ordinary user may not see what another process has mapped (proc(5), map_files)
async def test_mapped_and_without_a_name(runner: Runner) -> None:
    """By mmap(2) itself: Python's mmap keeps a descriptor, which would be found."""
    script = (
        "import ctypes, os, time\n"
        f"fd = os.open('a', os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, {LIMIT + MIB})\n"
        "ctypes.CDLL(None).mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0))\n"
        "os.unlink('a'); os.close(fd); time.sleep(1000)"
    )
    result = await runner.run("/usr/bin/python3", "-c", script)
    assert result.ended.ended_by == "scratch"


async def test_lengths_do_not_count_and_names_count_their_blocks_once(runner: Runner) -> None:
    links = "for i in 1 2 3 4; do ln a b$i; done"
    script = f"truncate -s 1T sparse; {FILL.format(count=LIMIT // 2, name='a')}; {links}; sleep 1; echo done"
    result = await runner.sh(script)
    assert (result.stdout, result.ended.ended_by) == ("done\n", "")
