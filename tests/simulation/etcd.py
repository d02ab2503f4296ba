"""A host's way to etcd: a link that may be slow, cut, or lose an answer, and an etcd that may have no leader.

The fake etcd of the tests keeps the data; here is only what happens on the way, which is what differs between hosts. A
request is applied when it arrives, by nobody's process: also when its sender is paused or dead by then. A link that is
cut holds what is under way, as TCP does; a sender that gives up meanwhile closes the connection, and what it had sent
arrives then, or never.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from etcd.errors import OutcomeUnknown, StoreError, StoreUnavailable
from etcd.port import KeepAliveAnswer, Range, Txn
from tests.simulation.loop import of_nobody
from tests.support.fake_etcd import FakeEtcd, FakeKeepAlive

if TYPE_CHECKING:
    from tests.simulation.network import Link

T = TypeVar("T")

#: Half a round trip where nothing is wrong; drawn anew each time.
HALF_TRIP_S = (0.0002, 0.002)


class SimEtcd(FakeEtcd):
    """One client of etcd, on one host."""

    def __init__(self, link: Link, chance: Random) -> None:
        super().__init__(link.store)
        self._link = link
        self._chance = chance
        self.latency = self._half_trip
        #: False from the moment at which a one-way cut is noticed, or where it was there first: nothing gets through
        #: until the link is whole.
        self.is_connected = True
        self._whole = asyncio.Event()
        link.add(self)

    @property
    def sends(self) -> bool:
        """Whether what it sends arrives."""
        return self.is_connected and self._link.carries_up

    @property
    def hears(self) -> bool:
        """Whether what is sent to it arrives."""
        return self.is_connected and self._link.carries_down

    def connection_changed(self) -> None:
        """For the link."""
        if self.sends and self.hears:
            self._whole.set()
        else:
            self._whole.clear()

    async def arrives(self, timeout_s: float) -> bool:
        """A new watch: there, and the answer back."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._whole.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        await super().close()
        self._link.remove(self)

    def _half_trip(self) -> float:
        return self._chance.uniform(*HALF_TRIP_S) * self._link.distance * self._link.slowness

    def _set_timer(self) -> None:
        """Leases run out by etcd's own clock: `Link` belongs to no process."""

    def keep_alive(self, lease_id: int) -> _SimKeepAlive:
        return _SimKeepAlive(self, lease_id)

    def stall_pings(self, for_s: float) -> None:
        """The connection of the stream that stands is dead, and given up after that time."""
        for stream in self.lease_streams:
            if isinstance(stream, _SimKeepAlive):
                stream.is_stalled = True
                of_nobody(stream.break_, delay_s=for_s)

    async def _call(
        self, method: str, argument: object, act: Callable[[], T], timeout_s: float, *, is_write: bool
    ) -> T:
        """As the fake's own, but the request is applied by etcd, and not by its sender."""
        self.calls.append(method)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        request = _Request(self, act, answer, is_write=is_write and not _only_reads(argument))
        of_nobody(request.arrive, delay_s=self._half_trip() + self._link.lingers_s())
        try:
            async with asyncio.timeout(timeout_s):
                result: T = await answer
                return result
        except TimeoutError:
            error = OutcomeUnknown if is_write else StoreUnavailable
            raise error(f"simulated: {method}: no answer within {timeout_s:g} s") from None
        finally:
            request.sender_left()


def _only_reads(argument: object) -> bool:
    """A transaction, as batches of reads are, that writes nothing."""
    return isinstance(argument, Txn) and all(
        isinstance(step, Range) or _only_reads(step) for step in (*argument.success, *argument.failure)
    )


class _SimKeepAlive(FakeKeepAlive):
    """A stream of pings: each takes its time there, and its answer back, whatever its sender does meanwhile."""

    def __init__(self, client: SimEtcd, lease_id: int) -> None:
        super().__init__(client, lease_id)
        self._client = client
        self.is_stalled = False

    async def ping(self) -> None:
        if self._is_broken:
            raise StoreUnavailable("simulated: the lease stream is broken")
        of_nobody(self._arrive, delay_s=self._client._half_trip())

    def _arrive(self) -> None:
        link = self._client._link
        if self._is_broken or self.is_stalled:
            return
        if not self._client.sends:
            link.held.append(self._arrive)
            return
        ttl_s = link.store.renew(self._lease_id, self._client.now())
        of_nobody(self._answered, KeepAliveAnswer(ttl_s), delay_s=self._client._half_trip())

    def _answered(self, answer: KeepAliveAnswer) -> None:
        link = self._client._link
        if not self._client.hears:
            link.held.append(lambda: self._answered(answer))
        elif not self._is_broken:
            self._answers.put_nowait(answer)

    def deliver(self) -> None:
        """The link delivers by itself."""


class _Request:
    """One request on its way, and its answer on its way back."""

    def __init__(
        self, client: SimEtcd, act: Callable[[], object], answer: asyncio.Future[Any], *, is_write: bool
    ) -> None:
        self._client = client
        self._is_write = is_write
        self._act = act
        self._answer = answer
        self._is_left = False
        self._is_lost = False

    def arrive(self) -> None:
        link = self._client._link
        if self._is_lost:
            return
        if not self._client.sends:
            link.held.append(self.arrive)
            return
        try:
            result, error = self._act(), None
        except StoreError as refused:
            result, error = None, refused
        if link.loses_answer(is_write=self._is_write):
            return
        of_nobody(self._answered, result, error, delay_s=self._client._half_trip())

    def _answered(self, result: object, error: StoreError | None) -> None:
        link = self._client._link
        if not self._client.hears:
            link.held.append(lambda: self._answered(result, error))
            return
        if self._answer.done():
            return
        if error is not None:
            self._answer.set_exception(error)
        else:
            self._answer.set_result(result)

    def sender_left(self) -> None:
        """Answered, or given up: then what has not arrived yet may never arrive."""
        if not self._is_left:
            self._is_left = True
            self._is_lost = not self._answer.done() and self._client._chance.random() < 0.5
            with contextlib.suppress(asyncio.InvalidStateError):
                self._answer.cancel()
