"""The lives of one node: a session, the incarnation on it, and the next when its lease is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from etcd.errors import StoreError
from etcd.identity import Identity
from node.cluster.session import Session
from node.core.model import Drain
from node.datadir import DataDirError
from node.incarnation import Incarnation, Surroundings

log = logging.getLogger(__name__)

#: To open a session, before it is tried again with a new one.
OPEN_TIMEOUT_S = 10.0
OPEN_RETRY_S = 1.0
#: Until a disk that is full may have room again.
DISK_RETRY_S = 15.0


class Lives:
    """Opens a session, lives on it until it is lost, and begins again; until `stop`."""

    def __init__(
        self,
        around: Surroundings,
        make_session: Callable[[], Session],
        *,
        on_begin: Callable[[Session, Identity], None],
    ) -> None:
        """on_begin is called when a session stands, before anything is claimed on it."""
        self._around = around
        self._make_session = make_session
        self._on_begin = on_begin
        self._session: Session | None = None
        #: Between two lives: None.
        self.current: Incarnation | None = None

    async def begin(self) -> Identity:
        """The first life's session; tries until it can be had. Raises HostRefused."""
        while True:
            try:
                return (await self._open()).identity
            except StoreError as error:
                log.warning("no lease yet, trying again: %s", error)
                await asyncio.sleep(OPEN_RETRY_S)

    def set_drained(self, drained: Mapping[str, Drain]) -> None:
        """The drained hosts have changed."""
        if self.current is not None:
            self.current.set_drained(drained)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Returns when the node has stopped in order: nothing of it runs, its lease is revoked."""
        while not stop.is_set():
            incarnation = self.current or await self._open_again(stop)
            if incarnation is None:
                return
            try:
                why = await incarnation.live(stop, hurry)
            finally:
                self.current = None
                # While a process of it may live, the lease must run out by itself: the fence kills before that.
                await self._close(revoke=incarnation.is_gone)
            if why is not None:
                log.warning("node=%s is over (%s); coming back as another", incarnation.identity.node_id, why)
        await self._close()

    async def _open(self) -> Incarnation:
        session = self._make_session()
        try:
            identity = await session.open(OPEN_TIMEOUT_S)
        except BaseException:
            await session.close()
            raise
        self._session = session
        try:
            self._on_begin(session, identity)
        except BaseException:
            await self._close()
            raise
        self.current = Incarnation(self._around, session, identity)
        return self.current

    async def _open_again(self, stop: asyncio.Event) -> Incarnation | None:
        """Tries until it succeeds, or `stop`, which does not wait for a lease that etcd does not give."""
        opening = asyncio.create_task(self._open_until_done(), name="next session")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            opening.cancel()
            stopping.cancel()
            await asyncio.wait([opening, stopping])
        return None if opening.cancelled() else opening.result()

    async def _open_until_done(self) -> Incarnation:
        while True:
            try:
                return await self._open()
            except StoreError as error:
                log.warning("no new lease yet, trying again: %s", error)
                await asyncio.sleep(OPEN_RETRY_S)
            except DataDirError as error:
                # The cluster saw this node come and go.
                log.warning("a new life cannot be noted down, trying again in %g s: %s", DISK_RETRY_S, error)
                await asyncio.sleep(DISK_RETRY_S)

    async def _close(self, *, revoke: bool = True) -> None:
        """Revokes the lease: peers see at once that this incarnation is over."""
        if self._session is not None:
            await self._session.close(revoke)
            self._session = None
