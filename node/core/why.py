"""Why a task does not start, node by node, and in one sentence.

Pure: the task's record and what each node told of itself in, words out. It explains a moment: between the look and
the reading of it, a node may have claimed the task.

What may keep a node from a queued task, in the order in which it is told:

    for good    its capacity is too small; it cannot enforce a limit that is demanded; it does not allow a mount or
                the host's network
    for now     it is gone, unreachable, drained, at risk, joining or stopping; what is free is too little;
                what is free is held for an older, bigger task
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from node.core.model import Capacity, Outcome, Reason, Requirements, Status, Task, TaskSpec
from node.core.requirements import Reservation, lent, reservation, terms_not_met, why_not
from node.core.validate import mounts_not_allowed, network_not_allowed

_MILLI = 1000
_GIB = 1 << 30
_MIB = 1 << 20
#: Nodes named in the sentence; the others are counted.
_NAMED_MAX = 3
#: State of a node -> why it does not claim now.
_NOT_CLAIMING = {
    "joining": "has no lease yet",
    "draining": "is draining or stopping: it claims nothing more",
    "drained": "is drained: it claims nothing until node drain --undo",
    "at_risk": "gets no answer from etcd: it claims nothing until it does",
    "unreachable": "does not answer; its lease has not run out yet",
    "gone": "is gone",
}


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a node lets a task ask for beside CPU and memory."""

    mount_prefixes: tuple[str, ...] = ()
    #: (path, is read-only)
    shares: tuple[tuple[str, bool], ...] = ()
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """An older task that waits for room, for which free capacity is held."""

    task_id: str
    #: None: its record could not be had.
    requirements: Requirements | None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of one node at this moment."""

    node_id: str
    name: str
    #: As in `NodeView`: "ready" claims.
    state: str
    capacity: Capacity
    #: None: it did not answer.
    reserved: Reservation | None
    #: None: it did not answer.
    allowed: Allowed | None
    held: Held | None = None
    #: Why it claims nothing although it is ready, in words.
    pause: str = ""


class Kind(Enum):
    """What sort of obstacle it is."""

    TOO_SMALL = "too small"
    TERMS = "terms"
    NOT_ALLOWED = "not allowed"
    NOT_CLAIMING = "not claiming"
    NO_ROOM = "no room"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class Obstacle:
    kind: Kind
    words: str


@dataclass(frozen=True, slots=True)
class OfNode:
    node_id: str
    name: str
    #: As in `NodeFacts`.
    state: str
    #: Why not now, or ever; empty: it may claim the task at any moment.
    obstacles: tuple[Obstacle, ...]

    @property
    def fits(self) -> bool:
        """It could hold the task, and would, if it were idle and ready."""
        return not self._has(Kind.TOO_SMALL, Kind.TERMS, Kind.NOT_ALLOWED)

    @property
    def is_large_enough(self) -> bool:
        return not self._has(Kind.TOO_SMALL)

    def _has(self, *kinds: Kind) -> bool:
        return any(obstacle.kind in kinds for obstacle in self.obstacles)


@dataclass(frozen=True, slots=True)
class Why:
    #: One sentence, without its full stop.
    summary: str
    #: Of a queued task: each node.
    nodes: tuple[OfNode, ...] = ()


def explain(task: Task, nodes: Sequence[NodeFacts]) -> Why:
    """nodes: all that live, and hosts that are gone, with what they lent when they were last seen."""
    if task.status is Status.QUEUED:
        of_nodes = tuple(_of_node(task, node) for node in nodes)
        return Why(_queued(task.spec.requirements, nodes, of_nodes) + _last_try(task), of_nodes)
    if task.status is Status.RUNNING:
        return Why(_running(task, nodes))
    return Why(_ended(task))


# -- one node -------------------------------------------------------------------------------------------------------


def _of_node(task: Task, node: NodeFacts) -> OfNode:
    for_good = _for_good(task.spec, node)
    for_now = []
    if node.state != "ready":
        for_now.append(Obstacle(Kind.NOT_CLAIMING, _not_claiming(node.state)))
    elif node.pause:
        for_now.append(Obstacle(Kind.NOT_CLAIMING, node.pause))
    if not for_good and node.reserved is not None:
        for_now += _no_room(task, node, node.reserved)
    return OfNode(node.node_id, node.name, node.state, (*for_good, *for_now))


def _for_good(spec: TaskSpec, node: NodeFacts) -> list[Obstacle]:
    found = [Obstacle(Kind.TOO_SMALL, words) for words in why_not(spec.requirements, node.capacity)]
    found += [Obstacle(Kind.TERMS, words) for words in terms_not_met(spec.requirements, node.capacity)]
    if node.allowed is not None:
        allowed = node.allowed
        refused = mounts_not_allowed(spec.mounts, allowed.mount_prefixes, allowed.shares)
        refused += network_not_allowed(spec.network, allow_host_network=allowed.host_network)
        found += [Obstacle(Kind.NOT_ALLOWED, f"{violation.field}: {violation.message}") for violation in refused]
    return found


def _not_claiming(state: str) -> str:
    return _NOT_CLAIMING.get(state, f"is {state}")


def _no_room(task: Task, node: NodeFacts, reserved: Reservation) -> list[Obstacle]:
    needs = reservation(task.spec.requirements)
    free = lent(node.capacity) - reserved
    if not free.holds(needs):
        words = f"has no room now: needs {_amount(needs, needs)}, {_amount(free, needs)} free"
        return [Obstacle(Kind.NO_ROOM, words)]
    held = node.held
    if held is None or held.task_id >= task.id:
        return []
    if held.requirements is None or not free.left_after_holding(reservation(held.requirements)).holds(needs):
        words = f"holds what is free for an older task that needs more: {held.task_id}"
        return [Obstacle(Kind.HELD, words)]
    return []


def _amount(of: Reservation, asked: Reservation) -> str:
    """CPUs, and memory where it was asked for."""
    words = f"{_cpus(max(0, of.milli_cpu))}"
    return f"{words} and {_size(max(0, of.memory_bytes))}" if asked.memory_bytes else words


def _cpus(milli_cpu: int) -> str:
    return f"{milli_cpu / _MILLI:g} CPU{'' if milli_cpu == _MILLI else 's'}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.3g} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.3g} MiB"


# -- all of them, in a sentence -------------------------------------------------------------------------------------


def _queued(requirements: Requirements, nodes: Sequence[NodeFacts], of_nodes: Sequence[OfNode]) -> str:
    living = [of for of in of_nodes if of.state != "gone"]
    gone = [of.name for of in of_nodes if of.state == "gone" and of.fits]
    missed = f"; {_names(gone)} could hold it, and {'is' if len(gone) == 1 else 'are'} gone" if gone else ""
    if not living:
        return f"waits: no node is alive{missed}"
    large = [of for of in living if of.is_large_enough]
    if not large:
        too_big = _too_big(requirements, [node.capacity for node in nodes if node.state != "gone"])
        return f"fits nowhere: {too_big}{missed}"
    fitting = [of for of in large if of.fits]
    if not fitting:
        refusal = next(o for o in large[0].obstacles if o.kind in (Kind.TERMS, Kind.NOT_ALLOWED))
        return f"may run nowhere: on {large[0].name}, {refusal.words}{missed}"
    return _waiting(fitting)


def _waiting(fitting: Sequence[OfNode]) -> str:
    """Of a task that living nodes could hold."""
    now = [of.name for of in fitting if not of.obstacles]
    if now:
        return f"may start at any moment: {_names(now)} {'has' if len(now) == 1 else 'have'} room for it"
    ready = [of for of in fitting if of.state == "ready"]
    if not ready:
        states = [f"{of.name} is {of.state.replace('_', ' ')}" for of in fitting[:_NAMED_MAX]]
        return f"waits: no node that could hold it claims now ({', '.join(states)})"
    names = _names([of.name for of in ready])
    if all(obstacle.kind is Kind.NOT_CLAIMING for of in ready for obstacle in of.obstacles):
        return f"waits a moment: on {ready[0].name}, {ready[0].obstacles[0].words}"
    if all(obstacle.kind is Kind.HELD for of in ready for obstacle in of.obstacles):
        return f"waits behind an older task that needs more, for which {names} saves up room"
    return f"waits for room: {names} could hold it, once what runs there leaves enough"


def _too_big(requirements: Requirements, capacities: Sequence[Capacity]) -> str:
    needs = reservation(requirements)
    milli_cpu_max = max(lent(capacity).milli_cpu for capacity in capacities)
    memory_max = max(capacity.memory_bytes for capacity in capacities)
    parts = []
    if needs.milli_cpu > milli_cpu_max:
        parts.append(f"needs {_cpus(needs.milli_cpu)}, the largest node lends {milli_cpu_max / _MILLI:g}")
    if needs.memory_bytes > memory_max:
        parts.append(f"needs {_size(needs.memory_bytes)} of memory, the largest node lends {_size(memory_max)}")
    return "; ".join(parts) or f"no node lends {_amount(needs, needs)} together"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_MAX])
    return f"{shown} and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else shown


def _last_try(task: Task) -> str:
    """What became of the newest attempt, where that is worth knowing."""
    if not task.attempts or task.attempts[-1].outcome is None:
        return ""
    newest, outcome = task.attempts[-1], task.attempts[-1].outcome
    return f"; attempt {newest.number} {_how(outcome)}"


def _running(task: Task, nodes: Sequence[NodeFacts]) -> str:
    owner = next((node for node in nodes if node.node_id == task.owner), None)
    asked = "; its cancel is requested" if task.cancel_requested else ""
    if owner is None or owner.state == "gone":
        return f"is requeued in a moment: its node {task.owner} is gone (attempt {task.attempt}){asked}"
    odd = "" if owner.state in ("ready", "draining", "drained") else f", which {_not_claiming(owner.state)}"
    return f"runs on {owner.name} (attempt {task.attempt}){odd}{asked}"


def _ended(task: Task) -> str:
    how = _how(task.outcome) if task.outcome is not None else ""
    return f"is {task.status.value}: {how}" if how else f"is {task.status.value}"


def _how(outcome: Outcome) -> str:
    words = {
        Reason.EXITED: f"exited with {outcome.exit_code}",
        Reason.SIGNALED: f"was killed by signal {outcome.signal}",
        Reason.TIMED_OUT: "ran out of its time",
        Reason.OUT_OF_MEMORY: "ran out of its memory",
        Reason.OUT_OF_SCRATCH: "filled its scratch directory",
        Reason.CANCELED: "was canceled",
        Reason.SETUP_FAILED: "could not be set up",
        Reason.GIVEN_BACK: "was given back by its node",
        Reason.NODE_LOST: "was lost with its node",
        Reason.FENCED: "was ended because its node lost the cluster",
    }[outcome.reason]
    return f"{words} ({outcome.detail})" if outcome.detail else words
