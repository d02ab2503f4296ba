"""What a sandbox is to be: plain values, no mechanism.

The node fills a `SandboxSpec` in; `isolation/client.py` carries it to the spawner, which turns it and what the host
can do into an ordered plan of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Where a sandbox sees its own scratch directory: writable, empty at the start, removed at the end.
SCRATCH_DIR = "/home/task"


@dataclass(frozen=True, slots=True)
class Limits:
    """In force before the first instruction. None: not limited below the node's own bound."""

    cpu: float
    memory_bytes: int | None
    pids: int
    io_read_bytes_per_s: int | None = None
    io_write_bytes_per_s: int | None = None
    #: What the scratch directory may hold; None: as much as the spawner's configuration allows to each.
    scratch_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class BindMount:
    """A host path in the sandbox's view."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    #: Names the sandbox in requests, reports and cgroups: [A-Za-z0-9.-], at most 80 characters.
    id: str
    #: argv[0] is a path, or a name looked up in PATH of `env` inside the sandbox.
    argv: tuple[str, ...]
    #: The whole environment; nothing is inherited.
    env: Mapping[str, str]
    limits: Limits
    #: None: the sandbox's own scratch directory.
    cwd: str | None = None
    mounts: tuple[BindMount, ...] = ()
    #: True: the host's network namespace; False: loopback alone.
    host_network: bool = False
    #: Wall time until the spawner sends SIGTERM, then SIGKILL after grace_s; None: no limit.
    timeout_s: float | None = None
    #: From SIGTERM to SIGKILL, for the timeout.
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """From the cgroup, not from rusage: children that nobody waited for count."""

    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Started:
    id: str
    #: Host pid of the sandbox's PID 1.
    pid: int
    #: Unix seconds.
    started_at: float


@dataclass(frozen=True, slots=True)
class SetupFailed:
    """A step before or at exec failed; the command never ran, and nothing of the sandbox is left."""

    id: str
    step: str
    errno: int
    #: The path or value the step was about; may be empty.
    subject: str
    #: In words: what happened, what it means and what to do.
    detail: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The command has ended and every process of the sandbox is gone. Exactly one of exit_code and signal is set."""

    id: str
    exit_code: int | None
    signal: int | None
    #: Something of the sandbox was killed for want of memory.
    out_of_memory: bool
    #: Why the spawner ended it: "" (it ended by itself), "timeout", "stop" (asked for by the node), "fence" or
    #: "scratch" (its scratch directory held more than it may).
    #: A command that ended before the signal was sent has ended by itself.
    ended_by: str
    started_at: float
    finished_at: float
    usage: SandboxUsage = field(default_factory=SandboxUsage)
    #: In words, where there is more to say: which limit it was over, and what was found.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HostReport:
    """What the spawner found at its start."""

    cgroup_version: int
    #: What this host cannot enforce, in words, empty when isolation is whole.
    not_enforced: tuple[str, ...]
    #: The spawner's own pid.
    pid: int
    #: Which limits are in force here, of "cpu", "memory", "pids" and "io".
    limits: tuple[str, ...] = ()
