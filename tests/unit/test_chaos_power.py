"""Which ends of a node are as they should be, and which are a flaw."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.power import START_S, End, why_it_may

NO_SPAWNER = End(1, "node: the spawner (pid 7) is gone: its socket was closed")
REMOVED = End(1, "node: this host (h) was removed from the cluster and may not come back as what it was")
NO_ROOM = End(1, "node: cannot use /d: No space left on device; the file system is full: make room")


@pytest.mark.parametrize(
    "end",
    [
        End(-signal.SIGKILL, ""),
        End(0, "", was_told=True),
        End(-signal.SIGTERM, "", was_told=True),
        replace(NO_ROOM, disk_was_full=True),
        End(1, "", disk_was_full=True),
        replace(REMOVED, is_removed=True),
        NO_SPAWNER,
        End(1, "node: nobody answers", has_joined=False),
    ],
)
def test_nodes_may_end_so(end: End) -> None:
    assert why_it_may(end) is not None


@pytest.mark.parametrize(
    "end",
    [
        End(0, ""),
        End(-signal.SIGTERM, ""),
        End(-signal.SIGSEGV, ""),
        End(1, ""),  # a traceback
        End(1, "", has_joined=False),
        End(1, "", was_told=True),
        NO_ROOM,
        REMOVED,
        End(1, "node: etcd does not answer"),
        replace(NO_SPAWNER, lived_s=START_S + 1),
    ],
)
def test_nodes_may_not_end_so(end: End) -> None:
    assert why_it_may(end) is None
