"""Between the client's values (`pilfer/types.py`) and the messages of `pilfer.v1`, field by field. Decides nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeAlias, cast

from google.protobuf.timestamp_pb2 import Timestamp

from pilfer.errors import FieldViolation, InvalidRequest
from pilfer.types import (
    Attempt,
    CancelResult,
    CancelStep,
    LogChunk,
    Mount,
    Network,
    NodeView,
    Outcome,
    Reason,
    RemovedHost,
    Requirements,
    Status,
    Stream,
    Task,
    TaskEvent,
    TaskSpec,
    Usage,
    Why,
    WhyNode,
)
from pilfer.v1 import nodes_pb2, records_pb2, tasks_pb2

#: What submit takes: the client's own value, or the messages as they travel.
Submission: TypeAlias = TaskSpec | records_pb2.TaskSpec | tasks_pb2.NewTask

STATUS_NUMBERS = {
    status: cast(records_pb2.TaskStatus, records_pb2.TaskStatus.Value(f"TASK_STATUS_{status.name}"))
    for status in Status
}
_STATUSES = {number: status for status, number in STATUS_NUMBERS.items()}
TERMINAL_NUMBERS = frozenset(number for status, number in STATUS_NUMBERS.items() if status.is_terminal)
_REASONS = {records_pb2.Reason.Value(f"REASON_{reason.name}"): reason for reason in Reason}
_NETWORK_NUMBERS = {network: records_pb2.Network.Value(f"NETWORK_{network.name}") for network in Network}
_NETWORKS = {number: network for network, number in _NETWORK_NUMBERS.items()}
STREAM_NUMBERS = {
    stream: cast(tasks_pb2.LogStream, tasks_pb2.LogStream.Value(f"LOG_STREAM_{stream.name}")) for stream in Stream
}
_STREAMS = {number: stream for stream, number in STREAM_NUMBERS.items()}
_STEPS = {tasks_pb2.CancelStep.Value(f"CANCEL_STEP_{step.name}"): step for step in CancelStep}


def new_task_message(submission: Submission, task_id: str) -> tasks_pb2.NewTask:
    """The message of one task. task_id counts where the submission has no id of its own."""
    if isinstance(submission, tasks_pb2.NewTask):
        return tasks_pb2.NewTask(id=submission.id or task_id, spec=submission.spec)
    spec = spec_message(submission) if isinstance(submission, TaskSpec) else submission
    return tasks_pb2.NewTask(id=task_id, spec=spec)


def spec_message(spec: TaskSpec) -> records_pb2.TaskSpec:
    """Raises InvalidRequest for a value that no message can hold (a wrong type, text that is not Unicode)."""
    message = records_pb2.TaskSpec()
    needs = spec.requirements
    values: dict[str, object] = {
        "command": spec.command,
        "cwd": spec.cwd,
        "stdin": spec.stdin,
        "name": spec.name,
        "timeout_s": spec.timeout_s,
        "grace_s": spec.grace_s,
        "restart_on_node_loss": spec.restart_on_node_loss,
        "max_attempts": spec.max_attempts,
        "network": _network_number(spec.network),
    }
    for name, value in values.items():
        if value is not None:
            _fill(name, setattr, message, name, value)
    _fill("args", message.args.extend, spec.args)
    _fill("env", message.env.update, spec.env)
    _fill("labels", message.labels.update, spec.labels)
    for name in Requirements.__slots__:
        value = getattr(needs, name)
        if value is not None:
            _fill(f"requirements.{name}", setattr, message.requirements, name, value)
    for index, mount in enumerate(spec.mounts):
        added = message.mounts.add()
        for name in Mount.__slots__:
            _fill(f"mounts[{index}].{name}", setattr, added, name, getattr(mount, name))
    return message


def _fill(field: str, put: object, *values: object) -> None:
    try:
        put(*values)  # type: ignore[operator]  # one of several methods of the generated messages
    except (TypeError, ValueError) as error:  # UnicodeEncodeError (a lone surrogate) is a ValueError
        reason = "is not valid Unicode text" if isinstance(error, UnicodeError) else str(error)
        raise InvalidRequest(f"{field}: {reason}", [FieldViolation(f"spec.{field}", reason)]) from error


def _network_number(network: Network | str | None) -> int | None:
    if network is None:
        return None
    try:
        return _NETWORK_NUMBERS[Network(network)]
    except ValueError as error:
        reason = f"{network!r} is neither none nor host"
        raise InvalidRequest(f"network: {reason}", [FieldViolation("spec.network", reason)]) from error


def spec_value(message: records_pb2.TaskSpec) -> TaskSpec:
    needs = message.requirements
    return TaskSpec(
        command=message.command,
        args=tuple(message.args),
        env=dict(message.env),
        cwd=message.cwd if message.HasField("cwd") else None,
        stdin=message.stdin,
        name=message.name,
        labels=dict(message.labels),
        requirements=Requirements(
            cpu=needs.cpu if needs.HasField("cpu") else None,
            memory_bytes=needs.memory_bytes if needs.HasField("memory_bytes") else None,
            pids=needs.pids if needs.HasField("pids") else None,
            io_read_bytes_per_s=needs.io_read_bytes_per_s if needs.HasField("io_read_bytes_per_s") else None,
            io_write_bytes_per_s=needs.io_write_bytes_per_s if needs.HasField("io_write_bytes_per_s") else None,
            scratch_bytes=needs.scratch_bytes if needs.HasField("scratch_bytes") else None,
            require_limits=needs.require_limits if needs.HasField("require_limits") else None,
        ),
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        grace_s=message.grace_s if message.HasField("grace_s") else None,
        restart_on_node_loss=message.restart_on_node_loss if message.HasField("restart_on_node_loss") else None,
        max_attempts=message.max_attempts if message.HasField("max_attempts") else None,
        network=_NETWORKS.get(message.network) if message.HasField("network") else None,
        mounts=tuple(
            Mount(mount.source, mount.target, mount.read_only if mount.HasField("read_only") else True)
            for mount in message.mounts
        ),
    )


def task_value(message: records_pb2.Task) -> Task:
    return Task(
        id=message.id,
        spec=spec_value(message.spec),
        status=_STATUSES.get(message.status, Status.QUEUED),
        attempt=message.attempt,
        attempts_used=message.attempts_used,
        attempts=tuple(_attempt_value(attempt) for attempt in message.attempts),
        cancel_requested=message.cancel_requested,
        outcome=_outcome_value(message.outcome) if message.HasField("outcome") else None,
        submitted_at=_time(message, "submitted_at"),
        finished_at=_time(message, "finished_at"),
    )


def _attempt_value(message: records_pb2.Attempt) -> Attempt:
    return Attempt(
        number=message.number,
        node_id=message.node_id,
        host_id=message.host_id,
        claimed_at=_time(message, "claimed_at"),
        started_at=_time(message, "started_at"),
        finished_at=_time(message, "finished_at"),
        outcome=_outcome_value(message.outcome) if message.HasField("outcome") else None,
    )


def _outcome_value(message: records_pb2.Outcome) -> Outcome:
    usage = message.usage
    return Outcome(
        reason=_REASONS.get(message.reason),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        step=message.step,
        errno=message.errno if message.HasField("errno") else None,
        detail=message.detail,
        usage=Usage(usage.cpu_s, usage.memory_peak_bytes, usage.io_read_bytes, usage.io_write_bytes, usage.wall_s)
        if message.HasField("usage")
        else None,
    )


def log_chunk(message: tasks_pb2.LogResponse) -> LogChunk:
    stream = _STREAMS.get(message.stream, Stream.STDOUT)
    return LogChunk(stream, message.data, message.attempt, message.notice, message.missing_bytes)


def task_event(message: tasks_pb2.WatchResponse) -> TaskEvent:
    return TaskEvent(task_value(message.task), message.revision, message.deleted)


def cancel_result(message: tasks_pb2.CancelResult) -> CancelResult:
    return CancelResult(message.id, _STEPS[message.step], _STATUSES.get(message.status))


def node_view(message: nodes_pb2.NodeView) -> NodeView:
    node = message.node
    return NodeView(
        id=node.id,
        host_id=node.host_id,
        name=node.name,
        address=node.address,
        cpu=node.capacity.cpu,
        memory_bytes=node.capacity.memory_bytes,
        version=node.version,
        started_at=_time(node, "started_at"),
        not_enforced=tuple(node.not_enforced),
        state=message.state,
        role=message.role,
        load=message.load,
        running=message.running,
        reserved_cpu=message.reserved.cpu,
        reserved_memory_bytes=message.reserved.memory_bytes,
        now=_time(message, "now"),
        etcd_version=message.etcd_version,
        last_seen=_time(message, "last_seen"),
        warnings=tuple(message.warnings),
    )


def removed_host(message: nodes_pb2.RemoveResponse) -> RemovedHost:
    return RemovedHost(message.host_id, message.name)


def why_value(message: nodes_pb2.WhyResponse) -> Why:
    nodes = (WhyNode(of.node_id, of.name, of.fits, tuple(of.reasons)) for of in message.nodes)
    return Why(task_value(message.task), message.summary, tuple(nodes))


def _time(
    message: records_pb2.Task | records_pb2.Attempt | records_pb2.Node | nodes_pb2.NodeView, field: str
) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)
