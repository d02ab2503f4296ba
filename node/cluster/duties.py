"""The duties of the cluster that this process may hold, in the name of whichever incarnation it is.

Duties hang on an incarnation's node key (`etcd/duty.py`), while what does them lives as long as the process: this
stands between the two. Excludes nobody, as a duty does.
"""

from __future__ import annotations

from collections.abc import Callable

from etcd.duty import Duty
from etcd.identity import Identity
from etcd.port import Etcd


class Duties:
    """Fills `etcd.maintenance.Holds`."""

    def __init__(self, etcd: Etcd, identity: Callable[[], Identity | None]) -> None:
        """identity: of the incarnation that lives now; None between two."""
        self._etcd = etcd
        self._identity = identity

    async def hold(self, name: str) -> bool:
        """Takes the duty where it is free; whether it is this node's. Never between two incarnations. Raises
        StoreError."""
        identity = self._identity()
        return identity is not None and await Duty(self._etcd, name, identity).hold()

    async def release(self, name: str) -> None:
        """Gives the duty up where it is this node's. Raises StoreError."""
        identity = self._identity()
        if identity is not None:
            await Duty(self._etcd, name, identity).release()
