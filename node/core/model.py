"""Plain values: what a task is, what it asks for, how it ended.

Immutable; made anew by `lifecycle` at every transition. `etcd/codec.py` turns them into the protobuf records of
`protos/pilfer/v1/records.proto`, field by field. Times are Unix seconds; sizes bytes; durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

#: The defaults of a spec, shared by the API, the command line and JSON (absent fields in the proto).
DEFAULT_CPU = 1.0
DEFAULT_PIDS = 1024
DEFAULT_GRACE_S = 5.0
DEFAULT_MAX_ATTEMPTS = 5

#: What a host may enforce (`isolation/spec.py`, HostReport).
ALL_LIMITS = frozenset({"cpu", "memory", "pids", "io"})

#: Attempts kept in a record; older ones are dropped, so that a record stays small.
ATTEMPTS_KEPT = 10


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


class Status(StrEnum):
    """Where a task stands; the values are the words used in keys."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    CANCELED = "canceled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
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


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a task reserves and is held to."""

    cpu: float = DEFAULT_CPU
    #: None: nothing reserved, bounded by the node's capacity.
    memory_bytes: int | None = None
    pids: int = DEFAULT_PIDS
    io_read_bytes_per_s: int | None = None
    io_write_bytes_per_s: int | None = None
    #: Of its scratch directory. None: what the node allows to each.
    scratch_bytes: int | None = None
    #: Nodes that cannot enforce the limits that it is under may not run it.
    require_limits: bool = False


DEFAULT_REQUIREMENTS = Requirements()


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What the user asked for, defaults filled in."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=_empty)
    #: None: the task's own scratch directory.
    cwd: str | None = None
    stdin: bytes = b""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=_empty)
    requirements: Requirements = DEFAULT_REQUIREMENTS
    timeout_s: float | None = None
    grace_s: float = DEFAULT_GRACE_S
    restart_on_node_loss: bool = True
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    network: Network = Network.NONE
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. Exactly one of exit_code and signal is set where the command itself ended."""

    reason: Reason
    exit_code: int | None = None
    signal: int | None = None
    #: The named step that failed, for SETUP_FAILED.
    step: str = ""
    errno: int | None = None
    #: The same in words, for people.
    detail: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    number: int
    node_id: str
    host_id: str
    claimed_at: float
    started_at: float | None = None
    finished_at: float | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """The record: the truth about one task."""

    id: str
    spec: TaskSpec
    submitted_at: float
    status: Status = Status.QUEUED
    #: Number of the newest attempt; one more with each claim.
    attempt: int = 0
    #: Claims that counted against max_attempts: all but those given back before they started.
    attempts_used: int = 0
    #: The newest ATTEMPTS_KEPT attempts, oldest first.
    attempts: tuple[Attempt, ...] = ()
    cancel_requested: bool = False
    #: Set when the task is terminal.
    outcome: Outcome | None = None
    finished_at: float | None = None

    @property
    def owner(self) -> str | None:
        """The node id that runs it; None when none does (and in a record that is not sound, `lifecycle.flaws`)."""
        return self.attempts[-1].node_id if self.status is Status.RUNNING and self.attempts else None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a node lends to tasks."""

    cpu: float
    memory_bytes: int
    #: The most that one task may keep in its scratch directory; not shared out among them. None: not known.
    scratch_bytes: int | None = None
    #: Which limits the host enforces, of ALL_LIMITS.
    limits: frozenset[str] = ALL_LIMITS


@dataclass(frozen=True, slots=True)
class Node:
    """One run of a node process, as its leased key tells it. Written once; holds no load."""

    id: str
    host_id: str
    name: str
    capacity: Capacity
    version: str
    started_at: float
    #: HOST:PORT of --listen; empty where only the unix socket is served.
    address: str = ""
    not_enforced: tuple[str, ...] = ()
    #: https://HOST:PORT that etcd has, or would have, here: for its peers and for clients on other machines.
    #: Empty: this host takes no vote (nobody else reaches it, or its etcd is too old for a cluster of several).
    etcd_peer_url: str = ""
    etcd_client_url: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the cluster, whether or not its node lives: finds its logs, and holds one node per host."""

    id: str
    name: str
    #: HOST:PORT; empty where only the unix socket was served.
    address: str
    #: The newest node of it.
    node_id: str
    version: str
    capacity: Capacity
    #: When its node began, ended in order, or was found gone.
    last_seen: float


@dataclass(frozen=True, slots=True)
class Drain:
    """The node of a host claims nothing."""

    since: float
    #: What runs there is not given back.
    let_finish: bool = False


@dataclass(frozen=True, slots=True)
class Removal:
    """A host that may not come back."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What the cluster knows of a join token; the secret is in the token alone."""

    id: str
    created_at: float
    expires_at: float
    #: 0: any number.
    uses: int = 0
    #: Hosts that joined with it: a repeated join of the same host counts once.
    used_by: tuple[str, ...] = ()
    revoked: bool = False
