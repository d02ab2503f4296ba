import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATUS_UNSPECIFIED: _ClassVar[TaskStatus]
    TASK_STATUS_QUEUED: _ClassVar[TaskStatus]
    TASK_STATUS_RUNNING: _ClassVar[TaskStatus]
    TASK_STATUS_COMPLETE: _ClassVar[TaskStatus]
    TASK_STATUS_CANCELED: _ClassVar[TaskStatus]
    TASK_STATUS_FAILED: _ClassVar[TaskStatus]

class Network(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_UNSPECIFIED: _ClassVar[Network]
    NETWORK_NONE: _ClassVar[Network]
    NETWORK_HOST: _ClassVar[Network]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_EXITED: _ClassVar[Reason]
    REASON_SIGNALED: _ClassVar[Reason]
    REASON_TIMED_OUT: _ClassVar[Reason]
    REASON_OUT_OF_MEMORY: _ClassVar[Reason]
    REASON_CANCELED: _ClassVar[Reason]
    REASON_SETUP_FAILED: _ClassVar[Reason]
    REASON_GIVEN_BACK: _ClassVar[Reason]
    REASON_NODE_LOST: _ClassVar[Reason]
    REASON_FENCED: _ClassVar[Reason]
    REASON_OUT_OF_SCRATCH: _ClassVar[Reason]
TASK_STATUS_UNSPECIFIED: TaskStatus
TASK_STATUS_QUEUED: TaskStatus
TASK_STATUS_RUNNING: TaskStatus
TASK_STATUS_COMPLETE: TaskStatus
TASK_STATUS_CANCELED: TaskStatus
TASK_STATUS_FAILED: TaskStatus
NETWORK_UNSPECIFIED: Network
NETWORK_NONE: Network
NETWORK_HOST: Network
REASON_UNSPECIFIED: Reason
REASON_EXITED: Reason
REASON_SIGNALED: Reason
REASON_TIMED_OUT: Reason
REASON_OUT_OF_MEMORY: Reason
REASON_CANCELED: Reason
REASON_SETUP_FAILED: Reason
REASON_GIVEN_BACK: Reason
REASON_NODE_LOST: Reason
REASON_FENCED: Reason
REASON_OUT_OF_SCRATCH: Reason

class Requirements(_message.Message):
    __slots__ = ("cpu", "memory_bytes", "pids", "io_read_bytes_per_s", "io_write_bytes_per_s", "scratch_bytes", "require_limits")
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    IO_READ_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    cpu: float
    memory_bytes: int
    pids: int
    io_read_bytes_per_s: int
    io_write_bytes_per_s: int
    scratch_bytes: int
    require_limits: bool
    def __init__(self, cpu: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., io_read_bytes_per_s: _Optional[int] = ..., io_write_bytes_per_s: _Optional[int] = ..., scratch_bytes: _Optional[int] = ..., require_limits: _Optional[bool] = ...) -> None: ...

class Mount(_message.Message):
    __slots__ = ("source", "target", "read_only")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    read_only: bool
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class TaskSpec(_message.Message):
    __slots__ = ("command", "args", "env", "cwd", "stdin", "name", "labels", "requirements", "timeout_s", "grace_s", "restart_on_node_loss", "max_attempts", "network", "mounts")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    RESTART_ON_NODE_LOSS_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    command: str
    args: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    cwd: str
    stdin: bytes
    name: str
    labels: _containers.ScalarMap[str, str]
    requirements: Requirements
    timeout_s: float
    grace_s: float
    restart_on_node_loss: bool
    max_attempts: int
    network: Network
    mounts: _containers.RepeatedCompositeFieldContainer[Mount]
    def __init__(self, command: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ..., cwd: _Optional[str] = ..., stdin: _Optional[bytes] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., requirements: _Optional[_Union[Requirements, _Mapping]] = ..., timeout_s: _Optional[float] = ..., grace_s: _Optional[float] = ..., restart_on_node_loss: _Optional[bool] = ..., max_attempts: _Optional[int] = ..., network: _Optional[_Union[Network, str]] = ..., mounts: _Optional[_Iterable[_Union[Mount, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("cpu_s", "memory_peak_bytes", "io_read_bytes", "io_write_bytes", "wall_s")
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    cpu_s: float
    memory_peak_bytes: int
    io_read_bytes: int
    io_write_bytes: int
    wall_s: float
    def __init__(self, cpu_s: _Optional[float] = ..., memory_peak_bytes: _Optional[int] = ..., io_read_bytes: _Optional[int] = ..., io_write_bytes: _Optional[int] = ..., wall_s: _Optional[float] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("reason", "exit_code", "signal", "step", "errno", "detail", "usage")
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    exit_code: int
    signal: int
    step: str
    errno: int
    detail: str
    usage: Usage
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., step: _Optional[str] = ..., errno: _Optional[int] = ..., detail: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("number", "node_id", "host_id", "claimed_at", "started_at", "finished_at", "outcome")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    number: int
    node_id: str
    host_id: str
    claimed_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    outcome: Outcome
    def __init__(self, number: _Optional[int] = ..., node_id: _Optional[str] = ..., host_id: _Optional[str] = ..., claimed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "spec", "status", "attempt", "attempts_used", "attempts", "cancel_requested", "outcome", "submitted_at", "finished_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_USED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: TaskSpec
    status: TaskStatus
    attempt: int
    attempts_used: int
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    cancel_requested: bool
    outcome: Outcome
    submitted_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[TaskSpec, _Mapping]] = ..., status: _Optional[_Union[TaskStatus, str]] = ..., attempt: _Optional[int] = ..., attempts_used: _Optional[int] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., cancel_requested: _Optional[bool] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("cpu", "memory_bytes", "pids", "io_read_bytes_per_s", "io_write_bytes_per_s", "scratch_bytes", "require_limits")
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    IO_READ_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    cpu: float
    memory_bytes: int
    pids: int
    io_read_bytes_per_s: int
    io_write_bytes_per_s: int
    scratch_bytes: int
    require_limits: bool
    def __init__(self, cpu: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., pids: _Optional[int] = ..., io_read_bytes_per_s: _Optional[int] = ..., io_write_bytes_per_s: _Optional[int] = ..., scratch_bytes: _Optional[int] = ..., require_limits: _Optional[bool] = ...) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("cpu", "memory_bytes", "scratch_bytes", "limits")
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    cpu: float
    memory_bytes: int
    scratch_bytes: int
    limits: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, cpu: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., scratch_bytes: _Optional[int] = ..., limits: _Optional[_Iterable[str]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "host_id", "name", "address", "capacity", "version", "started_at", "not_enforced", "etcd_peer_url", "etcd_client_url")
    ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    NOT_ENFORCED_FIELD_NUMBER: _ClassVar[int]
    ETCD_PEER_URL_FIELD_NUMBER: _ClassVar[int]
    ETCD_CLIENT_URL_FIELD_NUMBER: _ClassVar[int]
    id: str
    host_id: str
    name: str
    address: str
    capacity: Capacity
    version: str
    started_at: _timestamp_pb2.Timestamp
    not_enforced: _containers.RepeatedScalarFieldContainer[str]
    etcd_peer_url: str
    etcd_client_url: str
    def __init__(self, id: _Optional[str] = ..., host_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., version: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., not_enforced: _Optional[_Iterable[str]] = ..., etcd_peer_url: _Optional[str] = ..., etcd_client_url: _Optional[str] = ...) -> None: ...

class Host(_message.Message):
    __slots__ = ("id", "name", "address", "node_id", "version", "capacity", "last_seen")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    address: str
    node_id: str
    version: str
    capacity: Capacity
    last_seen: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., node_id: _Optional[str] = ..., version: _Optional[str] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("let_finish", "since")
    LET_FINISH_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    let_finish: bool
    since: _timestamp_pb2.Timestamp
    def __init__(self, let_finish: _Optional[bool] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("name", "at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    at: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JoinToken(_message.Message):
    __slots__ = ("id", "created_at", "expires_at", "uses", "used_by", "revoked")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    USED_BY_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    id: str
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    uses: int
    used_by: _containers.RepeatedScalarFieldContainer[str]
    revoked: bool
    def __init__(self, id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uses: _Optional[int] = ..., used_by: _Optional[_Iterable[str]] = ..., revoked: _Optional[bool] = ...) -> None: ...

class NameClaim(_message.Message):
    __slots__ = ("host_id", "at")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    at: _timestamp_pb2.Timestamp
    def __init__(self, host_id: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
