"""The lives of a node: how it begins again when its lease was lost, and stops meanwhile."""

from __future__ import annotations

import asyncio
from typing import cast

from etcd.identity import Identity
from node.incarnation import Surroundings
from node.lives import Lives
from node.session import Session
from tests.support.virtual_time import virtual_time


class WaitingSession:
    """One that etcd does not give: it is down, or this host's last node key is still there."""

    def __init__(self) -> None:
        self.is_closed = False
        self.opening = asyncio.Event()

    async def open(self, timeout_s: float) -> Identity:
        self.opening.set()
        await asyncio.sleep(10 * timeout_s)
        raise AssertionError("nobody waits so long")

    async def close(self, revoke: bool = True) -> None:
        self.is_closed = True


@virtual_time
async def test_a_stop_does_not_wait_for_a_lease_that_cannot_be_had() -> None:
    """Waiting for the end of this host's last lease takes two TTLs, which may be minutes."""
    session = WaitingSession()
    lives = Lives(
        cast("Surroundings", None), lambda: cast("Session", session), on_begin=lambda _session, _identity: None
    )
    stop = asyncio.Event()
    running = asyncio.create_task(lives.run(stop, asyncio.Event()))
    await session.opening.wait()
    stop.set()
    async with asyncio.timeout(1):
        await running
    assert session.is_closed
