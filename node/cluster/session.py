"""The session: one incarnation's lease, kept in a thread of its own.

A thread, a loop and a connection of its own, so that no listing of a million keys and no slow coroutine of the node
costs the lease. The node's loop sees the session through this class alone; `on_deadline` is the one thing called in
the session's thread. If the whole process is stopped, nothing here helps: the spawner enforces the deadline.

Nor must it keep a lease for a node whose loop hangs for good: that node would hold its tasks and end none of them. So
the session asks the node's loop for a sign of life, and breaks where there is none for a long time; then the deadline
decides.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable

from etcd.identity import Identity
from node.cluster.lease_keeper import LeaseKeeper, SessionEtcd
from node.core.model import Host
from node.core.silence import TURN_S, Silence

#: Seconds without a sign of life of the node's loop, until it counts as hung. A listing of a million keys holds it for
#: 3 s on a quiet machine.
HUNG_AFTER_S = 30
#: A cancelled call's last event takes some milliseconds.
LINGER_S = 0.1


class NodeHung(Exception):  # noqa: N818  (named for what is the case)
    """The node's loop does not run any more: its lease is not kept."""


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME, which counts while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Session:
    """One incarnation: opened once, closed once; a lost one is closed and another is made."""

    def __init__(
        self,
        make_etcd: Callable[[], SessionEtcd],
        *,
        ttl_s: float,
        host_id: str,
        record: Callable[[str], bytes],
        host: Callable[[str], Host],
        key: Callable[[str], bytes],
        on_deadline: Callable[[float], None],
    ) -> None:
        """make_etcd: a new client, called in the session's thread; the session closes it. record and key: of the node
        key, for a node id. host: the host's record while that is its newest node, last seen now. on_deadline: called
        in the session's thread with each new fence deadline (CLOCK_BOOTTIME seconds); must be quick and must not
        raise."""
        self._keeper = LeaseKeeper(
            make_etcd,
            ttl_s=ttl_s,
            host_id=host_id,
            record=record,
            host=host,
            key=key,
            on_deadline=on_deadline,
            clock=boottime,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._node_loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._revoke = True
        #: Made in the session's thread, awaited in the node's.
        self._opened: concurrent.futures.Future[Identity] = concurrent.futures.Future()
        self._lost: concurrent.futures.Future[str] = concurrent.futures.Future()

    @property
    def lease_id(self) -> int:
        return self._keeper.lease_id

    @property
    def is_at_risk(self) -> bool:
        """Nothing may be started: the deadline has passed, or the lease is lost. Any thread may ask."""
        return self._keeper.is_at_risk

    async def open(self, timeout_s: float) -> Identity:
        """A new node id, its lease and its key. Raises StoreError when etcd does not give them in time, and HostRefused
        where this host may have no node (`LeaseKeeper.join`); the session is closed then. The first deadline has been
        told before this returns."""
        if self._thread is not None:
            raise RuntimeError("the session was opened before")
        self._node_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop, timeout_s), name="session", daemon=True)
        self._thread.start()
        try:
            return await asyncio.shield(asyncio.wrap_future(self._opened))
        except BaseException:
            await self.close()
            raise

    async def wait_lost(self) -> str:
        """Returns when the lease is known to be gone: why. Whatever breaks the session is raised here too; the lease
        then runs out by itself, unless `close` revokes it."""
        return await asyncio.shield(asyncio.wrap_future(self._lost))

    async def close(self, revoke: bool = True) -> None:
        """Ends the thread. With revoke the node's key goes at once, otherwise when the lease runs out. May be called
        more than once; takes LEAVE_TIMEOUT_S and LINGER_S at most where etcd does not answer."""
        if self._thread is None or self._loop is None:
            return
        self._revoke = revoke
        with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)

    # In the session's thread

    def _run(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._live(timeout_s))
        except BaseException as error:
            self._tell_what_broke(error)

    async def _live(self, timeout_s: float) -> None:
        life = asyncio.create_task(self._join_and_keep(timeout_s), name="session")
        stop = asyncio.create_task(self._stop.wait(), name="session: stop")
        try:
            await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                # Lost, or broken by a defect of ours: that is told, and it stays until it is closed. Only who closes
                # knows whether tasks may run, and so whether the lease may be revoked.
                self._tell_what_broke(life.exception())
                await stop
        finally:
            life.cancel()
            stop.cancel()
            await asyncio.wait({life, stop})
            await self._keeper.leave(revoke=self._revoke)
            # grpc tells each loop of the events of its calls, also of those that ended with the client just now; one
            # for a loop that is closed would hold up those of others (`node/loop_errors.py`).
            await asyncio.sleep(LINGER_S)

    def _tell_what_broke(self, error: BaseException | None) -> None:
        for future in (self._opened, self._lost):
            if error is not None and not future.done():
                future.set_exception(error)

    async def _join_and_keep(self, timeout_s: float) -> None:
        identity = await self._keeper.join(timeout_s)
        self._opened.set_result(identity)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._break_when_node_hangs(), name="session: the node's loop")
            why = await self._keeper.keep()
            watching.cancel()
        self._lost.set_result(why)

    async def _break_when_node_hangs(self) -> None:
        silence = Silence(time.monotonic(), turns=HUNG_AFTER_S)
        answered = threading.Event()
        while self._node_loop is not None and not self._node_loop.is_closed():
            answered.clear()
            with contextlib.suppress(RuntimeError):  # closed at this moment: the process ends
                self._node_loop.call_soon_threadsafe(answered.set)
            await asyncio.sleep(TURN_S)
            if silence.is_silent(time.monotonic(), is_answered=answered.is_set()):
                raise NodeHung(f"the node's loop gave no sign of life for {HUNG_AFTER_S} s: its lease is not kept")
