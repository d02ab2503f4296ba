"""A TaskService and NodeService over a dict: real grpc, real sockets, the semantics of `protos/pilfer/v1`.

Nothing runs here: a test plays the cluster (`start`, `write`, `end`), and what the network may do to a client
(`fail_next`, `lose_answer_next`, `break_streams`, stopping and starting the server).
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from pilfer.v1 import nodes_pb2, nodes_pb2_grpc, records_pb2, tasks_pb2, tasks_pb2_grpc

TERMINAL = (
    records_pb2.TASK_STATUS_COMPLETE,
    records_pb2.TASK_STATUS_CANCELED,
    records_pb2.TASK_STATUS_FAILED,
)
NODE_ID = "11111111-1111-4111-8111-111111111111"
HOST_ID = "22222222-2222-4222-8222-222222222222"
CHUNK_BYTES = 64 * 1024
OFFSETS: dict[int, Literal["stdout_offset", "stderr_offset"]] = {
    tasks_pb2.LOG_STREAM_STDOUT: "stdout_offset",
    tasks_pb2.LOG_STREAM_STDERR: "stderr_offset",
}
PAGE_MAX = 1000
_WITHOUT_ETCD = ("ListNodes", "Describe")


class FakeCluster:
    """The state of the cluster, and the hooks of the tests. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.tasks: dict[str, records_pb2.Task] = {}
        self.revisions: dict[str, int] = {}
        self.revision = 100
        #: Every transition: (revision, the task after it, deleted).
        self.events: list[tuple[int, records_pb2.Task, bool]] = []
        #: Older revisions are compacted away.
        self.compacted = 0
        self.logs: dict[tuple[str, int], list[tuple[tasks_pb2.LogStream, bytes]]] = defaultdict(list)
        #: Calls seen, by name.
        self.calls: Counter[str] = Counter()
        self.submits: list[tasks_pb2.SubmitRequest] = []
        self.logs_asked_for: list[tasks_pb2.LogRequest] = []
        self.nodes: list[nodes_pb2.NodeView] = []
        #: Whether the first message of a watch tells the revision that it goes on from.
        self.tells_ready_revision = True
        #: Transitions in one message, for clients that ask for groups; 0: this node knows no groups.
        self.group_size = 0
        #: False: what needs etcd is refused as a node without a quorum does it; streams that stand go on standing.
        self.has_quorum = True
        #: Calls of these names are never answered.
        self.mute: set[str] = set()
        self._failures: dict[str, list[grpc.StatusCode]] = defaultdict(list)
        self._lost_answers: Counter[str] = Counter()
        self._generation = 0
        #: Ends the streams that have sent so many messages; None: never.
        self.break_streams_after: int | None = None

    # --- what a test does

    def fail_next(self, call: str, *codes: grpc.StatusCode) -> None:
        """The next calls of that name end with these codes, before anything is done."""
        self._failures[call].extend(codes)

    def lose_answer_next(self, call: str) -> None:
        """The next call of that name is done, but its caller hears UNAVAILABLE."""
        self._lost_answers[call] += 1

    def break_streams(self) -> None:
        """Every open stream ends with UNAVAILABLE."""
        with self.changed:
            self._generation += 1
            self.changed.notify_all()

    def start(self, task_id: str) -> None:
        """A node claims and starts it."""
        with self.changed:
            task = self.tasks[task_id]
            task.status = records_pb2.TASK_STATUS_RUNNING
            task.attempt += 1
            task.attempts_used += 1
            attempt = task.attempts.add(number=task.attempt, node_id=NODE_ID, host_id=HOST_ID)
            attempt.claimed_at.GetCurrentTime()
            attempt.started_at.GetCurrentTime()
            self._moved(task)

    def write(self, task_id: str, data: bytes, *, stderr: bool = False) -> None:
        """The running attempt writes."""
        stream = tasks_pb2.LOG_STREAM_STDERR if stderr else tasks_pb2.LOG_STREAM_STDOUT
        with self.changed:
            self.logs[task_id, self.tasks[task_id].attempt].append((stream, data))
            self.changed.notify_all()

    def tell(self, task_id: str, notice: str) -> None:
        """Something happens to the stream of the running attempt."""
        with self.changed:
            entry = (tasks_pb2.LOG_STREAM_UNSPECIFIED, notice.encode())
            self.logs[task_id, self.tasks[task_id].attempt].append(entry)
            self.changed.notify_all()

    def requeue(self, task_id: str) -> None:
        """Its node is lost."""
        with self.changed:
            task = self.tasks[task_id]
            self._close(task, records_pb2.Outcome(reason=records_pb2.REASON_NODE_LOST))
            task.status = records_pb2.TASK_STATUS_QUEUED
            self._moved(task)

    def end(
        self, task_id: str, outcome: records_pb2.Outcome | None = None, *, status: records_pb2.TaskStatus | None = None
    ) -> None:
        """It ends; by default complete, with exit code 0."""
        outcome = outcome or records_pb2.Outcome(reason=records_pb2.REASON_EXITED, exit_code=0)
        with self.changed:
            task = self.tasks[task_id]
            self._close(task, outcome)
            task.status = status or records_pb2.TASK_STATUS_COMPLETE
            task.outcome.CopyFrom(outcome)
            task.finished_at.GetCurrentTime()
            self._moved(task)

    def delete(self, task_id: str) -> None:
        """Retention removes it."""
        with self.changed:
            del self.tasks[task_id]
            self.revision += 1
            self.events.append((self.revision, records_pb2.Task(id=task_id), True))
            self.changed.notify_all()

    def same_revision(self, *moves: Callable[[], None]) -> None:
        """Several transitions in one transaction: they share a revision."""
        with self.changed:
            before, first = self.revision, len(self.events)
            for move in moves:
                move()
            self.revision = before + 1
            for index in range(first, len(self.events)):
                _, task, deleted = self.events[index]
                self.events[index] = (self.revision, task, deleted)
                self.revisions[task.id] = self.revision

    def only_task_id(self) -> str:
        (task_id,) = self.tasks
        return task_id

    # --- what the services need

    def _close(self, task: records_pb2.Task, outcome: records_pb2.Outcome) -> None:
        if task.status == records_pb2.TASK_STATUS_RUNNING:
            task.attempts[-1].outcome.CopyFrom(outcome)
            task.attempts[-1].finished_at.GetCurrentTime()

    def _moved(self, task: records_pb2.Task) -> None:
        self.revision += 1
        self.revisions[task.id] = self.revision
        copy = records_pb2.Task()
        copy.CopyFrom(task)
        copy.spec.ClearField("stdin")
        self.events.append((self.revision, copy, False))
        self.changed.notify_all()

    def add(self, new: tasks_pb2.NewTask) -> None:
        task = records_pb2.Task(id=new.id, spec=new.spec, status=records_pb2.TASK_STATUS_QUEUED)
        task.submitted_at.GetCurrentTime()
        with self.changed:
            self.tasks[new.id] = task
            self._moved(task)

    def request_cancel(self, task: records_pb2.Task) -> None:
        task.cancel_requested = True
        self._moved(task)

    def enter(self, call: str, context: grpc.ServicerContext) -> int:
        """At the beginning of each call; gives the generation of streams."""
        with self.changed:
            self.calls[call] += 1
            generation = self._generation
            code = self._failures[call].pop(0) if self._failures[call] else None
        if not self.has_quorum and call not in _WITHOUT_ETCD:
            refuse_without_quorum(context)
        if call in self.mute:
            gone = threading.Event()
            if context.add_callback(gone.set):
                gone.wait()
        if code is not None:
            context.abort(code, f"the test wants {code.name}")
        return generation

    def leave(self, call: str, context: grpc.ServicerContext) -> None:
        """At the end of each unary call, when all is done."""
        with self.changed:
            is_lost = self._lost_answers[call] > 0
            self._lost_answers[call] -= is_lost
        if is_lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

    def check_stream(self, generation: int, sent: int, context: grpc.ServicerContext) -> None:
        limit = self.break_streams_after
        if generation != self._generation or (limit is not None and sent >= limit):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")


def refuse_without_quorum(context: grpc.ServicerContext) -> NoReturn:
    """UNAVAILABLE with the ErrorInfo, as the node does it (`node/api/errors.py`)."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="STORE_UNAVAILABLE", domain="pilfer.unavailable"))
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="nothing could be read", details=[detail])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNAVAILABLE, status.message)
    raise AssertionError("abort returns never")


def refuse(context: grpc.ServicerContext, field: str, description: str) -> NoReturn:
    """INVALID_ARGUMENT with the field, as the node does it."""
    bad = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=description)]
    )
    detail = any_pb2.Any()
    detail.Pack(bad)
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=f"{field}: {description}", details=[detail])
    # As grpcio-status does it: google.rpc.Status in the trailing metadata.
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message)
    raise AssertionError("abort returns never")


class FakeTasks(tasks_pb2_grpc.TaskServiceServicer):
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def Submit(self, request: tasks_pb2.SubmitRequest, context: Any) -> tasks_pb2.SubmitResponse:  # noqa: N802  (gRPC's name)
        cluster = self._cluster
        cluster.enter("Submit", context)
        cluster.submits.append(request)
        for index, new in enumerate(request.tasks):
            if not new.spec.command:
                refuse(context, f"tasks[{index}].spec.command", "is empty")
            if new.spec.requirements.HasField("cpu") and new.spec.requirements.cpu <= 0:
                refuse(context, f"tasks[{index}].spec.requirements.cpu", "must be more than 0")
        if request.validate_only:
            return tasks_pb2.SubmitResponse(ids=[new.id for new in request.tasks])
        with cluster.changed:
            for new in request.tasks:
                known = cluster.tasks.get(new.id)
                if known is None:
                    cluster.add(new)
                elif known.spec != new.spec:
                    context.abort(grpc.StatusCode.ALREADY_EXISTS, f"task {new.id} is there already with another spec")
        cluster.leave("Submit", context)
        return tasks_pb2.SubmitResponse(ids=[new.id for new in request.tasks])

    def _find(self, given: str, context: Any) -> records_pb2.Task | None:
        found = [task for task_id, task in sorted(self._cluster.tasks.items()) if task_id.startswith(given)]
        if len(found) > 1:
            refuse(context, "ids", f"{given} is ambiguous: it begins more than one task id; give more digits")
        return found[0] if found else None

    def _get(self, given: str, context: Any) -> records_pb2.Task:
        task = self._find(given, context)
        if task is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no task {given}")
            raise AssertionError("abort returns never")
        return task

    def Status(self, request: tasks_pb2.StatusRequest, context: Any) -> tasks_pb2.StatusResponse:  # noqa: N802  (gRPC's name)
        self._cluster.enter("Status", context)
        with self._cluster.changed:
            return tasks_pb2.StatusResponse(tasks=[self._get(given, context) for given in request.ids])

    def Cancel(self, request: tasks_pb2.CancelRequest, context: Any) -> tasks_pb2.CancelResponse:  # noqa: N802  (gRPC's name)
        cluster = self._cluster
        cluster.enter("Cancel", context)
        results = []
        with cluster.changed:
            for given in request.ids:
                task = self._find(given, context)
                if task is None:
                    results.append(tasks_pb2.CancelResult(id=given, step=tasks_pb2.CANCEL_STEP_NOT_FOUND))
                    continue
                if task.status in TERMINAL:
                    step = tasks_pb2.CANCEL_STEP_ALREADY_ENDED
                elif task.status == records_pb2.TASK_STATUS_QUEUED:
                    step = tasks_pb2.CANCEL_STEP_CANCELED
                    canceled = records_pb2.Outcome(reason=records_pb2.REASON_CANCELED)
                    cluster.end(task.id, canceled, status=records_pb2.TASK_STATUS_CANCELED)
                else:
                    step = tasks_pb2.CANCEL_STEP_REQUESTED
                    cluster.request_cancel(task)
                results.append(tasks_pb2.CancelResult(id=task.id, step=step, status=task.status))
        cluster.leave("Cancel", context)
        return tasks_pb2.CancelResponse(results=results)

    def List(self, request: tasks_pb2.ListRequest, context: Any) -> tasks_pb2.ListResponse:  # noqa: N802  (gRPC's name)
        """Pages hold as many candidates as asked for; those that do not match are left out, as the node does it."""
        self._cluster.enter("List", context)
        with self._cluster.changed:
            ids = sorted(self._cluster.tasks, reverse=request.newest_first)
            if request.page_token:
                ids = ids[ids.index(request.page_token) + 1 :]
            page = ids[: request.page_size or PAGE_MAX]
            tasks = [
                self._cluster.tasks[task_id]
                for task_id in page
                if (not request.HasField("status") or self._cluster.tasks[task_id].status == request.status)
                and (not request.name or self._cluster.tasks[task_id].spec.name == request.name)
                and dict(request.labels).items() <= dict(self._cluster.tasks[task_id].spec.labels).items()
            ]
            return tasks_pb2.ListResponse(tasks=tasks, next_page_token=page[-1] if len(page) < len(ids) else "")

    def Watch(self, request: tasks_pb2.WatchRequest, context: Any) -> Iterator[tasks_pb2.WatchResponse]:  # noqa: N802  (gRPC's name)
        cluster = self._cluster
        generation = cluster.enter("Watch", context)
        with cluster.changed:
            start = request.from_revision if request.HasField("from_revision") else cluster.revision + 1
            if start <= cluster.compacted:
                context.abort(grpc.StatusCode.OUT_OF_RANGE, "that revision is gone")
            ready = tasks_pb2.WatchResponse(ready=True, revision=start if cluster.tells_ready_revision else 0)
            responses = []
            if not request.HasField("from_revision"):
                for task_id in request.ids:
                    task = self._get(task_id, context)
                    if task.status in TERMINAL or not request.ended_only:
                        responses.append(tasks_pb2.WatchResponse(task=task, revision=cluster.revisions[task_id]))
            responses.insert(len(responses) if request.ended_only else 0, ready)
            position = next((i for i, e in enumerate(cluster.events) if e[0] >= start), len(cluster.events))
        sent = 0
        while True:
            for message in _grouped(responses, cluster.group_size) if request.grouped else responses:
                cluster.check_stream(generation, sent, context)
                yield message
                sent += 1
            with cluster.changed:
                cluster.changed.wait_for(lambda p=position: len(cluster.events) > p, timeout=0.05)  # type: ignore[misc]  # bound now
                events = cluster.events[position:]
                position += len(events)
            cluster.check_stream(generation, sent, context)
            if not context.is_active():
                return
            responses = [
                tasks_pb2.WatchResponse(task=task, revision=revision, deleted=deleted)
                for revision, task, deleted in events
                if (not request.ids or task.id in request.ids)
                and (deleted or dict(request.labels).items() <= dict(task.spec.labels).items())
                and (deleted or task.status in TERMINAL or not request.ended_only)
            ]

    def Log(self, request: tasks_pb2.LogRequest, context: Any) -> Iterator[tasks_pb2.LogResponse]:  # noqa: N802  (gRPC's name)
        cluster = self._cluster
        generation = cluster.enter("Log", context)
        with cluster.changed:
            task = self._get(request.id, context)
            wanted = request.attempt if request.HasField("attempt") else None
            is_over = task.status in TERMINAL
            if wanted is not None and wanted > task.attempt and (is_over or not request.follow):
                context.abort(grpc.StatusCode.NOT_FOUND, f"task {task.id} has no attempt {wanted}")
            number = wanted if wanted is not None else max(task.attempt, 1)
            cluster.logs_asked_for.append(request)
        goes_on = request.follow and (wanted is None or request.through_attempts)
        sent = 0
        while True:
            for response in self._attempt(request, task, number, context):
                cluster.check_stream(generation, sent, context)
                if response is not None:
                    yield response
                    sent += 1
            if not context.is_active() or not goes_on:
                return
            with cluster.changed:
                cluster.changed.wait_for(lambda n=number: task.attempt > n or task.status in TERMINAL, 0.05)  # type: ignore[misc]  # bound now
                if task.attempt > number:
                    number += 1
                    request = tasks_pb2.LogRequest(id=request.id, stream=request.stream, follow=True)
                elif task.status in TERMINAL:
                    return

    def _attempt(
        self, request: tasks_pb2.LogRequest, task: records_pb2.Task, number: int, context: Any
    ) -> Iterator[tasks_pb2.LogResponse | None]:
        """The chunks of one attempt until it is over; None now and then while nothing comes."""
        cluster = self._cluster
        position = 0
        written: Counter[int] = Counter()
        offsets = {name: getattr(request, field) for name, field in OFFSETS.items() if request.HasField(field)}
        while context.is_active():
            with cluster.changed:
                is_closed = not request.follow or task.status in TERMINAL or task.attempt > number
                is_closed = is_closed or any(a.number == number and a.HasField("outcome") for a in task.attempts)
                pieces = cluster.logs[task.id, number][position:]
                position += len(pieces)
                if not pieces and not is_closed:
                    cluster.changed.wait(timeout=0.05)
            for stream, data in pieces:
                if stream == tasks_pb2.LOG_STREAM_UNSPECIFIED:
                    yield tasks_pb2.LogResponse(attempt=number, notice=data.decode())
                    continue
                begin = written[stream]
                written[stream] = end = begin + len(data)
                if request.stream not in (tasks_pb2.LOG_STREAM_UNSPECIFIED, stream):
                    continue
                if stream in offsets:
                    begin = max(begin, offsets[stream])
                elif request.HasField("tail_lines"):
                    begin = end - len(_tail(data, request.tail_lines))
                kept = data[len(data) - (end - begin) :] if begin < end else b""
                for start in range(0, len(kept), CHUNK_BYTES):
                    chunk = kept[start : start + CHUNK_BYTES]
                    yield tasks_pb2.LogResponse(stream=stream, data=chunk, attempt=number, offset=begin + start)
            yield None
            if is_closed and not pieces:
                return


def _grouped(responses: list[tasks_pb2.WatchResponse], size: int) -> list[tasks_pb2.WatchResponse]:
    if not size:
        return responses
    return [tasks_pb2.WatchResponse(group=responses[start : start + size]) for start in range(0, len(responses), size)]


def _tail(data: bytes, lines: int) -> bytes:
    kept = data.splitlines(keepends=True)
    return b"".join(kept[len(kept) - min(lines, len(kept)) :])


class FakeNodes(nodes_pb2_grpc.NodeServiceServicer):
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def ListNodes(self, request: nodes_pb2.ListNodesRequest, context: Any) -> nodes_pb2.ListNodesResponse:  # noqa: N802  (gRPC's name)
        self._cluster.enter("ListNodes", context)
        return nodes_pb2.ListNodesResponse(nodes=self._cluster.nodes)

    def Describe(self, request: nodes_pb2.DescribeRequest, context: Any) -> nodes_pb2.NodeView:  # noqa: N802  (gRPC's name)
        self._cluster.enter("Describe", context)
        return nodes_pb2.NodeView(state="ready")


class FakeNode:
    """A server of the cluster at one address (`unix:/path` or `HOST:0`). A context manager; may be started again."""

    def __init__(self, cluster: FakeCluster, address: str, credentials: grpc.ServerCredentials | None = None) -> None:
        self.cluster = cluster
        self.address = address
        self._credentials = credentials
        self._server: grpc.Server | None = None
        self._threads: ThreadPoolExecutor | None = None

    def start(self) -> None:
        # Streams hold a thread each.
        self._threads = ThreadPoolExecutor(max_workers=16)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]
        server = grpc.server(self._threads, options=options)
        tasks_pb2_grpc.add_TaskServiceServicer_to_server(FakeTasks(self.cluster), server)
        nodes = FakeNodes(self.cluster)  # type: ignore[abstract]  # what is left out answers UNIMPLEMENTED
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(nodes, server)
        if self._credentials is None:
            port = server.add_insecure_port(self.address)
        else:
            port = server.add_secure_port(self.address, self._credentials)
        if not self.address.startswith("unix:"):
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None and self._threads is not None:
            self._server.stop(grace=None).wait()
            self._threads.shutdown()
            self._server = None

    def __enter__(self) -> FakeNode:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
