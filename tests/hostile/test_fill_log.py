"""Whatever a task does with its output, its log takes no more of the disk than its limit, and the task goes on.

Each attack gets all that it wants at first, which is sixteen times the limit; soon after, and when it has ended, the
files hold what they may. Without a watch everything stays.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from isolation.client import Sandbox, SpawnerConfig
from node.running.log_reader import LogReader
from node.running.logs import LogStore, OpenLog
from tests.hostile.harness import Hostile
from tests.hostile.weaken import weakened
from tests.support.holes import can_punch
from tests.support.require import require
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation

MIB = 1 << 20
LIMIT_MIB, WANTED_MIB = 4, 64
#: Of the file system: blocks that tell where a file's blocks are, and the last one of a cut.
TABLES = 512 * 1024
TASK = "01930000-0000-7000-8000-0000000000ab"
KINDS = ["one_stream", "both_streams", "children", "anywhere", "far_apart", "cut_off_and_again"]
#: All at once, before any watch could see it: refused.
RESERVING = ["behind_the_end", "in_the_file"]


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[LogStore]:
    root = tmp_path / "logs"
    root.mkdir()
    require("holes", is_there=can_punch(root), reason="the file system of the test's directory punches no holes")
    store = LogStore(root, LIMIT_MIB * MIB)
    yield store
    store.close()


async def launch(hostile: Hostile, stdout: int, stderr: int, kind: str) -> Sandbox:
    stdin = os.open(os.devnull, os.O_RDONLY)
    try:
        spec = hostile.spec("fill_log", kind, str(WANTED_MIB))
        return await hostile.runner.spawner.launch(spec, stdin=stdin, stdout=stdout, stderr=stderr)
    finally:
        os.close(stdin)


def on_disk(opened: OpenLog) -> int:
    return sum(os.fstat(fd).st_blocks for fd in opened.fds) * 512


def end_of(reader: LogReader | None) -> bytes:
    """The last lines, and what of them is not kept is not zeros."""
    assert reader is not None
    with reader:
        reader.end_here()
        reader.seek_to_last_lines(3)
        found = b""
        while not (piece := reader.read()).is_empty:
            found += piece.data
        return found


@pytest.mark.parametrize("kind", KINDS)
async def test_its_log_takes_no_more_than_its_limit(hostile: Hostile, logs: LogStore, kind: str) -> None:
    opened = logs.open(TASK, 1)
    sandbox = await launch(hostile, opened.stdout, opened.stderr, kind)
    await wait_until(lambda: b"whole: yes" in end_of(logs.find(TASK, 1, "stdout")), 100.0, what="it has done its worst")
    await wait_until(lambda: on_disk(opened) <= LIMIT_MIB * MIB + TABLES, 20.0, what="the log is within its limit")
    assert os.fstat(opened.stdout).st_size > 0
    sandbox.kill()
    await sandbox.wait()
    kept = [os.dup(fd) for fd in opened.fds]
    await logs.settle(TASK, 1)
    assert sum(os.fstat(fd).st_blocks for fd in kept) * 512 <= LIMIT_MIB * MIB + TABLES
    for fd in kept:
        os.close(fd)
    assert f"{kind}: SUCCEEDED" in end_of(logs.find(TASK, 1, "stdout")).decode()


@pytest.mark.parametrize("kind", RESERVING)
async def test_its_log_takes_nothing_that_is_not_written(hostile: Hostile, config: SpawnerConfig, kind: str) -> None:
    sandbox = await hostile.start("fill_log", kind, str(LIMIT_MIB), says=f"{kind}: refused ENOTSUP")
    sandbox.kill()
    await sandbox.wait()
    beside = replace(config, host_id=f"test-{uuid4()}", scratch_root=config.scratch_root.with_name("unfiltered"))
    async with weakened(beside, "seccomp") as weak:  # so that the answer above is the filter's
        sandbox = await weak.start("fill_log", kind, str(LIMIT_MIB), says=f"{kind}: SUCCEEDED")
        sandbox.kill()
        await sandbox.wait()


@pytest.mark.parametrize("kind", ["one_stream", "far_apart"])
async def test_without_a_watch_it_takes_all(hostile: Hostile, tmp_path: Path, kind: str) -> None:
    """So that what is held to a limit above would have grown."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    streams = [os.open(tmp_path / name, flags, 0o602) for name in ("stdout", "stderr")]
    for fd in streams:
        os.fchmod(fd, 0o602)
    sandbox = await launch(hostile, streams[0], streams[1], kind)
    await wait_until(lambda: os.fstat(streams[0]).st_blocks * 512 >= WANTED_MIB * MIB, 100.0, what="all that it wants")
    sandbox.kill()
    await sandbox.wait()
    for fd in streams:
        os.close(fd)
