"""What the protocol model is made of: one task, a few hosts, etcd, and messages on their way.

One task is enough: transactions on different tasks touch different keys and meet only in the node key, which is here;
what tasks share (capacity, batches) is not modelled.

    etcd      record, index keys, one leased node key per incarnation. A transaction is a message: sent, applied (guards
              checked, all writes at once), answered. Its answer or the request can be lost, or the sender can give up
              while the request is still on its way and is applied later.
    time      ticks. A lease lives at least TTL ticks after a ping arrived; it may live longer (late lessor, leader
              change). The spawner's deadline is send time + TTL - MARGIN. A healthy node pings in time; a working
              spawner acts before the tick that follows its deadline.
    faults    kill of a node, of a whole host, of a spawner; SIGSTOP of a node, of a spawner; partition; unknown
              outcome; a watch event that comes before the node knows of its task.
    client    submits with retries, cancels at any moment with retries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from etcd.transitions import Guard, Name

TTL, MARGIN = 3, 1

QUEUED, RUNNING, COMPLETE, CANCELED, FAILED = "queued", "running", "complete", "canceled", "failed"
TERMINAL = (COMPLETE, CANCELED, FAILED)

#: (host, incarnation)
NodeId: TypeAlias = tuple[int, int]
#: (status,), or (running, node)
IndexKey: TypeAlias = tuple[str] | tuple[str, NodeId | None]


class Record(NamedTuple):
    """/task/UUID"""

    status: str
    attempt: int
    node: NodeId | None
    cancel: bool
    #: The how manieth task of this id; retention forgets one, and the id may come again.
    life: int = 0


class Memory(NamedTuple):
    """What a node process knows of the task."""

    #: idle, claim (sent), claim? (unknown), held, run, done (to be written), end (sent)
    phase: str
    attempt: int
    outcome: str


class Box(NamedTuple):
    """The task's process."""

    attempt: int
    frozen: bool


class Host(NamedTuple):
    #: up, stop, dead, boot (no node key yet)
    proc: str
    incarnation: int
    #: It reaches etcd.
    link: bool
    #: up, stop, dead
    spawner: str
    #: Ticks to the fence deadline, as the spawner knows it.
    deadline: int
    #: Age of a ping whose slow answer is on its way.
    ping: int | None
    memory: Memory
    box: Box | None
    #: The watch event "your running key was touched" is not read yet.
    event: bool


class Message(NamedTuple):
    #: submit, claim, end, cancel, requeue, forget
    kind: str
    #: A node, "client", or None where nobody waits.
    by: NodeId | str | None
    #: The record as read when the transaction was composed.
    seen: Record | None
    #: Of an end: complete, canceled, failed, "giveback" or "fenced".
    outcome: str
    #: Somebody waits for the answer.
    wait: bool
    #: None: not applied yet.
    answer: tuple[str, int] | None


class State(NamedTuple):
    record: Record | None
    keys: frozenset[IndexKey]
    #: (node, ticks left), sorted: also the node keys.
    leases: tuple[tuple[NodeId, int], ...]
    hosts: tuple[Host, ...]
    messages: frozenset[Message]
    #: The client's submit: new, wait, ack.
    submit: str
    #: The client's cancel: no, wait, ack.
    cancel: str
    #: Witness: the task was created once.
    made: bool
    #: Witness: the newest attempt that was started.
    ran: int
    #: Fault budget left, ordered as FAULTS.
    left: tuple[int, ...]
    #: Of the next submit.
    life: int = 0


FAULTS = ("crash", "power", "pause", "part", "unknown", "drain", "slow", "spwkill", "spwstop", "cancel")
IDLE = Memory("idle", 0, "")


@dataclass(frozen=True)
class Rules:
    """The design's rules; each can be switched off, to see what it is for."""

    #: Guards of `guards.py` that are not checked.
    dropped: frozenset[tuple[Name, Guard]] = frozenset()
    requeue_cancel: bool = True  # requeue and give back: to canceled if that was requested
    requeue_restart: bool = True  # requeue and give back: to queued only if it may be restarted
    cancel_two_step: bool = True  # a running task is only marked; its node writes canceled
    unknown: str = "retry"  # retry: send the same guarded transaction until it is answered; read; failed; applied
    own_sweep: bool = True  # a node compares its own running keys with what it runs: adopts, cancels
    start_deadline: bool = True  # the spawner starts nothing after its deadline
    fence_report: bool = True  # a run that the fence killed is never reported as ended by itself
    fence_late: int = 0  # ticks added to the deadline
    fence_from_answer: bool = False  # deadline counted from the answer of the ping instead of its sending
    backup_fence: bool = True  # PID 1 of each sandbox knows the deadline too (covers a stopped spawner)
    revoke_after_kill: bool = True  # restart: old lease revoked only when the old processes are gone
    giveback_after_kill: bool = True  # drain: the process is gone before its task is given back
    new_id: bool = True  # after losing its lease a node comes back under a new id
    restart: bool = True
    max_attempts: int = 4
    etcd_early: bool = False  # environment: a stale leader revokes a living lease (older etcd does)
    cloned: bool = False  # environment: host 1 is a copy of host 0 and revokes "its" old lease
    retention: bool = False  # finished records are deleted while requests of their clients may be on their way


class Scenario(NamedTuple):
    #: fault -> how many of it may happen
    budget: Mapping[str, int]
    #: The submit is part of it; otherwise the task is queued at the start.
    with_submit: bool = False
    #: The task never ends by itself.
    endless: bool = False
    #: How often the id is submitted; each but the last is forgotten by every node's retention.
    lives: int = 1


#: Together a few seconds.
SCENARIOS = {
    "submit": Scenario({"unknown": 2}, with_submit=True),
    "crash": Scenario({"crash": 1}),
    "crash, unknown": Scenario({"crash": 1, "unknown": 1}),
    "pause": Scenario({"pause": 1}),
    "partition": Scenario({"part": 1}),
    "partition, unknown": Scenario({"part": 1, "unknown": 1}),
    "slow ping, partition": Scenario({"slow": 1, "part": 1}),
    "spawner": Scenario({"spwkill": 1, "spwstop": 1}),
    "cancel, unknown": Scenario({"cancel": 1, "unknown": 1}),
    "endless, cancel": Scenario({"cancel": 1, "unknown": 1}, endless=True),
    "drain, unknown": Scenario({"drain": 1, "unknown": 2}),
    "drain, cancel": Scenario({"drain": 1, "cancel": 1}),
    "retention": Scenario({}, with_submit=True, lives=2),
}
#: Together minutes: `python -m tests.model --deep`.
DEEP = {
    "crash twice": Scenario({"crash": 2}),
    "crash, cancel": Scenario({"crash": 1, "cancel": 1}),
    "pause, cancel": Scenario({"pause": 1, "cancel": 1}),
    "pause, partition": Scenario({"pause": 1, "part": 1}),
    "spawner stop, partition": Scenario({"spwstop": 1, "part": 1}),
    "power, pause": Scenario({"power": 1, "pause": 1}),
    "drain, cancel, unknown": Scenario({"drain": 1, "cancel": 1, "unknown": 1}),
    "crash, partition, unknown": Scenario({"crash": 1, "part": 1, "unknown": 1}),
    "endless, cancel, partition": Scenario({"cancel": 1, "part": 1, "unknown": 1}, endless=True),
    "spawner, pause": Scenario({"spwkill": 1, "spwstop": 1, "pause": 1}),
    "submit, crash, cancel": Scenario({"crash": 1, "unknown": 1, "cancel": 1}, with_submit=True),
}
ALL = SCENARIOS | DEEP


def initial(scenario: Scenario, hosts: int) -> State:
    host = Host("up", 0, True, "up", TTL - MARGIN, None, IDLE, None, False)
    late = scenario.with_submit
    return State(
        record=None if late else Record(QUEUED, 0, None, False),
        keys=frozenset() if late else frozenset([(QUEUED,)]),
        leases=tuple(((number, 0), TTL) for number in range(hosts)),
        hosts=(host,) * hosts,
        messages=frozenset(),
        submit="new" if late else "ack",
        cancel="no",
        made=not late,
        ran=0,
        left=tuple(scenario.budget.get(fault, 0) for fault in FAULTS),
    )


class Violation(Exception):  # noqa: N818  (named for what it is: an invariant of the design was broken)
    """The number before the colon is that of the invariant in the design."""

    def __init__(self, text: str, label: str = "") -> None:
        super().__init__(text)
        self.label = label


def check(condition: bool, text: str, label: str = "") -> None:
    if not condition:
        raise Violation(text, label)
