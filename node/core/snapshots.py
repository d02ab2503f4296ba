"""When a node takes a snapshot of the cluster's data, and which it keeps. Pure.

Every node keeps some, so that the data outlive the disks of all voters together. What the voters send for it stays
bounded however many nodes there are: beyond SHARERS nodes each takes its own more seldom. Nodes that began together
must not ask together: each waits for a part of the time between that is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

#: Nodes that may each take one in every interval.
SHARERS = 10
KEPT = 3
#: Left free on the disk beside a new one: a snapshot is a precaution, and must not be what fills the disk.
RESERVE_BYTES = 1 << 30


def between_s(interval_s: float, nodes: int) -> float:
    """Seconds between two snapshots of one node."""
    return interval_s * max(1.0, nodes / SHARERS)


def due_in_s(newest_age_s: float | None, up_s: float, host_id: str, *, interval_s: float, nodes: int) -> float:
    """Until the next one. newest_age_s: of the newest that is there; None: there is none. up_s: how long the node has
    been able to take one.

    A first one is taken within a tenth of the time: data are worth most where there is no other copy.
    """
    whole_s = between_s(interval_s, nodes)
    share = int.from_bytes(blake2b(host_id.encode(), digest_size=4).digest(), "big") / 2**32
    if newest_age_s is None:
        return max(0.0, 0.1 * whole_s * share - up_s)
    return max(0.0, whole_s * (0.9 + 0.2 * share) - max(0.0, newest_age_s))


def has_room(free_bytes: int, newest_bytes: int) -> bool:
    """Whether a new one may be written. newest_bytes: of the newest that is there, or 0; the next may be larger."""
    return free_bytes >= 2 * newest_bytes + RESERVE_BYTES


def to_drop(names: Sequence[str], newest: str) -> list[str]:
    """Of the snapshots that are there, by names that sort by time: those that go. newest: the one just taken; what
    claims to be later was taken while the clock was wrong, and is older than it says."""
    return sorted(names, key=lambda name: (name <= newest, name))[:-KEPT]
