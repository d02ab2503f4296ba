"""TaskService.Log: the exact bytes an attempt wrote, from wherever it ran, followed until the task has ended.

What ran here is read from this host's files (`_local`), what ran elsewhere is asked of that host's node
(`node/api/log_forward.py`); a call that another node has handed on is answered from the files alone, so that no call is
handed on twice.

The end of a followed stream comes only after the record says that the attempt is over: its processes are gone by
then, so one last read to the end of the files has every byte. A follower of a task that is requeued goes on with the
next attempt, wherever that runs, and is told so; what cannot be had of the attempt before is told too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc

from etcd.errors import StoreError
from etcd.port import Etcd
from node.api.callers import Caller, origin_of
from node.api.errors import ApiError, invalid, precondition, streams
from node.api.log_forward import LogMissing, RemoteLogs, Wanted
from node.api.log_hosts import find_log_host
from node.api.log_record import RecordFollower, find_attempt, has_attempt, over
from node.api.tasks import TaskCalls
from node.core.model import Task
from node.core.validate import Violation
from node.peer_channels import FORWARDED
from node.running.log_reader import CHUNK_BYTES, LogReader, Piece
from node.running.logs import STREAMS, LogStore
from pilfer.v1 import tasks_pb2

#: How often the files of a followed attempt are looked at: from the first interval, while output comes, towards the
#: second, while none does. Two fstat-sized reads each.
POLL_MIN_S = 0.01
POLL_MAX_S = 0.1

#: Chunks of one stream before the other has its turn.
CHUNKS_IN_TURN = 16

_STREAM_NUMBERS = {"stdout": tasks_pb2.LOG_STREAM_STDOUT, "stderr": tasks_pb2.LOG_STREAM_STDERR}
_OFFSETS = {"stdout": "stdout_offset", "stderr": "stderr_offset"}

_Responses = AsyncGenerator[tasks_pb2.LogResponse, None]


class LogCall:
    """The streaming call of TaskService that reads output."""

    def __init__(self, etcd: Etcd, calls: TaskCalls, logs: LogStore, host_id: str, remote: RemoteLogs) -> None:
        """logs: of this host, whose id is host_id. remote: of the others."""
        self._etcd = etcd
        self._calls = calls
        self._logs = logs
        self._host_id = host_id
        self._remote = remote

    @streams
    async def Log(self, request: tasks_pb2.LogRequest, context: Any) -> _Responses:  # noqa: N802  (gRPC's name)
        found = _violations(request)
        if found:
            raise invalid(found)
        seen = await self._calls.get(request.id)
        wanted = request.attempt if request.HasField("attempt") else None
        if wanted is not None and not 1 <= wanted <= seen.task.attempt and not (request.follow and not over(seen.task)):
            raise _no_attempt(seen.task, wanted)
        async with (
            RecordFollower(self._etcd, seen) as record,
            contextlib.aclosing(_Reading(self, request, context, record).responses(wanted)) as responses,
        ):
            async for response in responses:
                yield response

    # For one reading

    def is_here(self, task: Task, number: int) -> bool:
        """Whether the attempt ran on this host; one that the record has forgotten is looked for here alone."""
        attempt = find_attempt(task, number)
        return attempt is None or attempt.host_id == self._host_id

    async def local(self, request: tasks_pb2.LogRequest, record: RecordFollower, number: int) -> _Responses:
        """From the files of this host."""
        wanted = [s for s in STREAMS if request.stream in (tasks_pb2.LOG_STREAM_UNSPECIFIED, _STREAM_NUMBERS[s])]
        with contextlib.ExitStack() as stack:
            readers: dict[str, LogReader] = {}
            delay_s = POLL_MIN_S
            while True:
                # Looked at before the files: what was written before the attempt was over is then read below.
                is_over = record.is_over(number)
                progressed = False
                for stream in wanted:
                    reader = readers.get(stream)
                    if reader is None:
                        reader = self._logs.find(record.task.id, number, stream)
                        if reader is None:
                            continue
                        readers[stream] = stack.enter_context(reader)
                        await _place(reader, request, stream)
                    for _ in range(CHUNKS_IN_TURN):
                        piece = reader.read(CHUNK_BYTES)
                        if piece.is_empty:
                            break
                        progressed = True
                        yield self._response(stream, number, piece)
                if progressed:
                    delay_s = POLL_MIN_S
                    continue
                if is_over or not request.follow:
                    return
                delay_s = min(delay_s * 1.5, POLL_MAX_S)
                await record.wait_change(delay_s)

    def _response(self, stream: str, number: int, piece: Piece) -> tasks_pb2.LogResponse:
        response = tasks_pb2.LogResponse(
            stream=_STREAM_NUMBERS[stream], attempt=number, offset=piece.offset, data=piece.data
        )
        if piece.missing_bytes:
            response.missing_bytes = piece.missing_bytes
            response.notice = missing_words(piece.missing_bytes, stream, self._logs.limit_bytes)
        return response

    def remote(
        self, request: tasks_pb2.LogRequest, record: RecordFollower, number: int, context: Any, caller: Caller
    ) -> _Responses:
        """From the host where it ran. Raises LogMissing."""
        attempt = find_attempt(record.task, number)
        host_id = attempt.host_id if attempt is not None else self._host_id
        return self._remote.read(
            Wanted(
                task_id=record.task.id,
                number=number,
                host_id=host_id,
                request=request,
                is_over=lambda: record.is_over(number),
                time_left=context.time_remaining,
                caller=caller,
            )
        )

    async def begins(self, task: Task, number: int) -> tasks_pb2.LogResponse:
        """Tells a follower that another attempt has begun, and where."""
        attempt = find_attempt(task, number)
        where = ""
        if attempt is not None:
            # Where it runs is worth no error: the store is asked for the log itself next.
            with contextlib.suppress(StoreError):
                where = f" on {(await find_log_host(self._etcd, attempt.host_id)).name or attempt.host_id}"
        return tasks_pb2.LogResponse(attempt=number, notice=f"attempt {number} begins{where}")


class _Reading:
    """One call: goes from attempt to attempt."""

    def __init__(self, call: LogCall, request: tasks_pb2.LogRequest, context: Any, record: RecordFollower) -> None:
        self._call = call
        self._request = request
        self._context = context
        self._record = record

    async def responses(self, wanted: int | None) -> _Responses:
        """wanted: this attempt; None: the newest. With follow those after it too, unless it was asked for alone."""
        record, follow = self._record, self._request.follow
        goes_on = follow and (wanted is None or self._request.through_attempts)
        number = wanted or record.task.attempt or (1 if follow else 0)
        while True:
            if follow:
                await record.wait_until(has_attempt(number))
            if not 1 <= number <= record.task.attempt:
                return  # it never ran, and never will
            missing: LogMissing | None = None
            try:
                async with contextlib.aclosing(self._attempt(number)) as responses:
                    async for response in responses:
                        yield response
            except LogMissing as error:
                missing = error
            if goes_on:
                await record.wait_until(has_attempt(number + 1))
            if not goes_on or record.task.attempt <= number:
                if missing is not None:
                    raise precondition("LOG_MISSING", missing.host.id, str(missing))
                return
            if missing is not None:
                yield tasks_pb2.LogResponse(attempt=number, notice=f"{missing}; what is missing of it is left out")
            number += 1
            self._request = _from_the_start(self._request)
            yield await self._call.begins(record.task, number)

    def _attempt(self, number: int) -> _Responses:
        if self._call.is_here(self._record.task, number):
            return self._call.local(self._request, self._record, number)
        if _was_forwarded(self._context):
            raise precondition(
                "LOG_ELSEWHERE",
                self._record.task.id,
                f"attempt {number} did not run on this host, and a call that was handed on is handed on no further",
            )
        caller = origin_of(self._context)
        return self._call.remote(self._request, self._record, number, self._context, caller)


async def _place(reader: LogReader, request: tasks_pb2.LogRequest, stream: str) -> None:
    """Where to begin and, without follow, where to end."""
    if not request.follow:
        reader.end_here()
    if request.HasField(_OFFSETS[stream]):
        reader.seek(getattr(request, _OFFSETS[stream]))
    elif request.HasField("tail_lines"):
        # A long way back in a large file takes a while.
        await asyncio.to_thread(reader.seek_to_last_lines, request.tail_lines)


def missing_words(count: int, stream: str, limit_bytes: int) -> str:
    """For people: what a reader does not get."""
    kept = f"of the output of one attempt {_size(limit_bytes)} are kept, how it began and how it went on last"
    return f"{_size(count)} of {stream} are missing here ({kept})"


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


def _from_the_start(request: tasks_pb2.LogRequest) -> tasks_pb2.LogRequest:
    """Where the first attempt was to be read from says nothing about those after it."""
    found = tasks_pb2.LogRequest()
    found.CopyFrom(request)
    for name in ("tail_lines", *_OFFSETS.values()):
        found.ClearField(name)
    return found


def _was_forwarded(context: Any) -> bool:
    return any(key == FORWARDED for key, _ in context.invocation_metadata() or ())


def _violations(request: tasks_pb2.LogRequest) -> list[Violation]:
    found = []
    if not request.id:
        found.append(Violation("id", "is empty"))
    if request.stream not in tasks_pb2.LogStream.values():
        found.append(Violation("stream", "must be stdout, stderr or absent for both"))
    if request.HasField("tail_lines") and request.tail_lines < 0:
        found.append(Violation("tail_lines", "must not be negative"))
    if request.HasField("attempt") and request.attempt < 1:
        found.append(Violation("attempt", "must be 1 or more"))
    for name in _OFFSETS.values():
        if getattr(request, name) < 0:
            found.append(Violation(name, "must not be negative"))
        elif request.HasField(name) and not request.HasField("attempt"):
            found.append(Violation(name, "is of one attempt: name it"))
    return found


def _no_attempt(task: Task, wanted: int) -> ApiError:
    had = f"it has had {task.attempt}" if task.attempt else "it has not run yet"
    return ApiError(grpc.StatusCode.NOT_FOUND, f"task {task.id} has no attempt {wanted}: {had}")
