"""What stands in for parts of a node that a simulation has no use for, or cannot have: a thread, files."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from etcd.identity import Identity
from node.cluster.lease_keeper import LeaseKeeper


class SimSession:
    """As `node.cluster.session.Session`, on the node's loop."""

    def __init__(self, keeper: LeaseKeeper) -> None:
        self._keeper = keeper
        self._keeping: asyncio.Task[str] | None = None

    @property
    def lease_id(self) -> int:
        return self._keeper.lease_id

    @property
    def is_at_risk(self) -> bool:
        return self._keeper.is_at_risk

    async def open(self, timeout_s: float) -> Identity:
        identity = await self._keeper.join(timeout_s)
        self._keeping = asyncio.create_task(self._keeper.keep(), name="session")
        return identity

    async def wait_lost(self) -> str:
        assert self._keeping is not None
        return await asyncio.shield(self._keeping)

    async def close(self, revoke: bool = True) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        await self._keeper.leave(revoke=revoke)


class SimLogs:
    """Log files that nobody reads."""

    def open(self, _task_id: str, _attempt: int) -> SimpleNamespace:
        return SimpleNamespace(stdout=-1, stderr=-1)

    async def settle(self, _task_id: str, _attempt: int) -> None:
        await asyncio.sleep(0)
