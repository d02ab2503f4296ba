"""Who goes first: the order in which nodes may claim one task, computed by each node alone.

Theory: all live nodes that could hold tasks of one kind lie on a circle, in the order of their ids, each with a
stretch as long as its CPU capacity. A hash of the task id throws the task onto the circle. The node whose stretch it
hits has rank 0 and claims at once; the others follow with their distance, clockwise or counter-clockwise by another
bit of the hash, so that a dead node's share is spread over both neighbours. While two nodes agree on who is alive,
exactly one of them has rank 0, and a node twice as big has it twice as often; while they disagree, a guard in etcd
decides, and a claim is lost at worst. A rank costs O(1) per task.

The design's draft gave each node an independent hash of (task, node) and called u x n its rank. That has one node of
rank 0 on average only: none for 37 % of the tasks, two or more for 26 % (Poisson), so that every step races.
`tests/unit/test_claim_cluster.py` plays both against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from node.core.model import Capacity
from node.core.requirements import NO_TERMS, Reservation, Terms, lent

#: Kinds whose places are remembered; beyond, all are forgotten and computed anew.
_PLACES_KEPT = 4096
_POINTS = 1 << 32


def task_point(task_id: str) -> int:
    """Where a task lies on every circle: 32 bits of place, and one more for the direction (the lowest)."""
    return int.from_bytes(blake2b(task_id.encode(), digest_size=8).digest(), "big") & ((_POINTS << 1) - 1)


@dataclass(frozen=True, slots=True)
class Place:
    """My stretch of the circle of the live nodes that could hold tasks of one kind."""

    #: Nodes on the circle, I among them.
    count: int
    #: Where my stretch begins, its length and the length of the whole, in thousandths of a CPU.
    start: int
    weight: int
    total: int

    def rank(self, point: int) -> int:
        """0: it is mine to claim first. Otherwise about how many nodes come before me; less than count."""
        at = (point >> 1) * self.total // _POINTS
        ahead = self.start - at
        if -self.weight < ahead <= 0:
            return 0
        distance = (ahead if point & 1 else at - self.start - self.weight) % self.total
        return min(self.count - 1, 1 + distance * self.count // self.total)

    def steps(self, point: int) -> float:
        """log2(1 + rank): rank 1 waits one step, rank 2 a step and a half, a thousand nodes are through in ten.

        Not rounded: where the node of rank 0 is full, those of ranks 1 and 2 would claim at the same moment, and one
        of them in vain.
        """
        return math.log2(1 + self.rank(point))


class Peers:
    """The live nodes as this node sees them, itself always among them. Immutable."""

    def __init__(self, me: str, nodes: Mapping[str, Capacity], *, my_capacity: Capacity) -> None:
        """nodes: node id -> capacity, from the keys below /node/. What they say of me does not count."""
        self.me = me
        known = {**nodes, me: my_capacity}
        self._nodes = [(node_id, known[node_id], lent(known[node_id])) for node_id in sorted(known)]
        self._places: dict[tuple[Reservation, Terms], Place | None] = {}

    @property
    def count(self) -> int:
        return len(self._nodes)

    def place(self, needs: Reservation, demanded: Terms = NO_TERMS) -> Place | None:
        """My place among those that could hold it; None: I could never hold it."""
        kind = (needs, demanded)
        if kind not in self._places:
            if len(self._places) >= _PLACES_KEPT:
                self._places.clear()
            self._places[kind] = self._find_place(needs, demanded)
        return self._places[kind]

    def _find_place(self, needs: Reservation, demanded: Terms) -> Place | None:
        count = total = start = weight = 0
        for node_id, capacity, whole in self._nodes:
            if not whole.holds(needs) or not demanded.are_met_by(capacity):
                continue
            # A stretch is never empty, or a node would have rank 0 for nothing.
            length = max(1, whole.milli_cpu)
            if node_id == self.me:
                start, weight = total, length
            total += length
            count += 1
        return Place(count, start, weight, total) if weight else None
