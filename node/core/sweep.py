"""Which orphans this node requeues now: running tasks of nodes whose key is gone.

Theory: no leader. Every node sees the same keys and puts the live nodes into the order of a hash of the dead node's
id: the first requeues at once, the second one delay later, the third and fourth after two delays, and so on
(floor(log2(1 + rank)) delays), in case those before it are dead too or have not noticed. Two that do it at the same
time are harmless: each requeue is guarded by the absence of the node's key and by the record's revision.

Nodes and running keys must come from one revision. From two, a node that registered and claimed in between would look
like an orphan's owner (the guard would refuse the requeue, but the sweep would be for nothing).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

#: A node's requeue of a thousand tasks, and the news of it, take less.
DEFAULT_DELAY_S = 2.0


@dataclass(frozen=True, slots=True)
class Orphan:
    node_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class Sweep:
    #: To be requeued now, in the order of their keys.
    requeue: tuple[Orphan, ...] = ()
    #: Seconds until this node's turn comes for others, if they are still there then; None: there are none.
    look_again_after_s: float | None = None
    #: Nodes that are gone and still have running keys. Keep since when each is known, for the next sweep.
    gone: frozenset[str] = frozenset()


def sweep_order(gone_node_id: str, live: Iterable[str]) -> list[str]:
    """The live nodes in the order in which they look after this dead one (rendezvous hashing)."""
    return sorted(set(live), key=lambda node_id: (_weight(gone_node_id, node_id), node_id))


def turn_after_s(gone_node_id: str, live: Iterable[str], me: str, *, delay_s: float = DEFAULT_DELAY_S) -> float:
    """Seconds from the news of a node's death until this node (which is among the living) looks after it."""
    rank = sweep_order(gone_node_id, live).index(me)
    return delay_s * ((1 + rank).bit_length() - 1)


def is_tick_mine(live: Iterable[str], me: str) -> bool:
    """Whether this node looks for orphans that nobody heard of: one node and a backup do it, since it lists every
    running key."""
    return me in sweep_order("tick", live)[:2]


def plan_sweep(
    live: Iterable[str],
    running: Iterable[tuple[str, str]],
    me: str,
    *,
    known_gone_for_s: Mapping[str, float],
    delay_s: float = DEFAULT_DELAY_S,
) -> Sweep:
    """Whose turn it is.

    live: ids of the node keys; running: (node id, task id) of all running keys at the same revision;
    known_gone_for_s: for how long this node has known that each is gone (absent: it has just learned of it).
    A node whose own key is not there decides nothing: it is fenced.
    """
    alive = set(live)
    orphans: dict[str, list[str]] = {}
    for node_id, task_id in running:
        if node_id not in alive:
            orphans.setdefault(node_id, []).append(task_id)
    if me not in alive:
        return Sweep(gone=frozenset(orphans))
    requeue: list[Orphan] = []
    next_turn_s: float | None = None
    for node_id in sorted(orphans):
        left_s = turn_after_s(node_id, alive, me, delay_s=delay_s) - known_gone_for_s.get(node_id, 0.0)
        if left_s <= 0:
            requeue += [Orphan(node_id, task_id) for task_id in sorted(orphans[node_id])]
        elif next_turn_s is None or left_s < next_turn_s:
            next_turn_s = left_s
    return Sweep(tuple(requeue), next_turn_s, frozenset(orphans))


def _weight(gone_node_id: str, node_id: str) -> bytes:
    return blake2b(f"{gone_node_id} {node_id}".encode(), digest_size=8).digest()
