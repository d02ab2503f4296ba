"""How calls reach a node: one Protocol, filled once with plain grpc and once with grpc.aio.

The client's logic (`pilfer/aio.py`) is written once, as coroutines over this Protocol. Over the blocking transport a
coroutine never suspends: every await has its answer when it returns, so `pilfer/sync.py` drives it to its end with
one `send`, without an event loop and without a thread.

Errors of grpc end here: what comes out is of `pilfer/errors.py`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import Message

from pilfer._status import RpcStatus, error_of
from pilfer.address import CERTIFICATE_FILES, NODE_DNS_NAME, Target, UnixTarget
from pilfer.errors import InvalidAddress
from pilfer.v1 import nodes_pb2, tasks_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

#: struct sockaddr_un has 108 bytes for the path and its closing zero (unix(7)).
UNIX_PATH_MAX_BYTES = 107
_SEND_MAX_BYTES = 64 * 1024 * 1024

_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", _SEND_MAX_BYTES),
    # Retries are this client's own: grpc's would know nothing of the caller's patience.
    ("grpc.enable_retries", 0),
    # A node is spoken to directly; http_proxy in the environment is meant for the web.
    ("grpc.enable_http_proxy", 0),
    # A peer that is gone or frozen without a word is noticed during a long watch, too.
    ("grpc.http2.max_pings_without_data", 0),
    # While a node restarts, a new connection is tried at the pace of the client's retries; the default grows to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
#: How a silent connection is asked whether it lives. Where other nodes are named, turning to one of them is cheap, so
#: it is asked sooner. Nodes allow a ping every 5 s.
_KEEPALIVE: list[tuple[str, str | int]] = [("grpc.keepalive_time_ms", 10_000), ("grpc.http2.ping_timeout_ms", 5_000)]
_KEEPALIVE_EAGER: list[tuple[str, str | int]] = [
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
]
#: A node's certificate says that it is one, not where it is: addresses change, and may be forwarded ones.
_TLS_OPTIONS: list[tuple[str, str | int]] = [("grpc.ssl_target_name_override", NODE_DNS_NAME)]


@dataclass(frozen=True, slots=True)
class Call(Generic[Request, Response]):
    """One method of a service: its path and its messages."""

    path: str
    request: type[Request]
    response: type[Response]


SUBMIT = Call("/pilfer.v1.TaskService/Submit", tasks_pb2.SubmitRequest, tasks_pb2.SubmitResponse)
CANCEL = Call("/pilfer.v1.TaskService/Cancel", tasks_pb2.CancelRequest, tasks_pb2.CancelResponse)
STATUS = Call("/pilfer.v1.TaskService/Status", tasks_pb2.StatusRequest, tasks_pb2.StatusResponse)
LOG = Call("/pilfer.v1.TaskService/Log", tasks_pb2.LogRequest, tasks_pb2.LogResponse)
LIST = Call("/pilfer.v1.TaskService/List", tasks_pb2.ListRequest, tasks_pb2.ListResponse)
WATCH = Call("/pilfer.v1.TaskService/Watch", tasks_pb2.WatchRequest, tasks_pb2.WatchResponse)
DESCRIBE = Call("/pilfer.v1.NodeService/Describe", nodes_pb2.DescribeRequest, nodes_pb2.NodeView)
LIST_NODES = Call("/pilfer.v1.NodeService/ListNodes", nodes_pb2.ListNodesRequest, nodes_pb2.ListNodesResponse)
DRAIN = Call("/pilfer.v1.NodeService/Drain", nodes_pb2.DrainRequest, nodes_pb2.DrainResponse)
REMOVE = Call("/pilfer.v1.NodeService/Remove", nodes_pb2.RemoveRequest, nodes_pb2.RemoveResponse)
BACKUP = Call("/pilfer.v1.NodeService/Backup", nodes_pb2.BackupRequest, nodes_pb2.BackupChunk)
WHY = Call("/pilfer.v1.NodeService/Why", nodes_pb2.WhyRequest, nodes_pb2.WhyResponse)
CREATE_TOKEN = Call("/pilfer.v1.NodeService/CreateToken", nodes_pb2.CreateTokenRequest, nodes_pb2.CreateTokenResponse)
LIST_TOKENS = Call("/pilfer.v1.NodeService/ListTokens", nodes_pb2.ListTokensRequest, nodes_pb2.ListTokensResponse)
REVOKE_TOKEN = Call("/pilfer.v1.NodeService/RevokeToken", nodes_pb2.RevokeTokenRequest, nodes_pb2.RevokeTokenResponse)
INVITE = Call("/pilfer.v1.NodeService/Invite", nodes_pb2.InviteRequest, nodes_pb2.InviteResponse)


class Transport(Protocol):
    """Sends calls to one node. Not started until the first call."""

    async def unary(self, call: Call[Request, Response], request: Request, timeout_s: float) -> Response: ...

    def stream(
        self, call: Call[Request, Response], request: Request, timeout_s: float | None
    ) -> AsyncGenerator[Response, None]:
        """An async generator; closing it cancels the call."""

    async def sleep(self, delay_s: float) -> None: ...

    async def close(self) -> None:
        """Ends all calls and gives up the connection; calls after that start a new one."""


class _Endpoint:
    """A target as grpc wants it, and what must be held open for it."""

    def __init__(self, target: Target, *, has_others: bool) -> None:
        self._target = target
        self._options = [*_OPTIONS, *(_KEEPALIVE_EAGER if has_others else _KEEPALIVE)]
        self._directory_fd: int | None = None

    def open(self) -> tuple[str, list[tuple[str, str | int]], grpc.ChannelCredentials | None]:
        """The target's name for grpc, options, and credentials (None: plain). Raises InvalidAddress."""
        if isinstance(self._target, UnixTarget):
            return f"unix:{self._short(self._target.path)}", self._options, None
        if self._target.certs is None:
            return str(self._target), self._options, None
        ca, certificate, key = (_read(self._target.certs / name) for name in CERTIFICATE_FILES)
        options = [*self._options, *_TLS_OPTIONS]
        return str(self._target), options, grpc.ssl_channel_credentials(ca, key, certificate)

    def _short(self, path: Path) -> str:
        """A name of the socket that fits into an address: long ones go by a descriptor of their directory."""
        if len(os.fsencode(path)) <= UNIX_PATH_MAX_BYTES:
            return str(path)
        if self._directory_fd is None:
            try:
                self._directory_fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise InvalidAddress(f"cannot open {path.parent}: {error.strerror}") from error
        return f"/proc/self/fd/{self._directory_fd}/{path.name}"

    def close(self) -> None:
        if self._directory_fd is not None:
            os.close(self._directory_fd)
            self._directory_fd = None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidAddress(f"cannot read {path}: {error.strerror}") from error


def _no_answer(timeout_s: float) -> str:
    return f"no answer within {timeout_s:.3g} s"


def _time_is_up(timeout_s: float | None) -> str:
    """Of a stream, which may have answered all the while."""
    return "the time is up" if timeout_s is None else f"the time of {timeout_s:.3g} s is up"


class BlockingTransport:
    """Plain grpc: each coroutine here does its work before it returns and never suspends."""

    def __init__(self, target: Target, *, has_others: bool = False) -> None:
        """has_others: other nodes are named, so that one which is silent is left soon."""
        self._target = target
        self._endpoint = _Endpoint(target, has_others=has_others)
        self._channel: grpc.Channel | None = None
        #: Several threads may make the first call.
        self._opening = threading.Lock()

    def _open(self) -> grpc.Channel:
        with self._opening:
            if self._channel is None:
                name, options, credentials = self._endpoint.open()
                self._channel = (
                    grpc.insecure_channel(name, options)
                    if credentials is None
                    else grpc.secure_channel(name, credentials, options)
                )
            return self._channel

    async def unary(self, call: Call[Request, Response], request: Request, timeout_s: float) -> Response:
        method = self._open().unary_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_of(cast(RpcStatus, error), self._target, overdue=_no_answer(timeout_s)) from None

    async def stream(
        self, call: Call[Request, Response], request: Request, timeout_s: float | None
    ) -> AsyncGenerator[Response, None]:
        method = self._open().unary_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        responses = method(request, timeout=timeout_s)
        try:
            for response in responses:
                yield response
        except grpc.RpcError as error:
            raise error_of(cast(RpcStatus, error), self._target, overdue=_time_is_up(timeout_s)) from None
        finally:
            responses.cancel()

    async def sleep(self, delay_s: float) -> None:
        time.sleep(delay_s)  # noqa: ASYNC251  (the blocking transport: there is no loop)

    async def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._endpoint.close()


class AsyncTransport:
    """grpc.aio, on the loop that runs at the first call."""

    def __init__(self, target: Target, *, has_others: bool = False) -> None:
        """has_others: other nodes are named, so that one which is silent is left soon."""
        self._target = target
        self._endpoint = _Endpoint(target, has_others=has_others)
        self._channel: grpc.aio.Channel | None = None

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            name, options, credentials = self._endpoint.open()
            self._channel = (
                grpc.aio.insecure_channel(name, options)
                if credentials is None
                else grpc.aio.secure_channel(name, credentials, options)
            )
        return self._channel

    async def unary(self, call: Call[Request, Response], request: Request, timeout_s: float) -> Response:
        method = self._open().unary_unary(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of(cast(RpcStatus, error), self._target, overdue=_no_answer(timeout_s)) from None

    async def stream(
        self, call: Call[Request, Response], request: Request, timeout_s: float | None
    ) -> AsyncGenerator[Response, None]:
        method = self._open().unary_stream(
            call.path, request_serializer=call.request.SerializeToString, response_deserializer=call.response.FromString
        )
        responses = method(request, timeout=timeout_s)
        try:
            async for response in responses:
                yield response
        except grpc.aio.AioRpcError as error:
            raise error_of(cast(RpcStatus, error), self._target, overdue=_time_is_up(timeout_s)) from None
        finally:
            responses.cancel()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        self._endpoint.close()
