"""Fixtures that all tests share: an environment without the developer's settings, and the check for leaks."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

import pytest

from isolation import client as isolation_client
from tests.support.guest import in_guest
from tests.support.leaks import Belongings
from tests.support.require import require
from tests.support.wait import patient

pytest_plugins = ["tests.support.etcd_process"]

#: In these, every test is checked: they start processes and mount things.
_CHECKED = ("node_live", "isolation_live", "hostile")

#: What was closed may take a moment to be gone (a child to be reaped, a socket to be dropped by grpc's thread).
_PATIENCE_S = 5.0


def pytest_collection_finish() -> None:
    """What was collected stays until the end (some 190,000 objects for all tests together), and the check for leaks
    would have each of its collections go through all of it again: 0.15 s before every test, and 0.15 s after it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No PILFER_* of the person who runs the tests: a node of theirs must never be met."""
    for name in [name for name in os.environ if name.startswith("PILFER_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _patience_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of our own that are never reached on a machine of the usual speed."""
    for name in ("START_LIMIT_S", "CLOSE_LIMIT_S"):
        monkeypatch.setattr(isolation_client, name, patient(getattr(isolation_client, name)))


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails when the test leaves threads, descriptors, children or mounts behind."""
    before = Belongings.now()
    yield
    deadline = time.monotonic() + patient(_PATIENCE_S)
    while leaks := Belongings.now().leaked_since(before):
        if time.monotonic() > deadline:
            pytest.fail("left behind: " + "; ".join(leaks))
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _no_leaks_of_live_tests(request: pytest.FixtureRequest) -> None:
    # Autouse: set up before, and so torn down after, the test's own fixtures; those of a whole session come earlier.
    if any(part in _CHECKED for part in request.path.parts):
        request.getfixturevalue("no_leaks")


@pytest.fixture(autouse=True)
def _in_the_guest_alone(request: pytest.FixtureRequest) -> None:
    """What is marked `guest` would hurt the machine, or needs one of its own."""
    if request.node.get_closest_marker("guest") is not None:
        require("guest", is_there=in_guest(), reason="runs in the guest alone (make test-v2)")
