"""TaskService: submit, cancel, status, list. (Log and Watch: `node/api/log.py`, `node/api/watch.py`.)

Checks what comes in, asks the store, answers. Decides nothing about tasks: that is the core's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from etcd import codec
from etcd.errors import StoreError
from etcd.listing import BadPageToken
from etcd.store import AlreadyExists, TaskStore, Versioned
from node.api.errors import ApiError, already_exists, answers, invalid, not_found
from node.core import ids, lifecycle
from node.core.model import Task, TaskSpec
from node.core.retention import is_too_old_to_submit
from node.core.validate import Violation, task_id_violation, violations
from node.running.admission import Admission
from pilfer.v1 import records_pb2, tasks_pb2

#: Writing a call's tasks: no client waits longer, and a shorter deadline of the client counts.
SUBMIT_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 10.0
PAGE_MAX = 1000
#: Specs checked, or ids canceled, before others get their turn.
YIELD_EVERY = 256
#: Violations told in one answer; a file of 100,000 bad lines needs no more to be mended.
VIOLATIONS_MAX = 100


class TaskCalls:
    """The unary calls of TaskService."""

    def __init__(
        self,
        store: TaskStore,
        admission: Admission,
        *,
        retention_age_s: float,
        refusal: Callable[[], str | None],
    ) -> None:
        self._store = store
        self._admission = admission
        self._retention_age_s = retention_age_s
        #: A reason to refuse every submit right now (filling up, stopping), or None.
        self._refusal = refusal

    @answers
    async def Submit(  # noqa: N802  (gRPC's name)
        self, request: tasks_pb2.SubmitRequest, context: Any
    ) -> tasks_pb2.SubmitResponse:
        now = time.time()
        tasks = await self._checked(request, now)
        if request.validate_only:
            return tasks_pb2.SubmitResponse(ids=[task.id for task in request.tasks])
        if refusal := self._refusal():
            raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        results = await self._store.submit_many(tasks, timeout_s=_time_left(context, SUBMIT_TIMEOUT_S))
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            raise _submit_error(failed, stored=len(results) - len(failed), total=len(results))
        return tasks_pb2.SubmitResponse(ids=[task.id for task in tasks])

    async def _checked(self, request: tasks_pb2.SubmitRequest, now: float) -> list[Task]:
        """The new records; raises ApiError with every violation before anything is stored."""
        if not request.tasks:
            raise invalid([Violation("tasks", "is empty: at least one task is needed")])
        found: list[Violation] = []
        seen: set[str] = set()
        tasks: list[Task] = []
        for index, new in enumerate(request.tasks):
            if index % YIELD_EVERY == 0:
                await asyncio.sleep(0)  # lets the node's other duties in: 100,000 specs take seconds to check
            if new.spec.network not in records_pb2.Network.values():
                found.append(Violation(f"tasks[{index}].spec.network", "must be none or host"))
                continue
            spec = codec.spec_from_proto(new.spec)
            for violation in self._violations(new, spec, seen, now):
                found.append(Violation(f"tasks[{index}].{violation.field}", violation.message))
            if len(found) >= VIOLATIONS_MAX:
                break
            task_id = new.id or ids.new_task_id(now, random.SystemRandom())
            seen.add(task_id)
            tasks.append(lifecycle.submit(task_id, spec, now=now))
        if found:
            raise invalid(found)
        return tasks

    def _violations(self, new: tasks_pb2.NewTask, spec: TaskSpec, seen: set[str], now: float) -> list[Violation]:
        of_spec = violations(spec) + self._admission.violations(spec)
        found = [Violation(f"spec.{v.field}", v.message) for v in of_spec]
        if new.id:
            if wrong := task_id_violation(new.id):
                found.append(wrong)
            if new.id in seen:
                found.append(Violation("id", f"{new.id} is given twice in this call"))
            if is_too_old_to_submit(new.id, now=now, max_age_s=self._retention_age_s):
                found.append(
                    Violation(
                        "id",
                        "is a UUIDv7 older than the retention window: a task of this id may have ended and "
                        "been deleted already. Choose a new id",
                    )
                )
        return found

    @answers
    async def Cancel(  # noqa: N802
        self, request: tasks_pb2.CancelRequest, context: Any
    ) -> tasks_pb2.CancelResponse:
        if not request.ids:
            raise invalid([Violation("ids", "is empty: at least one task id is needed")])
        timeout_s = _time_left(context, CALL_TIMEOUT_S)
        # All are looked up before the first is canceled: a wrong one cancels nothing.
        found = [(given, await self.find_id(given, "ids")) for given in request.ids]
        results: list[tasks_pb2.CancelResult | BaseException] = []
        for start in range(0, len(found), YIELD_EVERY):
            some = (self._cancel(given, task_id, timeout_s) for given, task_id in found[start : start + YIELD_EVERY])
            results += await asyncio.gather(*some, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return tasks_pb2.CancelResponse(results=[r for r in results if isinstance(r, tasks_pb2.CancelResult)])

    async def _cancel(self, given: str, task_id: str | None, timeout_s: float) -> tasks_pb2.CancelResult:
        if task_id is None:
            return tasks_pb2.CancelResult(id=given, step=tasks_pb2.CANCEL_STEP_NOT_FOUND)
        canceled = await self._store.cancel(task_id, now=time.time(), timeout_s=timeout_s)
        result = tasks_pb2.CancelResult(id=task_id, step=f"CANCEL_STEP_{canceled.step.name}")
        if canceled.task is not None:
            result.status = codec.status_to_proto(canceled.task.status)
        return result

    @answers
    async def Status(  # noqa: N802
        self, request: tasks_pb2.StatusRequest, _context: Any
    ) -> tasks_pb2.StatusResponse:
        if not request.ids:
            raise invalid([Violation("ids", "is empty: at least one task id is needed")])
        full = [await self.find_id(given, "ids") for given in request.ids]
        found = await self._store.read([task_id for task_id in full if task_id is not None])
        if None in full:
            raise not_found(request.ids[full.index(None)])
        if None in found:
            raise not_found(request.ids[found.index(None)])
        return tasks_pb2.StatusResponse(tasks=[codec.task_to_proto(seen.task) for seen in found if seen is not None])

    @answers
    async def List(  # noqa: N802
        self, request: tasks_pb2.ListRequest, context: Any
    ) -> tasks_pb2.ListResponse:
        if request.page_size < 0 or request.page_size > PAGE_MAX:
            raise invalid([Violation("page_size", f"must be 0 (the default) to {PAGE_MAX}")])
        status = codec.status_from_proto(request.status) if request.HasField("status") else None
        if request.HasField("status") and status is None:
            raise invalid([Violation("status", "must be queued, running, complete, canceled or failed")])
        labels = dict(request.labels)

        def matches(task: Task) -> bool:
            return (not request.name or task.spec.name == request.name) and labels.items() <= task.spec.labels.items()

        try:
            page = await self._store.list_page(
                status=status,
                page_size=request.page_size or PAGE_MAX,
                page_token=request.page_token,
                newest_first=request.newest_first,
                wanted=matches if request.name or labels else None,
                timeout_s=_time_left(context, CALL_TIMEOUT_S),
            )
        except BadPageToken as error:
            raise invalid([Violation("page_token", str(error))]) from error
        tasks = [codec.task_to_proto(task, with_stdin=False) for task in page.tasks]
        return tasks_pb2.ListResponse(tasks=tasks, next_page_token=page.next_token)

    async def find_id(self, given: str, field: str) -> str | None:
        """The full id of what a user typed (an id or a unique prefix), or None. Raises ApiError when ambiguous."""
        wanted = given.lower()
        if not given or not ids.is_id_prefix(wanted):
            raise invalid([Violation(field, f"{given[:64]!r} is no task id: a UUID, or the first digits of one")])
        if ids.is_task_id(wanted):
            return wanted
        matches = await self._store.find(wanted, limit=2)
        if len(matches) > 1:
            raise invalid(
                [Violation(field, f"{given} is ambiguous: it begins more than one task id; give more digits")]
            )
        return matches[0] if matches else None

    async def get(self, given: str) -> Versioned:
        """The record of an id or a unique prefix. Raises ApiError: not found, ambiguous."""
        task_id = await self.find_id(given, "ids")
        if task_id is not None:
            (seen,) = await self._store.read([task_id])
            if seen is not None:
                return seen
        raise not_found(given)


def without_stdin(task: records_pb2.Task) -> records_pb2.Task:
    """Listings and watches leave out the one large field."""
    task.spec.ClearField("stdin")
    return task


def _time_left(context: Any, at_most_s: float) -> float:
    """The caller's deadline, passed down, less a moment to answer in."""
    left: float | None = context.time_remaining()
    return at_most_s if left is None else max(0.05, min(at_most_s, left - 0.05))


def _submit_error(failed: Sequence[Exception], *, stored: int, total: int) -> Exception:
    first = failed[0]
    if isinstance(first, AlreadyExists):
        return already_exists(first.task_id)
    if isinstance(first, StoreError) and total > 1:
        return type(first)(f"{stored} of {total} tasks are stored; {first}")
    return first
