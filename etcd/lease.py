"""One long stream of keepalive pings of one lease.

One stream, not one per ping: opening costs as much as the ping, and the order of answers tells which ping each
belongs to. What the answers mean for the fence is decided in `node/core/fence.py`.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from etcd import rpc_pb2 as pb
from etcd.endpoints import Endpoint, Endpoints
from etcd.errors import StoreUnavailable
from etcd.port import KeepAliveAnswer
from etcd.translate import ROTATES, error_of, is_canceled_from_outside

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall


class GrpcKeepAlive:
    """Fills `etcd.port.KeepAliveStream`. After any error it is broken for good: open another."""

    def __init__(self, endpoints: Endpoints, lease_id: int) -> None:
        self._endpoints = endpoints
        self._request = pb.LeaseKeepAliveRequest(ID=lease_id)
        self._endpoint: Endpoint | None = None
        self._call: StreamStreamCall[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse] | None = None

    async def __aenter__(self) -> Self:
        if self._endpoints.is_closed:
            raise StoreUnavailable("the client is closed")
        self._endpoint = self._endpoints.current()
        self._call = self._endpoint.lease.LeaseKeepAlive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._call is not None:
            self._call.cancel()

    async def ping(self) -> None:
        call, endpoint = self._opened()
        try:
            await call.write(self._request)
        except grpc.aio.AioRpcError as error:
            raise self._broken(error, endpoint) from error
        except asyncio.InvalidStateError as error:
            raise StoreUnavailable(f"the lease stream to {endpoint.address} is closed") from error
        except asyncio.CancelledError:
            if is_canceled_from_outside():
                raise
            raise StoreUnavailable(f"the lease stream to {endpoint.address} is closed") from None

    async def answer(self) -> KeepAliveAnswer:
        call, endpoint = self._opened()
        try:
            message = await call.read()
        except grpc.aio.AioRpcError as error:
            raise self._broken(error, endpoint) from error
        except asyncio.CancelledError:
            if is_canceled_from_outside():
                raise
            raise StoreUnavailable(f"the lease stream to {endpoint.address} is closed") from None
        if not isinstance(message, pb.LeaseKeepAliveResponse):  # grpc.aio.EOF
            self._endpoints.rotate(endpoint)
            raise StoreUnavailable(f"etcd at {endpoint.address} ended the lease stream")
        return KeepAliveAnswer(float(message.TTL))

    def _opened(
        self,
    ) -> tuple[StreamStreamCall[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], Endpoint]:
        if self._call is None or self._endpoint is None:
            raise StoreUnavailable("the lease stream was not opened")
        return self._call, self._endpoint

    def _broken(self, error: grpc.aio.AioRpcError, endpoint: Endpoint) -> StoreUnavailable:
        """Whatever the reason, only a later answer can tell that the lease is gone; the stream tells nothing."""
        if error.code() in ROTATES:
            self._endpoints.rotate(endpoint)
        return StoreUnavailable(str(error_of(error, endpoint.address, may_be_applied=False)))
