"""What the attacks need: a spawner for each test, and the check that nothing of an attack lives on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.harness import MARKER, Hostile
from tests.isolation_live.conftest import Runner, config, runner
from tests.support.wait import wait_until_sync

__all__ = ["config", "hostile", "runner"]


@pytest.fixture
def hostile(runner: Runner) -> Hostile:
    return Hostile(runner)


@pytest.fixture(autouse=True)
def _no_attack_lives_on() -> Iterator[None]:
    """Control groups, descriptors, mounts and children are compared by other fixtures; this finds what got away."""
    yield
    wait_until_sync(lambda: attacks_alive() == [], what="no process of an attack is left")


def attacks_alive() -> list[str]:
    """Processes anywhere on the machine that have the marker of this test process in their environment."""
    own = f"{MARKER}={os.getpid()}-".encode()
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208  (names alone are wanted)
        try:
            if own in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
        except OSError:
            continue  # gone, or a kernel thread
    return found
