"""Pilfer's Python client: `pilfer.Client` (blocking) and `pilfer.AsyncClient` (asyncio).

    with pilfer.Client() as client:
        task_id = client.submit("sha256sum", "/etc/hostname", cpu=0.5)
        task = client.wait(task_id)
        print(task.succeeded, b"".join(chunk.data for chunk in client.log(task_id, stream="stdout")))

Names are loaded when they are first used (PEP 562), so that importing a stub of `pilfer.v1` loads no grpc. Nothing of
the server's is imported here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilfer.aio import AsyncClient as AsyncClient
    from pilfer.errors import AlreadyExists as AlreadyExists
    from pilfer.errors import FieldViolation as FieldViolation
    from pilfer.errors import InvalidAddress as InvalidAddress
    from pilfer.errors import InvalidRequest as InvalidRequest
    from pilfer.errors import NoQuorum as NoQuorum
    from pilfer.errors import NotAllowed as NotAllowed
    from pilfer.errors import NotFound as NotFound
    from pilfer.errors import PilferError as PilferError
    from pilfer.errors import PreconditionFailed as PreconditionFailed
    from pilfer.errors import ResourceExhausted as ResourceExhausted
    from pilfer.errors import RevisionGone as RevisionGone
    from pilfer.errors import ServerFailure as ServerFailure
    from pilfer.errors import TimedOut as TimedOut
    from pilfer.errors import Unavailable as Unavailable
    from pilfer.ids import new_task_id as new_task_id
    from pilfer.sync import Client as Client
    from pilfer.types import Attempt as Attempt
    from pilfer.types import CancelResult as CancelResult
    from pilfer.types import CancelStep as CancelStep
    from pilfer.types import Invitation as Invitation
    from pilfer.types import LogChunk as LogChunk
    from pilfer.types import Mount as Mount
    from pilfer.types import Network as Network
    from pilfer.types import NewToken as NewToken
    from pilfer.types import NodeView as NodeView
    from pilfer.types import Outcome as Outcome
    from pilfer.types import Reason as Reason
    from pilfer.types import RemovedHost as RemovedHost
    from pilfer.types import Requirements as Requirements
    from pilfer.types import Status as Status
    from pilfer.types import Stream as Stream
    from pilfer.types import Task as Task
    from pilfer.types import TaskEvent as TaskEvent
    from pilfer.types import TaskOptions as TaskOptions
    from pilfer.types import TaskSpec as TaskSpec
    from pilfer.types import TokenView as TokenView
    from pilfer.types import Usage as Usage
    from pilfer.types import Why as Why
    from pilfer.types import WhyNode as WhyNode

_MODULES = {
    "pilfer.aio": ("AsyncClient",),
    "pilfer.sync": ("Client",),
    "pilfer.ids": ("new_task_id",),
    "pilfer.errors": (
        "AlreadyExists",
        "FieldViolation",
        "InvalidAddress",
        "InvalidRequest",
        "NoQuorum",
        "NotAllowed",
        "NotFound",
        "PilferError",
        "PreconditionFailed",
        "ResourceExhausted",
        "RevisionGone",
        "ServerFailure",
        "TimedOut",
        "Unavailable",
    ),
    "pilfer.types": (
        "Attempt",
        "CancelResult",
        "CancelStep",
        "Invitation",
        "LogChunk",
        "Mount",
        "Network",
        "NewToken",
        "NodeView",
        "Outcome",
        "Reason",
        "RemovedHost",
        "Requirements",
        "Status",
        "Stream",
        "Task",
        "TaskEvent",
        "TaskOptions",
        "TaskSpec",
        "TokenView",
        "Usage",
        "Why",
        "WhyNode",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
