"""A watch that survives broken streams and dead members.

Theory. Each range is one watcher of etcd; all of them share one stream. For each range, `next` is the first revision
not yet delivered. etcd delivers one range's events in order, so `next` moves only forward:
  events      -> next = revision of the last event + 1 (the header's revision may be ahead of what was delivered: a
                 watcher that catches up gets several batches with the same header)
  no events   -> a progress notice, or "created": next = revision of the header + 1
When the stream breaks, the watchers are made anew from their `next`, on the next member, after a pause that grows.
Nothing is missed and nothing comes twice. Only compaction ends a watch: then the caller must list again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from etcd import convert
from etcd import rpc_pb2 as pb
from etcd.endpoints import Endpoint, Endpoints
from etcd.errors import Compacted, InvalidRequest, StoreUnavailable
from etcd.port import KeyRange, WatchBatch
from etcd.translate import error_of, is_canceled_from_outside

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

#: Pauses between attempts: doubled from the first to the last, each drawn from its upper half.
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 1.0
#: For one attempt to make a stream and its watchers.
OPEN_TIMEOUT_S = 4.0

#: Makes etcd end the stream when its member loses the leader; a member cut off from its quorum would stay silent.
_REQUIRE_LEADER = (("hasleader", "true"),)


class ResumingWatch:
    """Context manager and iterator in one, as `etcd.port.Etcd.watch` describes it."""

    def __init__(
        self,
        endpoints: Endpoints,
        ranges: Sequence[KeyRange],
        start_revision: int | None,
        timeout_s: float,
        rng: random.Random,
    ) -> None:
        if not ranges:
            raise ValueError("a watch needs at least one range")
        self._endpoints = endpoints
        self._ranges = tuple(ranges)
        self._timeout_s = timeout_s
        self._rng = rng
        #: Per range: the first revision not yet delivered; 0: not known before the watch stands for the first time.
        self._next = [start_revision or 0] * len(self._ranges)
        self._delivered = 0
        self._call: StreamStreamCall[pb.WatchRequest, pb.WatchResponse] | None = None
        self._endpoint: Endpoint | None = None
        self._pause_s = FIRST_PAUSE_S
        #: Answers that came while other watchers of a new stream were still being made.
        self._early: list[pb.WatchResponse] = []

    async def __aenter__(self) -> Self:
        """Raises Compacted, or StoreUnavailable when the watch does not stand in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while not await self._opens_in_time():
                    await self._pause()
        except TimeoutError:
            self._drop()
            raise StoreUnavailable(f"the watch did not stand within {self._timeout_s:g} s") from None
        except BaseException:
            self._drop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        """The next batch. Waits through any outage; may be canceled and called again without losing anything."""
        while True:
            if self._call is None:
                await self._pause()
                if not await self._opens_in_time():
                    continue
            response = self._early.pop(0) if self._early else await self._receive()
            if response is None:
                continue
            try:
                batch = await self._take(response)
            except BaseException:
                self._drop()  # canceled half-way: what was read but not delivered is asked for again
                raise
            if batch is not None:
                self._pause_s = FIRST_PAUSE_S
                return batch

    # The stream

    async def _opens_in_time(self) -> bool:
        """As `_opens`; a frozen member must not hold us until its connection is found dead."""
        endpoint = self._endpoints.current()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                return await self._opens()
        except TimeoutError:
            self._endpoints.rotate(endpoint)
            return False

    async def _opens(self) -> bool:
        """Makes a stream and all watchers on it; False when that failed (call again after a pause)."""
        if self._endpoints.is_closed:
            raise StoreUnavailable("the client is closed")
        self._endpoint = self._endpoints.current()
        self._call = self._endpoint.watch.Watch(metadata=_REQUIRE_LEADER)
        self._early.clear()
        try:
            for index, wanted in enumerate(self._ranges):
                create = pb.WatchCreateRequest(
                    key=wanted.key,
                    range_end=wanted.range_end,
                    start_revision=self._next[index],
                    progress_notify=True,
                    watch_id=index + 1,
                    filters=[pb.WatchCreateRequest.NODELETE] if wanted.puts_only else (),
                )
                await self._call.write(pb.WatchRequest(create_request=create))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reason comes with the first read
        except asyncio.CancelledError:
            self._drop()
            if is_canceled_from_outside():
                raise
            return False
        missing = set(range(len(self._ranges)))
        while missing:
            response = await self._receive()
            if response is None:
                return False
            if response.canceled:
                self._refused(response)
                return False
            if not response.created:
                self._early.append(response)
                continue
            index = response.watch_id - 1
            missing.discard(index)
            if self._next[index] == 0:
                self._next[index] = response.header.revision + 1
        self._delivered = min(self._next) - 1
        return True

    async def _receive(self) -> pb.WatchResponse | None:
        """The next message; None when the stream broke (and is dropped)."""
        call, endpoint = self._call, self._endpoint
        if call is None or endpoint is None:
            return None
        try:
            message = await call.read()
        except grpc.aio.AioRpcError as error:
            self._drop()
            self._endpoints.rotate(endpoint)
            translated = error_of(error, endpoint.address, may_be_applied=False)
            if isinstance(translated, InvalidRequest):
                raise translated from error
            return None
        except asyncio.CancelledError:
            # Canceling a read ends the whole call in grpc; the next __anext__ resumes on a new one.
            self._drop()
            if is_canceled_from_outside():
                raise
            if self._endpoints.is_closed:
                raise StoreUnavailable("the client was closed") from None
            return None
        if isinstance(message, pb.WatchResponse):
            return message
        self._drop()  # grpc.aio.EOF: the member ended the stream
        self._endpoints.rotate(endpoint)
        return None

    async def _take(self, response: pb.WatchResponse) -> WatchBatch | None:
        if response.canceled:
            self._refused(response)
            return None
        index = response.watch_id - 1
        if not 0 <= index < len(self._ranges):
            return None  # progress of the stream as a whole (watch id -1 of newer versions)
        if response.events:
            revision = response.events[-1].kv.mod_revision
            found = await convert.events(response.events)
        else:
            revision, found = response.header.revision, ()
        self._next[index] = max(self._next[index], revision + 1)
        delivered = min(self._next) - 1
        if not found and delivered <= self._delivered:
            return None
        self._delivered = delivered
        return WatchBatch(delivered, found)

    def _refused(self, response: pb.WatchResponse) -> None:
        """etcd ended one watcher: for compaction (raises), or for another reason (a new stream is made)."""
        self._drop()
        if response.compact_revision:
            raise Compacted(response.compact_revision)

    def _drop(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = None
        self._early.clear()

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_s * self._rng.uniform(0.5, 1.0))
        self._pause_s = min(self._pause_s * 2, LAST_PAUSE_S)
