"""The log of an attempt that ran on another host: asked of that host's node, and handed on as it comes.

Theory. The other node answers from its disk alone (FORWARDED says so), for one attempt, and ends its stream when the
attempt is over. When the stream breaks, it is asked for again from the byte where it ended, of whatever node that host
has by then: its node may have been restarted, with another id and another address. Offsets are of the files, so that
this works after `tail_lines` too.

While nobody answers:

    not followed               an error: at once when the host has no node, else after PATIENCE_S; so too where the
                               store does not tell where the host is
    followed, attempt over     `LogMissing` after PATIENCE_S, which a node that is restarted needs to come back
    followed, attempt not over wait: either its node comes back, or the attempt will be over. After PATIENCE_S the
                               reader is told once

Must not do: read the record of the task, or decide what follows a log that is missing (`node/api/log.py` does).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from etcd.errors import StoreUnavailable
from etcd.port import Etcd
from node.api.errors import ApiError
from node.api.log_hosts import LogHost, find_log_host
from node.peer_channels import forwarding
from pilfer.v1 import tasks_pb2, tasks_pb2_grpc

if TYPE_CHECKING:
    from node.api.callers import Caller

#: For how long a host's node is waited for.
PATIENCE_S = 8.0
#: Pauses between attempts to reach it: doubled from the first to the last.
RETRY_MIN_S = 0.1
RETRY_MAX_S = 1.0

#: What a node says that is down, stops, or was cut off: it is asked again. Anything else is its answer.
_BREAKS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class LogMissing(Exception):  # noqa: N818  (named like the other answers)
    """The log, or the rest of it, cannot be had now; the message says where it lies and why not."""

    def __init__(self, number: int, host: LogHost, trouble: str) -> None:
        super().__init__(f"the log of attempt {number} lies on {host}, {trouble}")
        self.host = host


class _Silent(Exception):  # noqa: N818
    """The other node took the call and says nothing."""


@dataclass(slots=True)
class Wanted:
    """One attempt's log, as far as it was read."""

    task_id: str
    number: int
    #: Of the host where the attempt ran.
    host_id: str
    #: The caller's.
    request: tasks_pb2.LogRequest
    is_over: Callable[[], bool]
    #: Seconds left of the caller's deadline; None: none.
    time_left: Callable[[], float | None]
    caller: Caller
    #: By stream: where to go on.
    offsets: dict[int, int] = field(default_factory=dict)

    def next_request(self) -> tasks_pb2.LogRequest:
        """From where it ended."""
        request = tasks_pb2.LogRequest(
            id=self.task_id, attempt=self.number, stream=self.request.stream, follow=self.request.follow
        )
        if self.request.HasField("tail_lines"):
            request.tail_lines = self.request.tail_lines
        given = self.request.HasField("attempt")
        stdout = self.offsets.get(tasks_pb2.LOG_STREAM_STDOUT, self.request.stdout_offset if given else 0)
        stderr = self.offsets.get(tasks_pb2.LOG_STREAM_STDERR, self.request.stderr_offset if given else 0)
        if stdout:
            request.stdout_offset = stdout
        if stderr:
            request.stderr_offset = stderr
        return request


class RemoteLogs:
    """Reads logs of other hosts through their nodes."""

    def __init__(
        self,
        etcd: Etcd,
        tasks_of: Callable[[str], tasks_pb2_grpc.TaskServiceAsyncStub],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """tasks_of: the TaskService of the node at HOST:PORT (`PeerChannels.tasks`)."""
        self._etcd = etcd
        self._tasks_of = tasks_of
        self._patience_s = patience_s

    async def read(self, wanted: Wanted) -> AsyncGenerator[tasks_pb2.LogResponse, None]:
        """The chunks, in order and each byte once. Raises LogMissing, ApiError (the other node's answer), and what
        the store raises."""
        silent_since: float | None = None
        is_told = False
        pause_s = RETRY_MIN_S
        while True:
            host, trouble, outage = await self._look_up(wanted.host_id)
            if host is not None and host.node is not None and trouble is None:
                call = self._call(host.node.address, wanted)
                try:
                    async for response in self._responses(call, wanted):
                        silent_since, is_told, pause_s = None, False, RETRY_MIN_S
                        if response.data or response.missing_bytes:
                            wanted.offsets[response.stream] = response.offset + len(response.data)
                        yield response
                except _Silent:
                    trouble = f"whose node at {host.node.address} does not answer"
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _BREAKS:
                        raise ApiError(error.code(), error.details() or "") from error
                    trouble = f"whose node at {host.node.address} does not answer ({error.details()})"
                else:
                    return
                finally:
                    call.cancel()
            now = asyncio.get_running_loop().time()
            silent_since = now if silent_since is None else silent_since
            is_waited = now - silent_since >= self._patience_s
            _check_outage(outage, wanted, is_waited=is_waited)
            if host is not None and trouble is not None:
                missing = LogMissing(wanted.number, host, trouble)
                if _is_given_up(wanted, host, is_waited=is_waited):
                    raise missing
                if is_waited and not is_told:
                    is_told = True
                    yield tasks_pb2.LogResponse(attempt=wanted.number, notice=f"{missing}: waiting for it")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _responses(self, call: Any, wanted: Wanted) -> AsyncGenerator[tasks_pb2.LogResponse, None]:
        """As they come. Raises _Silent when none comes for `patience_s` though nothing more is to be waited for: a
        node that is frozen takes a connection and never answers."""
        while True:
            reading = asyncio.ensure_future(call.read())
            try:
                while not reading.done():
                    is_due = wanted.is_over() or not wanted.request.follow
                    await asyncio.wait({reading}, timeout=self._patience_s)
                    if is_due and not reading.done():
                        raise _Silent
            finally:
                reading.cancel()
            response = reading.result()
            if response is grpc.aio.EOF:
                return
            yield response

    async def _look_up(self, host_id: str) -> tuple[LogHost | None, str | None, StoreUnavailable | None]:
        """The host and why it cannot be asked; no host while the store does not tell, and what that says."""
        try:
            host = await find_log_host(self._etcd, host_id)
        except StoreUnavailable as error:
            return None, None, error
        return host, host.trouble, None

    def _call(self, address: str, wanted: Wanted) -> Any:
        metadata = forwarding(wanted.caller.role, wanted.caller.name)
        return self._tasks_of(address).Log(wanted.next_request(), timeout=wanted.time_left(), metadata=metadata)


def _check_outage(outage: StoreUnavailable | None, wanted: Wanted, *, is_waited: bool) -> None:
    """Where the store does not tell where the host is, only a follower waits on. Raises the outage."""
    if outage is not None and is_waited and not wanted.request.follow:
        raise outage


def _is_given_up(wanted: Wanted, host: LogHost, *, is_waited: bool) -> bool:
    """Whether a log that nobody gives is an error now: the table above."""
    if wanted.request.follow:
        return is_waited and wanted.is_over()
    return is_waited or host.node is None
