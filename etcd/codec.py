"""Between the core's values and the protobuf records of `protos/pilfer/v1/records.proto`, in both directions.

Lossless: decoding what was encoded gives the same value. Absent optional fields mean the proto's defaults; a default is
left absent on writing, so that a record stays small and the schema reads as written. Times are kept to the nanosecond,
which is finer than a float of today's Unix time.

A record that cannot be read, whose key is another task's, or which contradicts itself raises RecordCorrupt, on writing
as on reading: nothing of that kind is ever stored, and nothing of that kind is acted upon. No I/O here.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from etcd import keys
from etcd.errors import RecordCorrupt
from node.core import model
from node.core.lifecycle import flaws
from node.core.model import DEFAULT_REQUIREMENTS, Network, Reason, Requirements, Status, Task, TaskSpec
from pilfer.v1 import records_pb2 as pb

_STATUS_TO_PB: dict[Status, pb.TaskStatus] = {
    Status.QUEUED: pb.TASK_STATUS_QUEUED,
    Status.RUNNING: pb.TASK_STATUS_RUNNING,
    Status.COMPLETE: pb.TASK_STATUS_COMPLETE,
    Status.CANCELED: pb.TASK_STATUS_CANCELED,
    Status.FAILED: pb.TASK_STATUS_FAILED,
}
_STATUS_FROM_PB: dict[int, Status] = {number: status for status, number in _STATUS_TO_PB.items()}
_REASON_TO_PB: dict[Reason, pb.Reason] = {
    Reason.EXITED: pb.REASON_EXITED,
    Reason.SIGNALED: pb.REASON_SIGNALED,
    Reason.TIMED_OUT: pb.REASON_TIMED_OUT,
    Reason.OUT_OF_MEMORY: pb.REASON_OUT_OF_MEMORY,
    Reason.CANCELED: pb.REASON_CANCELED,
    Reason.SETUP_FAILED: pb.REASON_SETUP_FAILED,
    Reason.GIVEN_BACK: pb.REASON_GIVEN_BACK,
    Reason.NODE_LOST: pb.REASON_NODE_LOST,
    Reason.FENCED: pb.REASON_FENCED,
    Reason.OUT_OF_SCRATCH: pb.REASON_OUT_OF_SCRATCH,
}
_REASON_FROM_PB: dict[int, Reason] = {number: reason for reason, number in _REASON_TO_PB.items()}
_NETWORK_TO_PB: dict[Network, pb.Network] = {
    Network.NONE: pb.NETWORK_NONE,
    Network.HOST: pb.NETWORK_HOST,
}
_NETWORK_FROM_PB: dict[int, Network] = {number: network for network, number in _NETWORK_TO_PB.items()}


# -- enums, for the API -----------------------------------------------------------------------------------------------


def status_to_proto(status: Status) -> pb.TaskStatus:
    return _STATUS_TO_PB[status]


def status_from_proto(number: int) -> Status | None:
    """None for UNSPECIFIED and for numbers that this version does not know."""
    return _STATUS_FROM_PB.get(number)


# -- times ------------------------------------------------------------------------------------------------------------


def set_time(target: Timestamp, at: float) -> None:
    """Unix seconds into a Timestamp; time zero stays visible as a present field."""
    target.SetInParent()
    seconds = int(at // 1)
    nanos = round((at - seconds) * 1e9)
    if nanos == 1_000_000_000:
        seconds, nanos = seconds + 1, 0
    target.seconds = seconds
    target.nanos = nanos


def get_time(source: Timestamp) -> float:
    return source.seconds + source.nanos / 1e9


# -- specs ------------------------------------------------------------------------------------------------------------


def spec_to_proto(spec: TaskSpec, message: pb.TaskSpec) -> None:  # noqa: PLR0912  (one branch per optional field)
    """Fills the message, which must be empty."""
    message.command = spec.command
    if spec.args:
        message.args.extend(spec.args)
    if spec.env:
        message.env.update(spec.env)
    if spec.cwd is not None:
        message.cwd = spec.cwd
    if spec.stdin:
        message.stdin = spec.stdin
    if spec.name:
        message.name = spec.name
    if spec.labels:
        message.labels.update(spec.labels)
    if spec.requirements != DEFAULT_REQUIREMENTS:
        _requirements_to_proto(spec.requirements, message.requirements)
    if spec.timeout_s is not None:
        message.timeout_s = spec.timeout_s
    if spec.grace_s != model.DEFAULT_GRACE_S:
        message.grace_s = spec.grace_s
    if not spec.restart_on_node_loss:
        message.restart_on_node_loss = False
    if spec.max_attempts != model.DEFAULT_MAX_ATTEMPTS:
        message.max_attempts = spec.max_attempts
    if spec.network is not Network.NONE:
        message.network = _NETWORK_TO_PB[spec.network]
    for mount in spec.mounts:
        added = message.mounts.add(source=mount.source, target=mount.target)
        if not mount.read_only:
            added.read_only = False


def spec_from_proto(message: pb.TaskSpec) -> TaskSpec:
    """The spec with its defaults filled in. Values out of range come through for `node/core/validate.py` to name;
    only a network that this version does not know raises RecordCorrupt."""
    has = message.HasField
    network = Network.NONE
    if message.network != pb.NETWORK_UNSPECIFIED:
        found = _NETWORK_FROM_PB.get(message.network)
        if found is None:
            raise RecordCorrupt(f"network: {message.network} is neither none nor host")
        network = found
    return TaskSpec(
        command=message.command,
        args=tuple(message.args),
        env=dict(message.env),
        cwd=message.cwd if has("cwd") else None,
        stdin=message.stdin,
        name=message.name,
        labels=dict(message.labels),
        requirements=_requirements_from_proto(message.requirements) if has("requirements") else DEFAULT_REQUIREMENTS,
        timeout_s=message.timeout_s if has("timeout_s") else None,
        grace_s=message.grace_s if has("grace_s") else model.DEFAULT_GRACE_S,
        restart_on_node_loss=message.restart_on_node_loss if has("restart_on_node_loss") else True,
        max_attempts=message.max_attempts if has("max_attempts") else model.DEFAULT_MAX_ATTEMPTS,
        network=network,
        mounts=tuple(
            model.Mount(m.source, m.target, m.read_only if m.HasField("read_only") else True) for m in message.mounts
        ),
    )


def _requirements_to_proto(requirements: Requirements, message: pb.Requirements) -> None:
    message.SetInParent()
    if requirements.cpu != model.DEFAULT_CPU:
        message.cpu = requirements.cpu
    if requirements.memory_bytes is not None:
        message.memory_bytes = requirements.memory_bytes
    if requirements.pids != model.DEFAULT_PIDS:
        message.pids = requirements.pids
    if requirements.io_read_bytes_per_s is not None:
        message.io_read_bytes_per_s = requirements.io_read_bytes_per_s
    if requirements.io_write_bytes_per_s is not None:
        message.io_write_bytes_per_s = requirements.io_write_bytes_per_s
    if requirements.scratch_bytes is not None:
        message.scratch_bytes = requirements.scratch_bytes
    if requirements.require_limits:
        message.require_limits = True


def _requirements_from_proto(message: pb.Requirements) -> Requirements:
    has = message.HasField
    return Requirements(
        cpu=message.cpu if has("cpu") else model.DEFAULT_CPU,
        memory_bytes=message.memory_bytes if has("memory_bytes") else None,
        pids=message.pids if has("pids") else model.DEFAULT_PIDS,
        io_read_bytes_per_s=message.io_read_bytes_per_s if has("io_read_bytes_per_s") else None,
        io_write_bytes_per_s=message.io_write_bytes_per_s if has("io_write_bytes_per_s") else None,
        scratch_bytes=message.scratch_bytes if has("scratch_bytes") else None,
        require_limits=message.require_limits,
    )


# -- offers: the value of a queued key --------------------------------------------------------------------------------


def offer_value(requirements: Requirements) -> bytes:
    """Empty for the default requirements; otherwise an Offer, in which 0 stands for "none"."""
    if requirements == DEFAULT_REQUIREMENTS:
        return b""
    if requirements.cpu <= 0 or requirements.pids <= 0:
        raise RecordCorrupt(f"requirements that cannot be offered: {requirements}")
    return pb.Offer(
        cpu=requirements.cpu,
        memory_bytes=requirements.memory_bytes or 0,
        pids=requirements.pids,
        io_read_bytes_per_s=requirements.io_read_bytes_per_s or 0,
        io_write_bytes_per_s=requirements.io_write_bytes_per_s or 0,
        scratch_bytes=requirements.scratch_bytes or 0,
        require_limits=requirements.require_limits,
    ).SerializeToString()


def requirements_of_offer(value: bytes) -> Requirements:
    if not value:
        return DEFAULT_REQUIREMENTS
    try:
        offer = pb.Offer.FromString(value)
    except DecodeError as error:
        raise RecordCorrupt("an offer that cannot be read") from error
    if offer.cpu <= 0 or offer.pids <= 0:
        raise RecordCorrupt(f"an offer without cpu or pids: {value!r}")
    return Requirements(
        cpu=offer.cpu,
        memory_bytes=offer.memory_bytes or None,
        pids=offer.pids,
        io_read_bytes_per_s=offer.io_read_bytes_per_s or None,
        io_write_bytes_per_s=offer.io_write_bytes_per_s or None,
        scratch_bytes=offer.scratch_bytes or None,
        require_limits=offer.require_limits,
    )


# -- outcomes and attempts --------------------------------------------------------------------------------------------


def outcome_to_proto(outcome: model.Outcome, message: pb.Outcome) -> None:
    """Fills the message, which must be empty."""
    message.reason = _REASON_TO_PB[outcome.reason]
    if outcome.exit_code is not None:
        message.exit_code = outcome.exit_code
    if outcome.signal is not None:
        message.signal = outcome.signal
    if outcome.step:
        message.step = outcome.step
    if outcome.errno is not None:
        message.errno = outcome.errno
    if outcome.detail:
        message.detail = outcome.detail
    if outcome.usage is not None:
        usage = message.usage
        usage.SetInParent()
        usage.cpu_s = outcome.usage.cpu_s
        usage.memory_peak_bytes = outcome.usage.memory_peak_bytes
        usage.io_read_bytes = outcome.usage.io_read_bytes
        usage.io_write_bytes = outcome.usage.io_write_bytes
        usage.wall_s = outcome.usage.wall_s


def outcome_from_proto(message: pb.Outcome) -> model.Outcome:
    has = message.HasField
    reason = _REASON_FROM_PB.get(message.reason)
    if reason is None:
        raise RecordCorrupt(f"reason {message.reason} is not known to this version")
    usage = None
    if has("usage"):
        u = message.usage
        usage = model.Usage(u.cpu_s, u.memory_peak_bytes, u.io_read_bytes, u.io_write_bytes, u.wall_s)
    return model.Outcome(
        reason=reason,
        exit_code=message.exit_code if has("exit_code") else None,
        signal=message.signal if has("signal") else None,
        step=message.step,
        errno=message.errno if has("errno") else None,
        detail=message.detail,
        usage=usage,
    )


def _attempt_to_proto(attempt: model.Attempt, message: pb.Attempt) -> None:
    message.number = attempt.number
    message.node_id = attempt.node_id
    message.host_id = attempt.host_id
    set_time(message.claimed_at, attempt.claimed_at)
    if attempt.started_at is not None:
        set_time(message.started_at, attempt.started_at)
    if attempt.finished_at is not None:
        set_time(message.finished_at, attempt.finished_at)
    if attempt.outcome is not None:
        outcome_to_proto(attempt.outcome, message.outcome)


def _attempt_from_proto(message: pb.Attempt) -> model.Attempt:
    has = message.HasField
    return model.Attempt(
        number=message.number,
        node_id=message.node_id,
        host_id=message.host_id,
        claimed_at=get_time(message.claimed_at),
        started_at=get_time(message.started_at) if has("started_at") else None,
        finished_at=get_time(message.finished_at) if has("finished_at") else None,
        outcome=outcome_from_proto(message.outcome) if has("outcome") else None,
    )


# -- tasks ------------------------------------------------------------------------------------------------------------


def task_to_proto(task: Task, *, with_stdin: bool = True) -> pb.Task:
    """The record as a message; without stdin for lists and watches."""
    message = pb.Task(
        id=task.id,
        status=_STATUS_TO_PB[task.status],
        attempt=task.attempt,
        attempts_used=task.attempts_used,
        cancel_requested=task.cancel_requested,
    )
    spec_to_proto(task.spec, message.spec)
    for attempt in task.attempts:
        _attempt_to_proto(attempt, message.attempts.add())
    if task.outcome is not None:
        outcome_to_proto(task.outcome, message.outcome)
    set_time(message.submitted_at, task.submitted_at)
    if task.finished_at is not None:
        set_time(message.finished_at, task.finished_at)
    if not with_stdin:
        message.spec.ClearField("stdin")
    return message


def task_from_proto(message: pb.Task) -> Task:
    """The record as a value. Raises RecordCorrupt where it contradicts itself."""
    status = _STATUS_FROM_PB.get(message.status)
    if status is None:
        raise RecordCorrupt(f"task {message.id}: status {message.status} is not known to this version")
    has = message.HasField
    task = Task(
        id=message.id,
        spec=spec_from_proto(message.spec),
        submitted_at=get_time(message.submitted_at),
        status=status,
        attempt=message.attempt,
        attempts_used=message.attempts_used,
        attempts=tuple(map(_attempt_from_proto, message.attempts)),
        cancel_requested=message.cancel_requested,
        outcome=outcome_from_proto(message.outcome) if has("outcome") else None,
        finished_at=get_time(message.finished_at) if has("finished_at") else None,
    )
    _check(task)
    return task


def encode_task(task: Task) -> bytes:
    """The value of the task's record."""
    _check(task)
    return task_to_proto(task).SerializeToString()


def decode_task(key: bytes, value: bytes) -> Task:
    """The task under this record key. Raises RecordCorrupt when it cannot be read or is another's."""
    task_id = keys.parse_task(key)
    try:
        task = task_from_proto(pb.Task.FromString(value))
    except (DecodeError, RecordCorrupt) as error:
        raise RecordCorrupt(f"record of task {task_id}: {error}") from error
    if task.id != task_id:
        raise RecordCorrupt(f"the record of task {task_id} holds task {task.id}")
    return task


def check_index(task: Task, index_key: bytes) -> None:
    """Raises RecordCorrupt when this is not the index key that the record must have."""
    if keys.index_key(task) != index_key:
        raise RecordCorrupt(f"task {task.id} is {task.status}, but its index key is {index_key!r}")


def _check(task: Task) -> None:
    """The invariants of the core, and that only what has ended has an end."""
    wrong = flaws(task)
    if task.status.is_terminal is not (task.finished_at is not None):
        wrong.append(f"it is {task.status} {'without' if task.finished_at is None else 'with'} an end")
    if wrong:
        raise RecordCorrupt(f"task {task.id} is not sound: {', '.join(wrong)}")


# -- nodes ------------------------------------------------------------------------------------------------------------


def capacity_to_proto(capacity: model.Capacity) -> pb.Capacity:
    return pb.Capacity(
        cpu=capacity.cpu,
        memory_bytes=capacity.memory_bytes,
        scratch_bytes=capacity.scratch_bytes or 0,
        limits=sorted(capacity.limits),
    )


def capacity_from_proto(message: pb.Capacity) -> model.Capacity:
    return model.Capacity(
        message.cpu,
        message.memory_bytes,
        scratch_bytes=message.scratch_bytes or None,
        limits=frozenset(message.limits),
    )


def node_to_proto(node: model.Node) -> pb.Node:
    message = pb.Node(
        id=node.id,
        host_id=node.host_id,
        name=node.name,
        address=node.address,
        capacity=capacity_to_proto(node.capacity),
        version=node.version,
        not_enforced=node.not_enforced,
        etcd_peer_url=node.etcd_peer_url,
        etcd_client_url=node.etcd_client_url,
    )
    set_time(message.started_at, node.started_at)
    return message


def encode_node(node: model.Node) -> bytes:
    return node_to_proto(node).SerializeToString()


def decode_node(key: bytes, value: bytes) -> model.Node:
    node_id = keys.parse_node(key)
    try:
        message = pb.Node.FromString(value)
    except DecodeError as error:
        raise RecordCorrupt(f"record of node {node_id} cannot be read") from error
    if message.id != node_id:
        raise RecordCorrupt(f"the key of node {node_id} holds node {message.id}")
    return model.Node(
        id=message.id,
        host_id=message.host_id,
        name=message.name,
        capacity=capacity_from_proto(message.capacity),
        version=message.version,
        started_at=get_time(message.started_at),
        address=message.address,
        not_enforced=tuple(message.not_enforced),
        etcd_peer_url=message.etcd_peer_url,
        etcd_client_url=message.etcd_client_url,
    )
