"""What one node remembers of the queue: a bounded window of its oldest offers, sorted for the claim policy.

Invariants
* At most `limit` offers, always the oldest of those that were told; ids of UUIDv7 sort by submission, so this is FIFO.
* When something had to be left out, `is_truncated` says so, and nothing younger than the oldest thing left out is
  taken in: the window has no holes. Once most of it is used up, `needs_listing` asks the shell to list again.
* Offers that can never fit on this node are counted and left out: they must not fill the window.
* Offers of equal needs and terms form a `Kind`: what does not fit now is skipped as a whole, not one by one.
No I/O, no clock: the shell feeds it from a listing and a watch, in the order of revisions.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from node.core.model import Capacity, Requirements
from node.core.peers import Peers, Place, task_point
from node.core.requirements import Reservation, Terms, reservation, terms

DEFAULT_LIMIT = 10_000


@dataclass(slots=True)
class Kind:
    """Offers with the same needs on the same terms. Never empty while the view knows it."""

    needs: Reservation
    demanded: Terms
    place: Place
    #: Oldest first.
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Offer:
    """One queued task, as far as a claim needs to know it."""

    task_id: str
    requirements: Requirements
    kind: Kind
    #: When this node first saw it; seconds of the shell's monotonic clock.
    seen_at: float
    #: How long it had been queued by then.
    age_when_seen_s: float
    #: When the policy first had it before it and could have held it, had there been room; None: not yet.
    front_at: float | None = None
    #: Steps, and the place that they were computed for (a node that is alone never does).
    _steps: float = 0.0
    _steps_at: Place | None = None

    def age_s(self, now: float) -> float:
        return self.age_when_seen_s + max(0.0, now - self.seen_at)

    def steps(self) -> float:
        """How many steps this node lets others go first (`Place.steps`)."""
        place = self.kind.place
        if place.count == 1:
            return 0.0
        if self._steps_at is not place:
            self._steps_at, self._steps = place, place.steps(task_point(self.task_id))
        return self._steps


class QueueView:
    """The window. `add` and `remove` may come twice and in any order; each costs O(log limit) and a memmove."""

    def __init__(self, me: str, capacity: Capacity, *, limit: int = DEFAULT_LIMIT) -> None:
        self._me = me
        self._capacity = capacity
        self._limit = limit
        self._peers = Peers(me, {}, my_capacity=capacity)
        self._offers: dict[str, Offer] = {}
        self._kinds: dict[tuple[Reservation, Terms], Kind] = {}
        #: Ids that can never fit here; at most `limit` of them.
        self._never: set[str] = set()
        #: The oldest id that was left out for want of room; what is not older is not taken in.
        self._left_out: str | None = None

    def __len__(self) -> int:
        return len(self._offers)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._offers

    @property
    def peers(self) -> Peers:
        return self._peers

    @property
    def is_truncated(self) -> bool:
        """There were more queued tasks than the window holds."""
        return self._left_out is not None

    def is_beyond(self, task_id: str) -> bool:
        """Too young for the window as it is: `add` would leave it out."""
        return self._left_out is not None and task_id >= self._left_out

    @property
    def needs_listing(self) -> bool:
        """Most of a truncated window is used up: list the queue again and `reset`."""
        return self.is_truncated and len(self._offers) <= self._limit // 4

    @property
    def never_fitting(self) -> int:
        """How many queued tasks are known that this node can never hold; exact up to the window's limit."""
        return len(self._never)

    def get(self, task_id: str) -> Offer:
        """The offer; KeyError when it is not in the window."""
        return self._offers[task_id]

    def kinds(self) -> Iterable[Kind]:
        return self._kinds.values()

    def oldest_first(self, kinds: Iterable[Kind]) -> Iterator[Offer]:
        """The offers of these kinds in the order of the queue, lazily. The view must not change meanwhile."""
        return (self._offers[task_id] for task_id in heapq.merge(*(kind.ids for kind in kinds)))

    def set_nodes(self, nodes: Mapping[str, Capacity]) -> None:
        """The live nodes, as their keys tell: node id -> capacity."""
        self._peers = Peers(self._me, nodes, my_capacity=self._capacity)
        for kind in self._kinds.values():
            kind.place = self._peers.place(kind.needs, kind.demanded) or kind.place

    def add(self, task_id: str, requirements: Requirements, *, now: float, age_s: float = 0.0) -> None:
        """A task is queued. age_s: how long it has been, as far as known (by the time in its UUIDv7).

        One that is here already stays as it is.
        """
        if task_id in self._offers or self.is_beyond(task_id):
            return
        kind = self._find_kind(reservation(requirements), terms(requirements))
        if kind is None:
            if len(self._never) < self._limit:
                self._never.add(task_id)
            return
        self._insert(Offer(task_id, requirements, kind, seen_at=now, age_when_seen_s=max(0.0, age_s)))
        if len(self._offers) > self._limit:
            youngest = max(kind.ids[-1] for kind in self._kinds.values())
            self.remove(youngest)
            self._left_out = youngest

    def remove(self, task_id: str) -> Offer | None:
        """It is queued no longer, or this node is claiming it. Gives the offer that was here."""
        self._never.discard(task_id)
        offer = self._offers.pop(task_id, None)
        if offer is None:
            return None
        ids = offer.kind.ids
        del ids[bisect_left(ids, task_id)]
        if not ids:
            del self._kinds[offer.kind.needs, offer.kind.demanded]
        return offer

    def reset(
        self, queued: Iterable[tuple[str, Requirements, float]], *, now: float, beyond: str | None = None
    ) -> None:
        """A new listing of the queue: (task id, requirements, age in seconds). What was known keeps its times. beyond:
        the last id that was listed, where the listing ended before the queue did.

        Any length; a listing in the order of keys is read past the window at almost no cost.
        """
        known = self._offers
        self._offers, self._kinds, self._never, self._left_out = {}, {}, set(), None
        if beyond is not None:
            self._left_out = beyond + " "  # after that id, before every other
        for task_id, requirements, age_s in queued:
            self.add(task_id, requirements, now=now, age_s=age_s)
            old, new = known.get(task_id), self._offers.get(task_id)
            if old is not None and new is not None:
                new.seen_at, new.age_when_seen_s, new.front_at = old.seen_at, old.age_when_seen_s, old.front_at

    def _find_kind(self, needs: Reservation, demanded: Terms) -> Kind | None:
        """The kind, made if there is none yet; None: it can never fit here."""
        kind = self._kinds.get((needs, demanded))
        if kind is None and (place := self._peers.place(needs, demanded)) is not None:
            kind = Kind(needs, demanded, place)
        return kind

    def _insert(self, offer: Offer) -> None:
        ids = offer.kind.ids
        self._kinds[offer.kind.needs, offer.kind.demanded] = offer.kind
        self._offers[offer.task_id] = offer
        if not ids or ids[-1] < offer.task_id:
            ids.append(offer.task_id)  # the usual case
        else:
            insort(ids, offer.task_id)
