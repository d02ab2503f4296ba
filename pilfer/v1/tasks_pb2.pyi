from pilfer.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CancelStep(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CANCEL_STEP_UNSPECIFIED: _ClassVar[CancelStep]
    CANCEL_STEP_CANCELED: _ClassVar[CancelStep]
    CANCEL_STEP_REQUESTED: _ClassVar[CancelStep]
    CANCEL_STEP_ALREADY_ENDED: _ClassVar[CancelStep]
    CANCEL_STEP_NOT_FOUND: _ClassVar[CancelStep]

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    LOG_STREAM_STDOUT: _ClassVar[LogStream]
    LOG_STREAM_STDERR: _ClassVar[LogStream]
CANCEL_STEP_UNSPECIFIED: CancelStep
CANCEL_STEP_CANCELED: CancelStep
CANCEL_STEP_REQUESTED: CancelStep
CANCEL_STEP_ALREADY_ENDED: CancelStep
CANCEL_STEP_NOT_FOUND: CancelStep
LOG_STREAM_UNSPECIFIED: LogStream
LOG_STREAM_STDOUT: LogStream
LOG_STREAM_STDERR: LogStream

class NewTask(_message.Message):
    __slots__ = ("id", "spec")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: _records_pb2.TaskSpec
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[_records_pb2.TaskSpec, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("tasks", "validate_only")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[NewTask]
    validate_only: bool
    def __init__(self, tasks: _Optional[_Iterable[_Union[NewTask, _Mapping]]] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelResult(_message.Message):
    __slots__ = ("id", "step", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    step: CancelStep
    status: _records_pb2.TaskStatus
    def __init__(self, id: _Optional[str] = ..., step: _Optional[_Union[CancelStep, str]] = ..., status: _Optional[_Union[_records_pb2.TaskStatus, str]] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CancelResult]
    def __init__(self, results: _Optional[_Iterable[_Union[CancelResult, _Mapping]]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[_records_pb2.Task]
    def __init__(self, tasks: _Optional[_Iterable[_Union[_records_pb2.Task, _Mapping]]] = ...) -> None: ...

class LogRequest(_message.Message):
    __slots__ = ("id", "stream", "follow", "tail_lines", "attempt", "stdout_offset", "stderr_offset", "through_attempts")
    ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STDOUT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    STDERR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    THROUGH_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    stream: LogStream
    follow: bool
    tail_lines: int
    attempt: int
    stdout_offset: int
    stderr_offset: int
    through_attempts: bool
    def __init__(self, id: _Optional[str] = ..., stream: _Optional[_Union[LogStream, str]] = ..., follow: _Optional[bool] = ..., tail_lines: _Optional[int] = ..., attempt: _Optional[int] = ..., stdout_offset: _Optional[int] = ..., stderr_offset: _Optional[int] = ..., through_attempts: _Optional[bool] = ...) -> None: ...

class LogResponse(_message.Message):
    __slots__ = ("stream", "data", "attempt", "offset", "notice", "missing_bytes")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream: LogStream
    data: bytes
    attempt: int
    offset: int
    notice: str
    missing_bytes: int
    def __init__(self, stream: _Optional[_Union[LogStream, str]] = ..., data: _Optional[bytes] = ..., attempt: _Optional[int] = ..., offset: _Optional[int] = ..., notice: _Optional[str] = ..., missing_bytes: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("status", "name", "labels", "page_size", "page_token", "newest_first")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    status: _records_pb2.TaskStatus
    name: str
    labels: _containers.ScalarMap[str, str]
    page_size: int
    page_token: str
    newest_first: bool
    def __init__(self, status: _Optional[_Union[_records_pb2.TaskStatus, str]] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., newest_first: _Optional[bool] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("tasks", "next_page_token")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[_records_pb2.Task]
    next_page_token: str
    def __init__(self, tasks: _Optional[_Iterable[_Union[_records_pb2.Task, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("ids", "from_revision", "labels", "ended_only", "grouped")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IDS_FIELD_NUMBER: _ClassVar[int]
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ENDED_ONLY_FIELD_NUMBER: _ClassVar[int]
    GROUPED_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    from_revision: int
    labels: _containers.ScalarMap[str, str]
    ended_only: bool
    grouped: bool
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., from_revision: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., ended_only: _Optional[bool] = ..., grouped: _Optional[bool] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("task", "revision", "deleted", "ready", "group")
    TASK_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    task: _records_pb2.Task
    revision: int
    deleted: bool
    ready: bool
    group: _containers.RepeatedCompositeFieldContainer[WatchResponse]
    def __init__(self, task: _Optional[_Union[_records_pb2.Task, _Mapping]] = ..., revision: _Optional[int] = ..., deleted: _Optional[bool] = ..., ready: _Optional[bool] = ..., group: _Optional[_Iterable[_Union[WatchResponse, _Mapping]]] = ...) -> None: ...
