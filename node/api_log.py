"""TaskService.Log: the exact bytes an attempt wrote, from this host's files, followed until the task has ended.

The end of a followed stream comes only after the record says that the attempt is over: its processes are gone by
then, so one last read to the end of the files has every byte. A follower of a task that is requeued goes on with the
next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from etcd import codec, keys
from etcd.errors import Compacted
from etcd.port import Etcd, KeyRange, KeyValue, Range
from etcd.store import Versioned
from node.api import TaskCalls
from node.api_errors import ApiError, invalid, not_found, streams
from node.core.model import Attempt, Task
from node.core.validate import Violation
from node.logs import CHUNK_BYTES, STREAMS, LogReader, LogStore
from pilfer.v1 import tasks_pb2

#: How often the files of a followed attempt are looked at: from the first interval, while output comes, towards the
#: second, while none does. Two fstat-sized reads each.
POLL_MIN_S = 0.01
POLL_MAX_S = 0.1

#: Chunks of one stream before the other has its turn.
CHUNKS_IN_TURN = 16

_STREAM_NUMBERS = {"stdout": tasks_pb2.LOG_STREAM_STDOUT, "stderr": tasks_pb2.LOG_STREAM_STDERR}


class LogCall:
    """The streaming call of TaskService that reads output."""

    def __init__(self, etcd: Etcd, calls: TaskCalls, logs: LogStore, host_id: str) -> None:
        self._etcd = etcd
        self._calls = calls
        self._logs = logs
        self._host_id = host_id

    @streams
    async def Log(  # noqa: N802  (gRPC's name)
        self, request: tasks_pb2.LogRequest, _context: Any
    ) -> AsyncGenerator[tasks_pb2.LogResponse, None]:
        found = _violations(request)
        if found:
            raise invalid(found)
        seen = await self._calls.get(request.id)
        wanted = request.attempt if request.HasField("attempt") else None
        if wanted is not None and not 1 <= wanted <= seen.task.attempt and not (request.follow and not over(seen.task)):
            raise _no_attempt(seen.task, wanted)
        async with contextlib.aclosing(self._stream(request, seen, wanted)) as responses:
            async for response in responses:
                yield response

    async def _stream(
        self, request: tasks_pb2.LogRequest, seen: Versioned, wanted: int | None
    ) -> AsyncGenerator[tasks_pb2.LogResponse, None]:
        async with RecordFollower(self._etcd, seen) as record:
            number = wanted or seen.task.attempt or (1 if request.follow else 0)
            while True:
                if request.follow:
                    await record.wait_until(_has_attempt(number))
                if not 1 <= number <= record.task.attempt:
                    return  # it never ran, and never will
                async with contextlib.aclosing(self._attempt(request, record, number)) as responses:
                    async for response in responses:
                        yield response
                if not request.follow or wanted is not None:
                    return
                await record.wait_until(_has_attempt(number + 1))
                if record.task.attempt <= number:
                    return
                number += 1

    async def _attempt(
        self, request: tasks_pb2.LogRequest, record: RecordFollower, number: int
    ) -> AsyncGenerator[tasks_pb2.LogResponse, None]:
        attempt = _find_attempt(record.task, number)
        if attempt is not None and attempt.host_id != self._host_id:
            raise ApiError(
                grpc.StatusCode.UNAVAILABLE,
                f"the log of attempt {number} lies on host {attempt.host_id}, which this node cannot ask",
            )
        streams_wanted = [
            s for s in STREAMS if request.stream in (tasks_pb2.LOG_STREAM_UNSPECIFIED, _STREAM_NUMBERS[s])
        ]
        with contextlib.ExitStack() as stack:
            readers: dict[str, LogReader] = {}
            delay_s = POLL_MIN_S
            while True:
                # Looked at before the files: what was written before the attempt was over is then read below.
                is_over = record.is_over(number)
                progressed = False
                for stream in streams_wanted:
                    reader = readers.get(stream)
                    if reader is None:
                        reader = self._logs.find(record.task.id, number, stream)
                        if reader is None:
                            continue
                        readers[stream] = stack.enter_context(reader)
                        if not request.follow:
                            reader.end_here()
                        if request.HasField("tail_lines"):
                            # A long way back in a large file takes a while.
                            await asyncio.to_thread(reader.seek_to_last_lines, request.tail_lines)
                    for _ in range(CHUNKS_IN_TURN):
                        data = reader.read(CHUNK_BYTES)
                        if not data:
                            break
                        progressed = True
                        yield tasks_pb2.LogResponse(stream=_STREAM_NUMBERS[stream], data=data, attempt=number)
                if progressed:
                    delay_s = POLL_MIN_S
                    continue
                if is_over or not request.follow:
                    return
                delay_s = min(delay_s * 1.5, POLL_MAX_S)
                await record.wait_change(delay_s)


class RecordFollower:
    """The newest state of one record, kept up by a watch."""

    def __init__(self, etcd: Etcd, seen: Versioned) -> None:
        self._etcd = etcd
        self._revision = seen.mod_revision
        self.task = seen.task
        self._changed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RecordFollower:
        if not over(self.task):
            self._watching = asyncio.create_task(self._watch(), name=f"follow {self.task.id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            # Its error, if any, has reached the caller through wait_change; here only its end is waited for.
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        key = keys.task(self.task.id)
        while not over(self.task):
            with contextlib.suppress(Compacted):  # away for too long: looks anew
                # Read once the watch stands, not watched from where it was read: see `node/api_watch.py`.
                async with self._etcd.watch([KeyRange(key)]) as batches:
                    found = await self._etcd.range(Range(key))
                    if not found.kvs:
                        raise not_found(self.task.id)
                    self._take_in(found.kvs[0])
                    if over(self.task):
                        return
                    async for batch in batches:
                        for event in batch.events:
                            if event.is_delete:
                                raise not_found(self.task.id)
                            self._take_in(event.kv)
                        if over(self.task):
                            return

    def _take_in(self, kv: KeyValue) -> None:
        if kv.mod_revision > self._revision:
            self._revision = kv.mod_revision
            self.task = codec.decode_task(kv.key, kv.value)
            self._changed.set()

    def is_over(self, number: int) -> bool:
        """Whether every process of that attempt is known to be gone."""
        if self.task.attempt > number or over(self.task):
            return True
        attempt = _find_attempt(self.task, number)
        return attempt is not None and attempt.outcome is not None

    async def wait_until(self, condition: Callable[[Task], bool]) -> None:
        """Returns when the record fulfils the condition. Raises what the watch raised."""
        while not condition(self.task):
            await self.wait_change(None)

    async def wait_change(self, timeout_s: float | None) -> None:
        """Returns when the record has changed, or after the timeout. Raises what the watch raised."""
        if self._watching is None:
            return
        self._changed.clear()
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([changed, self._watching], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if self._watching.done() and (error := self._watching.exception()) is not None:
            raise error


def over(task: Task) -> bool:
    return task.status.is_terminal


def _has_attempt(number: int) -> Callable[[Task], bool]:
    """That attempt has begun, or never will."""
    return lambda task: task.attempt >= number or over(task)


def _find_attempt(task: Task, number: int) -> Attempt | None:
    return next((attempt for attempt in task.attempts if attempt.number == number), None)


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
    return found


def _no_attempt(task: Task, wanted: int) -> ApiError:
    had = f"it has had {task.attempt}" if task.attempt else "it has not run yet"
    return ApiError(grpc.StatusCode.NOT_FOUND, f"task {task.id} has no attempt {wanted}: {had}")
