"""A task is over when its command has ended or was ended, and then nothing of it moves; its end is told as it was."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.hostile.harness import Hostile
from tests.hostile.test_processes import PATIENCE_S, processes_of
from tests.isolation_live.conftest import text
from tests.support.wait import wait_until

pytestmark = pytest.mark.isolation

#: What ends by itself: kind, exit code, signal.
BY_ITSELF: list[tuple[str, int | None, signal.Signals | None]] = [
    ("daemon", 4, None),
    ("group", 4, None),
    ("no_descriptors", 6, None),
    ("exec_then_exit", 8, None),
    ("exec_from_a_thread", 9, None),
    ("thread_outlives_main", 3, None),
    ("thread_ends_all", 10, None),
    ("stopped_children", 11, None),
    ("killed_by_child", None, signal.SIGKILL),
    ("kills_everybody", 12, None),
]


@pytest.mark.parametrize(("kind", "code", "number"), BY_ITSELF, ids=str)
async def test_by_itself(hostile: Hostile, kind: str, code: int | None, number: signal.Signals | None) -> None:
    """Whoever else holds its output, is stopped, or hides: at the report nothing runs any more."""
    sandbox, out, _ = await hostile.runner.launch(hostile.spec("endings", kind))
    ended = await asyncio.wait_for(sandbox.wait(), PATIENCE_S)
    written = os.fstat(out).st_size
    assert (ended.exit_code, ended.signal, ended.ended_by, ended.out_of_memory) == (code, number, "", False)
    assert processes_of(sandbox) == set()
    await hostile.runner.run("/bin/true")
    assert os.fstat(out).st_size == written
    if kind == "thread_outlives_main":
        assert "later: SUCCEEDED" in text(out)  # its process ended with the last thread, not with the first
        assert ended.usage.wall_s >= 0.5


#: What has to be ended: kind, exit code, signal, where it gets a SIGTERM and time.
ENDED: list[tuple[str, int | None, signal.Signals | None]] = [
    ("exec_loop", None, signal.SIGTERM),
    ("deserted", 4, None),
    ("stop_then_exit_clean", 0, None),
    ("writes_to_a_full_pipe", None, signal.SIGTERM),
]


@pytest.mark.parametrize(("kind", "code", "number"), ENDED, ids=str)
@pytest.mark.parametrize("how", ["stop", "timeout", "kill"])
async def test_ended(hostile: Hostile, kind: str, code: int | None, number: signal.Signals | None, how: str) -> None:
    timeout_s = 2.0 if how == "timeout" else None
    sandbox, out, _ = await hostile.runner.launch(hostile.spec("endings", kind, timeout_s=timeout_s, grace_s=60.0))
    await wait_until(lambda: "ready" in text(out), what="it is on its way")
    if how == "stop":
        sandbox.stop(60.0)
    elif how == "kill":
        sandbox.kill()
        code, number = None, signal.SIGKILL
    ended = await asyncio.wait_for(sandbox.wait(), PATIENCE_S)
    written = os.fstat(out).st_size
    assert (ended.exit_code, ended.signal) == (code, number)
    assert ended.ended_by == ("timeout" if how == "timeout" else "stop")
    assert processes_of(sandbox) == set()
    await hostile.runner.run("/bin/true")
    assert os.fstat(out).st_size == written
