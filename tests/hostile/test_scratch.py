"""A task's scratch directory holds no more than it may, in whatever shape.

Each attack wants four times the limit. Where the file system has project quotas, it is refused; elsewhere the task is
ended, told to be over its limit. With room, it gets all that it wants.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from isolation.client import SpawnerConfig
from tests.hostile.harness import Hostile
from tests.isolation_live.conftest import Runner, running, text, with_limits
from tests.support.wait import patient, wait_until

pytestmark = pytest.mark.isolation

MIB = 1 << 20
LIMIT_MIB, WANTED_MIB, ROOM_MIB = 8, 32, 2048

BY_SIZE = ["one_file", "many_files", "children", "reserved", "holes", "deleted", "without_name", "mapped", "moving"]
BY_SIZE += ["attributes", "in_thread"]
#: As few files as a limit ever allows are 10,000.
BY_FILES = ["empty_files", "directories", "deep", "symlinks", "hard_links"]


@pytest.fixture
def config(config: SpawnerConfig) -> SpawnerConfig:
    return replace(config, scratch_limit_bytes=ROOM_MIB * MIB)


@pytest.fixture
async def runner(config: SpawnerConfig) -> AsyncIterator[Runner]:
    try:
        async for runner in running(config):
            yield runner
            # It closes faster than thousands of files are removed; that the next start goes on is another test's.
            await wait_until(lambda: is_empty(config.scratch_root), 60.0, what="what the attack made is removed")
    finally:
        # Should it fail: a tree of some depth is more than pytest can remove, for ever.
        await asyncio.to_thread(subprocess.run, ["rm", "-rf", str(config.scratch_root)], check=True)


def is_empty(scratch_root: Path) -> bool:
    """Nothing but the spawner's own (empty) places."""
    return not [path for path in scratch_root.glob("*/*") if path.parent.name == ".trash"]


@pytest.mark.parametrize("kind", BY_SIZE + BY_FILES)
async def test_over_the_limit(hostile: Hostile, kind: str) -> None:
    limits = with_limits(scratch_bytes=LIMIT_MIB * MIB)
    sandbox, out, err = await hostile.runner.launch(
        hostile.spec("fill_scratch", kind, str(WANTED_MIB), limits=limits, timeout_s=patient(60.0), grace_s=0.0)
    )
    ending = asyncio.create_task(sandbox.wait())
    await wait_until(lambda: ending.done() or "refused" in text(out), 60.0, what="ended or refused")
    if not ending.done():
        assert text(out) == f"{kind}: refused EDQUOT\n", text(err)
        sandbox.kill()
    ended = await ending
    assert ended.ended_by in ("scratch", "stop"), (ended, text(out), text(err))


@pytest.mark.parametrize("kind", ["one_file", "in_flight", "hard_links"])
async def test_with_room(hostile: Hostile, kind: str) -> None:
    """So that what is refused above would have worked. What comes of files in messages hangs on the free space of a
    disk that is everybody's: tests/unit/test_isolation_scratch_watch.py."""
    sandbox = await hostile.start("fill_scratch", kind, str(WANTED_MIB), says="SUCCEEDED")
    sandbox.kill()
    assert (await sandbox.wait()).ended_by == "stop"
