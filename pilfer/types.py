"""The client's values: what a task is, what it asks for, how it ended.

Plain and immutable; loads neither grpc nor protobuf. An absent (None) field of a spec means the cluster's default,
so that the client, the command line and JSON share the defaults of `protos/pilfer/v1/records.proto`.
Sizes are bytes, durations seconds, rates bytes per second, times aware datetimes in UTC.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TypedDict, Unpack


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


class Status(StrEnum):
    """Where a task stands. COMPLETE: the command ran and ended, however it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    CANCELED = "canceled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether it will never change again."""
        return self in (Status.COMPLETE, Status.CANCELED, Status.FAILED)


class Reason(StrEnum):
    """How an attempt, or the task as a whole, ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELED = "canceled"
    SETUP_FAILED = "setup_failed"
    GIVEN_BACK = "given_back"
    NODE_LOST = "node_lost"
    FENCED = "fenced"
    OUT_OF_SCRATCH = "out_of_scratch"


class Network(StrEnum):
    NONE = "none"
    HOST = "host"


class Stream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class CancelStep(StrEnum):
    """How far a cancel came."""

    #: It was queued and will never run.
    CANCELED = "canceled"
    #: It runs; its node has been told to end it.
    REQUESTED = "requested"
    #: It had ended before; nothing was changed.
    ALREADY_ENDED = "already_ended"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a task reserves and is held to."""

    cpu: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    io_read_bytes_per_s: int | None = None
    io_write_bytes_per_s: int | None = None
    #: What its scratch directory may hold; by default what the node allows to each.
    scratch_bytes: int | None = None
    #: Only nodes that enforce the limits that it is under may run it.
    require_limits: bool | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path put into the task's view; the node must allow it."""

    source: str
    target: str
    read_only: bool = True


class TaskOptions(TypedDict, total=False):
    """Everything of a task but its command, as keyword arguments: the fields of TaskSpec and of Requirements."""

    env: Mapping[str, str]
    cwd: str | None
    stdin: bytes
    name: str
    labels: Mapping[str, str]
    cpu: float | None
    memory_bytes: int | None
    pids: int | None
    io_read_bytes_per_s: int | None
    io_write_bytes_per_s: int | None
    scratch_bytes: int | None
    require_limits: bool | None
    timeout_s: float | None
    grace_s: float | None
    restart_on_node_loss: bool | None
    max_attempts: int | None
    network: Network | str | None
    mounts: Sequence[Mount]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What is to be run, and how."""

    #: A path, or a name looked up in PATH of the task's environment.
    command: str
    args: tuple[str, ...] = ()
    #: The task's whole environment, next to what Pilfer sets; nothing of the caller's is inherited.
    env: Mapping[str, str] = field(default_factory=_empty)
    cwd: str | None = None
    stdin: bytes = b""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=_empty)
    requirements: Requirements = Requirements()
    #: Wall time of one attempt.
    timeout_s: float | None = None
    #: From SIGTERM to SIGKILL when it is canceled or times out.
    grace_s: float | None = None
    restart_on_node_loss: bool | None = None
    max_attempts: int | None = None
    network: Network | str | None = None
    mounts: tuple[Mount, ...] = ()

    @classmethod
    def of(
        cls, command: str | os.PathLike[str], *args: str | os.PathLike[str], **options: Unpack[TaskOptions]
    ) -> TaskSpec:
        """A spec from a command line and flat options: `TaskSpec.of("gzip", "-9", path, cpu=0.5, name="pack")`.

        Raises TypeError for an option that is none.
        """
        given: dict[str, object] = dict(options)
        needs = {f.name: given.pop(f.name) for f in fields(Requirements) if f.name in given}
        if "mounts" in given:
            given["mounts"] = tuple(options["mounts"])
        return cls(
            os.fspath(command),
            tuple(os.fspath(arg) for arg in args),
            requirements=Requirements(**needs),  # type: ignore[arg-type]  # TaskOptions has their types
            **given,  # type: ignore[arg-type]  # as above
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used, all its processes together."""

    cpu_s: float
    memory_peak_bytes: int
    io_read_bytes: int
    io_write_bytes: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. exit_code or signal is set where the command itself ended."""

    reason: Reason | None
    exit_code: int | None = None
    signal: int | None = None
    #: The named step that failed, for SETUP_FAILED ("exec").
    step: str = ""
    errno: int | None = None
    #: The same in words, for people.
    detail: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a task on one node."""

    number: int
    node_id: str
    host_id: str
    claimed_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What the cluster knows of one task."""

    id: str
    spec: TaskSpec
    status: Status
    #: Number of the newest attempt; 0 before the first.
    attempt: int = 0
    attempts_used: int = 0
    #: The newest attempts, oldest first; a bounded history.
    attempts: tuple[Attempt, ...] = ()
    cancel_requested: bool = False
    outcome: Outcome | None = None
    submitted_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def exit_code(self) -> int | None:
        return self.outcome.exit_code if self.outcome else None

    @property
    def signal(self) -> int | None:
        return self.outcome.signal if self.outcome else None

    @property
    def reason(self) -> Reason | None:
        return self.outcome.reason if self.outcome else None

    @property
    def usage(self) -> Usage | None:
        return self.outcome.usage if self.outcome else None

    @property
    def newest_attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def node_id(self) -> str | None:
        """The node of the newest attempt."""
        return self.attempts[-1].node_id if self.attempts else None

    @property
    def started_at(self) -> datetime | None:
        """When the newest attempt started; while it runs, when it was claimed, which is a moment before."""
        if not self.attempts:
            return None
        newest = self.attempts[-1]
        return newest.started_at or (newest.claimed_at if self.status is Status.RUNNING else None)

    @property
    def succeeded(self) -> bool:
        """Whether it ran to its own end and exited with 0."""
        return self.status is Status.COMPLETE and self.reason is Reason.EXITED and self.exit_code == 0


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes as an attempt wrote them, or a notice about them."""

    stream: Stream
    data: bytes
    attempt: int
    #: Words for people, without data: another attempt begins, or what cannot be had.
    notice: str = ""
    #: So many bytes of the stream were written here and are not kept: it was longer than its limit. The notice says so
    #: too, and there is no data.
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """A transition: the task after it."""

    task: Task
    #: The cluster's revision of it; watch again from it plus one.
    revision: int
    #: The task was deleted because it had ended long ago; only its id is set.
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class CancelResult:
    #: The full id, or what was given where nothing was found.
    id: str
    step: CancelStep
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node and how it is doing."""

    id: str
    host_id: str
    name: str
    #: HOST:PORT, or empty where only the unix socket is served.
    address: str
    cpu: float
    memory_bytes: int
    version: str
    started_at: datetime | None
    not_enforced: tuple[str, ...]
    #: "joining", "ready", "draining", "drained", "at_risk" (no answer from etcd, tasks frozen), "unreachable" (its
    #: lease lives, it does not answer) or "gone".
    state: str
    #: "voter", "learner" or "client" of etcd; empty where that is not known.
    role: str
    #: Reserved share of the scarcer capacity, 0 to 1.
    load: float
    running: int
    reserved_cpu: float
    reserved_memory_bytes: int
    #: The node's own clock when it answered.
    now: datetime | None
    etcd_version: str
    #: Of a host that is gone.
    last_seen: datetime | None = None
    #: What an operator should know, in words.
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemovedHost:
    """A host that may not come back."""

    host_id: str
    name: str


@dataclass(frozen=True, slots=True)
class WhyNode:
    """What one node says to a queued task."""

    node_id: str
    name: str
    #: It could hold the task if it were idle.
    fits: bool
    #: Why not now (or ever), in words; empty: it may claim it at any moment.
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Why:
    """Where a task stands, and why it does not start."""

    #: Without stdin.
    task: Task
    #: One sentence for people.
    summary: str
    #: Of a queued task: each node, and each host that is gone.
    nodes: tuple[WhyNode, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenView:
    """A join token, without its secret."""

    id: str
    created_at: datetime
    expires_at: datetime
    #: Machines that may join with it; 0: any number.
    uses: int
    #: Machines that have joined with it.
    used: int
    revoked: bool

    def state(self, now: datetime) -> str:
        """In a word: good, revoked, expired or used_up."""
        if self.revoked:
            return "revoked"
        if now >= self.expires_at:
            return "expired"
        return "used_up" if self.uses and self.used >= self.uses else "good"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A join token that was just made. `text` is secret: whoever has it may bring a machine into the cluster."""

    text: str = field(repr=False)
    view: TokenView
    #: HOST:PORT of the nodes that a newcomer may ask.
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a client elsewhere needs, in PEM form: ca.crt, client.crt and client.key, which is secret."""

    ca_certificate: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    #: HOST:PORT of the nodes that it may be used with.
    addresses: tuple[str, ...]
