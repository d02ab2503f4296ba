"""The lives of a node: how it begins again when its lease was lost, and stops meanwhile."""

from __future__ import annotations

import asyncio
from typing import cast

from etcd.identity import Identity
from node.cluster.session import Session as RealSession
from node.datadir import DataDirError
from node.incarnation import Surroundings
from node.lives import Lives
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
        cast("Surroundings", None), lambda: cast("RealSession", session), on_begin=lambda _session, _identity: None
    )
    stop = asyncio.Event()
    running = asyncio.create_task(lives.run(stop, asyncio.Event()))
    await session.opening.wait()
    stop.set()
    async with asyncio.timeout(1):
        await running
    assert session.is_closed


@virtual_time
async def test_a_full_disk_does_not_make_a_node_come_and_go_each_second() -> None:
    """All peers hear of each life, and look for what it left."""
    lives_begun: list[str] = []

    class Session:
        async def open(self, timeout_s: float) -> Identity:
            return Identity(f"life of {timeout_s} s", "host", 1)

        async def close(self, revoke: bool = True) -> None:
            assert revoke

    def cannot_be_noted(_session: object, identity: Identity) -> None:
        lives_begun.append(identity.node_id)
        raise DataDirError("no space left")

    lives = Lives(cast("Surroundings", None), lambda: cast("RealSession", Session()), on_begin=cannot_be_noted)
    stop = asyncio.Event()
    running = asyncio.create_task(lives.run(stop, asyncio.Event()))
    await asyncio.sleep(60)
    assert 2 <= len(lives_begun) <= 6
    stop.set()
    await running
