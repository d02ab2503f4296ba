"""A machine that was started again: its node's directory might be a copy as well, and must come up all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.node_live.test_address import SIZE, joined, place, runs_a_task
from tests.support.node_process import LiveNode, live_node
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

#: Two leases, and what etcd and a busy machine take.
BACK_MAX_S = 60.0


@pytest.fixture
def two() -> Iterator[tuple[LiveNode, LiveNode]]:
    """The only voter, and a client of it."""
    listen = place("127.0.0.2")
    with (
        live_node(*SIZE, "--name", "voter", "--lease-ttl", "5s", "--listen", listen) as voter,
        joined(voter, "client", place("127.0.0.3"), listen) as client,
    ):
        with voter.client() as calls:
            wait_until_sync(lambda: len(calls.nodes()) == 2, what="both are there")
        yield voter, client


def reboot(node: LiveNode) -> None:
    """As far as its directory shows."""
    node.kill()
    file = node.data_dir / "incarnation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot_id": "before"}))


def test_a_voter_is_not_kept_waiting_by_those_that_wait_for_it(two: tuple[LiveNode, LiveNode]) -> None:
    """The client saw it live, and hears of its end through nobody but itself."""
    voter, client = two
    reboot(voter)
    began = time.monotonic()
    voter.start()
    assert time.monotonic() - began < BACK_MAX_S
    with client.client(patience_s=BACK_MAX_S) as calls:
        wait_until_sync(
            lambda: (
                {view.name: view.state for view in calls.nodes() if view.state != "gone"}
                == {"voter": "ready", "client": "ready"}
            ),
            BACK_MAX_S,
            what="both are back",
            every_s=0.2,
        )
        assert runs_a_task(calls)
