"""The client for asyncio, and the logic of both clients.

Retries: a call that no node answers is repeated until `patience_s` or the deadline is over, with the same request, at
each of the nodes that were named (`pilfer/_reach.py`). That never makes a task twice, because every task has its id
before it is sent first (`pilfer/ids.py`).

Streams (watch, wait, log) resume after a broken connection where they were, at any node: a watch from the revision that
it had reached (`pilfer/_watching.py`), a log from the byte (`pilfer/_log_reading.py`).

Waiting is watching: the node sends the present state first, then each transition. Nothing here polls.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, Unpack, overload

from google.protobuf.message import Message

from pilfer import _convert, _transport
from pilfer._convert import Submission
from pilfer._log_reading import LogReading
from pilfer._reach import TRY_S, Reach, Trying
from pilfer._trust import TrustMethods
from pilfer._watching import Progress
from pilfer.address import Target, find_targets
from pilfer.errors import FieldViolation, InvalidRequest, NotFound, PilferError, RevisionGone, TimedOut, Unavailable
from pilfer.ids import new_task_id
from pilfer.types import (
    CancelResult,
    LogChunk,
    Status,
    Stream,
    Task,
    TaskEvent,
    TaskOptions,
    TaskSpec,
)
from pilfer.v1 import tasks_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

#: `list` is a method below, and so no type inside the classes.
Ids: TypeAlias = list[str]
Tasks: TypeAlias = list[Task]
CancelResults: TypeAlias = list[CancelResult]

TIMEOUT_S = 60.0
PATIENCE_S = 10.0
BATCH = 1000
#: One try of a submit: 100,000 tasks in one call take seconds to check and store.
_SUBMIT_TRY_S = 60.0
#: A call about no more than this takes milliseconds.
_QUICK_TASKS = 100
_QUICK_BYTES = 1024 * 1024
#: A call is limited to 64 MiB; a quarter keeps the memory of both sides small.
_BATCH_BYTES = 16 * 1024 * 1024
#: Ids in one status or cancel call.
_IDS_AT_ONCE = 1000
_UUID_LENGTH = 36


class AsyncClient(TrustMethods):
    """Talks to a cluster through one of its nodes. Safe for many coroutines of one loop; not for several loops.

    address: `unix:/path/node.sock` or `HOST:PORT`, or several with commas between; else PILFER_ADDRESS, else the socket
    in the default data directory. Of several nodes the first that answers is used, until it answers no more.
    certs: directory of ca.crt, client.crt, client.key for TCP addresses. insecure: plain TCP, on loopback alone.
    timeout_s: of one call, all its tries together. patience_s: how long it tries while no node answers at all; each of
    several is asked once in any case. Raises InvalidAddress. Nothing is connected before the first call.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        certs: str | os.PathLike[str] | None = None,
        insecure: bool | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        #: The nodes that were named, the first choice first.
        self.targets = find_targets(address, certs=certs, insecure=insecure)
        self._reach = Reach(self.targets, self._new_transport, timeout_s=timeout_s, patience_s=patience_s)

    def _new_transport(self, target: Target) -> _transport.Transport:
        return _transport.AsyncTransport(target, has_others=len(self.targets) > 1)

    async def close(self) -> None:
        """Ends all calls and gives up the connections."""
        await self._reach.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def submit(
        self,
        command: str | os.PathLike[str] | Submission,
        *args: str | os.PathLike[str],
        task_id: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> str:
        """Stores one task and gives its id: `submit("gzip", "-9", path, cpu=0.5)`, or `submit(TaskSpec(...))`.

        When this returns, the task survives the loss of any minority of nodes. Raises InvalidRequest with every wrong
        field, AlreadyExists when task_id has another spec, Unavailable when no node answers: then the task may or may
        not have been stored, and the error's note has the id to submit or to look for.
        """
        if isinstance(command, str | os.PathLike):
            spec: Submission = TaskSpec.of(command, *args, **options)
        elif args or options:
            raise TypeError("arguments and options belong into the spec")
        else:
            spec = command
        message = _convert.new_task_message(spec, task_id or new_task_id())
        try:
            await self._submit([message], validate_only=False)
        except (Unavailable, TimedOut) as error:
            error.add_note(f"task {message.id} may or may not have been stored; repeating it with this id settles it")
            raise
        return message.id

    async def submit_many(
        self,
        specs: Iterable[Submission],
        *,
        batch: int = BATCH,
        on_progress: Callable[[int], None] | None = None,
        validate_only: bool = False,
    ) -> Ids:
        """Stores many tasks, `batch` in one call, and gives their ids in order.

        on_progress gets the number of tasks stored so far. validate_only: check all, store nothing. All specs of one
        batch are checked before its first is stored; those of earlier batches are stored by then. The fields named by
        InvalidRequest count from the first spec of all (`tasks[1234].spec.command`).
        """
        ids: Ids = []
        messages: list[tasks_pb2.NewTask] = []
        size = 0

        async def send() -> None:
            try:
                await self._submit(messages, validate_only=validate_only)
            except InvalidRequest as error:
                raise _counted_from(error, len(ids)) from None
            except PilferError as error:
                if not validate_only:
                    error.add_note(f"{len(ids)} tasks before these are stored")
                raise
            ids.extend(message.id for message in messages)
            if on_progress is not None:
                on_progress(len(ids))

        for index, spec in enumerate(specs):
            try:
                message = _convert.new_task_message(spec, new_task_id())
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"tasks[{index}]: {error}",
                    [FieldViolation(f"tasks[{index}].{v.field}", v.description) for v in error.violations],
                ) from error
            bytes_of_it = message.ByteSize()
            if messages and (len(messages) >= batch or size + bytes_of_it > _BATCH_BYTES):
                await send()
                messages, size = [], 0
            messages.append(message)
            size += bytes_of_it
        if messages:
            await send()
        return ids

    @overload
    async def status(self, ids: str, *, timeout_s: float | None = None) -> Task: ...  # type: ignore[overload-overlap]  # a str is an id, though also an Iterable[str]

    @overload
    async def status(self, ids: Iterable[str], *, timeout_s: float | None = None) -> Tasks: ...

    async def status(self, ids: str | Iterable[str], *, timeout_s: float | None = None) -> Task | Tasks:
        """What the cluster knows of a task, or of several in their order. Unique prefixes of ids will do.

        timeout_s: of each thousand, in place of the client's. Raises NotFound, and InvalidRequest for an ambiguous
        prefix.
        """
        found: Tasks = []
        for some in _slices([ids] if isinstance(ids, str) else [*ids]):
            response = await self._call(
                _transport.STATUS,
                tasks_pb2.StatusRequest(ids=some),
                timeout_s=timeout_s,
                may_be_long=len(some) > _QUICK_TASKS,
            )
            found += [_convert.task_value(message) for message in response.tasks]
        return found[0] if isinstance(ids, str) else found

    @overload
    async def cancel(self, ids: str) -> CancelResult: ...  # type: ignore[overload-overlap]  # a str is an id, though also an Iterable[str]

    @overload
    async def cancel(self, ids: Iterable[str]) -> CancelResults: ...

    async def cancel(self, ids: str | Iterable[str]) -> CancelResult | CancelResults:
        """Asks for the end of one task, or of several, and says for each how far that came. Repeating it is harmless.

        Unknown ids are no error: their step is NOT_FOUND.
        """
        results: CancelResults = []
        for some in _slices([ids] if isinstance(ids, str) else [*ids]):
            response = await self._call(
                _transport.CANCEL, tasks_pb2.CancelRequest(ids=some), may_be_long=len(some) > _QUICK_TASKS
            )
            results += [_convert.cancel_result(message) for message in response.results]
        return results[0] if isinstance(ids, str) else results

    async def list(
        self,
        *,
        status: Status | str | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> AsyncGenerator[Task, None]:
        """Every task that matches (all of the labels), oldest first, fetched page by page; without stdin."""
        request = tasks_pb2.ListRequest(name=name, labels=labels, newest_first=newest_first)
        if status is not None:
            request.status = _convert.STATUS_NUMBERS[Status(status)]
        left = limit
        while left is None or left > 0:
            response = await self._call(_transport.LIST, request, may_be_long=True)
            for message in response.tasks[:left]:
                yield _convert.task_value(message)
            left = None if left is None else left - len(response.tasks)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    @overload
    async def wait(self, ids: str, *, timeout_s: float | None = None) -> Task: ...  # type: ignore[overload-overlap]  # a str is an id, though also an Iterable[str]

    @overload
    async def wait(self, ids: Iterable[str], *, timeout_s: float | None = None) -> Tasks: ...

    async def wait(self, ids: str | Iterable[str], *, timeout_s: float | None = None) -> Task | Tasks:
        """Returns when a task, or all of several, have ended: the tasks in the order of the ids; without stdin.

        However they ended: see `Task.succeeded`. timeout_s None: as long as it takes. Raises TimedOut, NotFound.
        """
        full = await self._full_ids([ids] if isinstance(ids, str) else [*ids])
        ended = {task.id: task async for task in self.as_ended(full, timeout_s=timeout_s)}
        return ended[full[0]] if isinstance(ids, str) else [ended[task_id] for task_id in full]

    async def as_ended(self, ids: Iterable[str], *, timeout_s: float | None = None) -> AsyncGenerator[Task, None]:
        """Each of the tasks once, as it ends; first those that have ended already. Raises TimedOut, NotFound."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = dict.fromkeys(await self._full_ids([*ids]), 0)
        if not waiting:
            return
        async with aclosing(self._events(waiting, {}, None, deadline, ended_only=True)) as events:
            async for event in events:
                if event.task.id not in waiting:
                    continue
                if event.deleted:
                    raise NotFound(f"task {event.task.id} was deleted before its end was seen")
                if event.task.status in _convert.TERMINAL_NUMBERS:
                    del waiting[event.task.id]
                    yield _convert.task_value(event.task)
                    if not waiting:
                        return

    async def watch(
        self,
        ids: str | Iterable[str] = (),
        *,
        labels: Mapping[str, str] | None = None,
        from_revision: int | None = None,
    ) -> AsyncGenerator[TaskEvent, None]:
        """Every transition, in order and without end, of the given tasks (full ids) or of all; without stdin.

        With ids, the present state of each comes first. labels: only tasks that have all of them. from_revision: the
        first revision to report, else from now on, which is when the first event is asked for. A broken connection is
        resumed without loss or repetition; raises RevisionGone where that cannot be (list, then watch anew), and
        NotFound.
        """
        given = [ids] if isinstance(ids, str) else [*ids]
        watched = dict.fromkeys(given, 0)
        async with aclosing(self._events(watched, dict(labels or {}), from_revision, None)) as events:
            async for event in events:
                yield _convert.task_event(event)

    async def log(
        self,
        task_id: str,
        *,
        stream: Stream | str | None = None,
        follow: bool = False,
        tail_lines: int | None = None,
        attempt: int | None = None,
    ) -> AsyncGenerator[LogChunk, None]:
        """The bytes that an attempt wrote, in chunks of at most 64 KiB, of one stream or of both.

        attempt: by default the newest. follow: as they come, until the task has ended, through further attempts where
        none was named; of a queued task, from its first attempt on. tail_lines: the last lines only.
        A broken connection is resumed at the byte where it broke, through another node where several are named.
        A chunk may carry a `notice` in place of data: that a further attempt begins, or what cannot be had of one.
        Raises NotFound, and PreconditionFailed while the host that has the log has no node.
        """
        request = tasks_pb2.LogRequest(id=task_id, follow=follow, tail_lines=tail_lines, attempt=attempt)
        if stream is not None:
            request.stream = _convert.STREAM_NUMBERS[Stream(stream)]
        reading = LogReading(request)
        trying = self._reach.trying(None)
        while True:
            try:
                async with aclosing(
                    trying.stream(_transport.LOG, reading.request(), can_renew=tail_lines is None)
                ) as responses:
                    async for response in responses:
                        if reading.take(response):
                            yield _convert.log_chunk(response)
            except Unavailable as error:
                await trying.pause_after(error)
            else:
                return

    async def _submit(self, messages: Sequence[tasks_pb2.NewTask], *, validate_only: bool) -> None:
        request = tasks_pb2.SubmitRequest(tasks=messages, validate_only=validate_only)
        is_large = len(messages) > _QUICK_TASKS or request.ByteSize() > _QUICK_BYTES
        await self._call(_transport.SUBMIT, request, try_s=_SUBMIT_TRY_S, may_be_long=is_large)

    async def _full_ids(self, ids: Ids) -> Ids:
        """Full ids of ids and prefixes."""
        if all(len(task_id) == _UUID_LENGTH for task_id in ids):
            return [task_id.lower() for task_id in ids]
        return [task.id for task in await self.status(ids)]

    async def _call(
        self,
        call: _transport.Call[Request, Response],
        request: Request,
        *,
        try_s: float = TRY_S,
        timeout_s: float | None = None,
        may_be_long: bool = False,
    ) -> Response:
        return await self._reach.call(call, request, try_s=try_s, timeout_s=timeout_s, may_be_long=may_be_long)

    def _trying(self, deadline: float | None) -> Trying:
        return self._reach.trying(deadline)

    async def _events(
        self,
        ids: MutableMapping[str, int],
        labels: Mapping[str, str],
        from_revision: int | None,
        deadline: float | None,
        *,
        ended_only: bool = False,
    ) -> AsyncGenerator[tasks_pb2.WatchResponse, None]:
        """Transitions, resumed, as messages.

        ids: each with the newest revision seen of it (0: none); empty: all tasks. The caller may delete from it what
        it needs no more. ended_only: of tasks that have ended alone.
        """
        of_all = not ids
        progress = Progress(from_revision, ready_is_last=ended_only)
        trying = self._reach.trying(deadline)
        while True:
            request = tasks_pb2.WatchRequest(
                ids=() if of_all else [*ids], labels=labels, ended_only=ended_only, grouped=True
            )
            if progress.resume_from is not None:
                request.from_revision = progress.resume_from
            has_present = not (of_all or ended_only or progress.resume_from is not None)
            progress.begin(len(request.ids) if has_present else 0)
            failure = Unavailable("the node ended the stream", code="UNAVAILABLE")
            try:
                async with aclosing(trying.stream(_transport.WATCH, request, can_renew=ended_only)) as responses:
                    async for message in responses:
                        for response in message.group or (message,):
                            if progress.is_new(response) and not (
                                response.task.id in ids and response.revision <= ids[response.task.id]
                            ):
                                if response.task.id in ids:
                                    ids[response.task.id] = response.revision
                                yield response
            except Unavailable as error:
                failure = error
            except RevisionGone:
                if of_all or from_revision is not None:
                    raise
                progress = Progress(None, ready_is_last=ended_only)  # the present state of each says what was missed
                continue
            await trying.pause_after(failure)


def _slices(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    # One empty call for no ids at all: the node says what is wrong with it.
    return (ids[start : start + _IDS_AT_ONCE] for start in range(0, max(1, len(ids)), _IDS_AT_ONCE))


def _counted_from(error: InvalidRequest, first: int) -> InvalidRequest:
    """The same error with the indices of its fields counted from the first task of all batches."""
    if not first:
        return error
    violations = []
    for violation in error.violations:
        head, bracket, rest = violation.field.partition("[")
        number, closing, tail = rest.partition("]")
        field = f"{head}[{int(number) + first}]{tail}" if bracket and closing and number.isdigit() else violation.field
        violations.append(FieldViolation(field, violation.description))
    return InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in violations) or error.message, violations)
