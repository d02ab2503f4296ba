"""Sandboxes without one of their protections, to show that the attack on it is real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from isolation import process
from isolation.client import SpawnerConfig
from tests.hostile.harness import Hostile
from tests.isolation_live.conftest import running

_PROGRAM = (
    "import sys; sys.path[:0] = sys.argv[3:]; from tests.hostile.weakened_spawner import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), frozenset({without!r}))"
)


@asynccontextmanager
async def weakened(config: SpawnerConfig, *without: str) -> AsyncIterator[Hostile]:
    """Sandboxes whose plan lacks the steps of these names (`isolation/plan.py`), such as `seccomp`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_PROGRAM", _PROGRAM.format(without=without))
        async for runner in running(config):
            yield Hostile(runner)
