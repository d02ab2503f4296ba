"""What the store's calls answer with: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from etcd.identity import Identity
from node.core.model import Task


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a task, as long as the running key has this create_revision and the node key lives."""

    task: Task
    mod_revision: int
    #: create_revision of the running key: the claim's identity, and the low part of the task's fence token.
    fence_revision: int
    #: The cluster's when the running key was written, or later: the high part of the fence token.
    epoch: int
    identity: Identity


@dataclass(frozen=True, slots=True)
class Submitted:
    task: Task
    #: False: it was there already, with the same spec.
    created: bool


class AlreadyExists(Exception):  # noqa: N818  (named for what is the case, as the errors of this package)
    """A task of this id is there, with another spec."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {task_id} exists already, with another spec")
        self.task_id = task_id


class CancelStep(StrEnum):
    """How far a cancel got."""

    #: It will never run (again).
    CANCELED = "canceled"
    #: It runs; its node has been told to end it.
    REQUESTED = "requested"
    #: It had ended; nothing was changed.
    ALREADY_ENDED = "already_ended"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Canceled:
    step: CancelStep
    #: As it is now; None where there is none.
    task: Task | None


@dataclass(frozen=True, slots=True)
class RunningTasks:
    #: Ids of the nodes whose keys are there.
    nodes: tuple[str, ...]
    #: (node id, task id) of every running key.
    tasks: tuple[tuple[str, str], ...]
    revision: int
