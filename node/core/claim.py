"""Which queued tasks this node claims now, and when it looks again: work stealing without a scheduler.

A pure policy over the `QueueView`; what it decides wrongly costs a lost claim, never correctness (the guards decide).

Theory
* **Never more than fits.** What is claimed to be started fits into the free capacity together, and is no more than the
  measured rate starts within about 100 ms.
* **Ahead.** A claim costs a round trip in which the capacity that it is for lies idle. So under a backlog a node also
  claims what it will start once others have ended: without a reservation, in the order of the queue, and no more than
  what the reservations that came free lately predict for the next 100 ms, so that a claimed task never waits behind a
  slow one while a peer idles. Nothing is claimed ahead where the queue is short (a peer may be idle), where nothing
  ended lately, past an older task that this node would pass over so (one that the end of the smallest makes no room
  for), or while capacity is held. What is claimed ahead all the same and finds no room is given back by the runner.
* **Who goes first.** For each task the live nodes that could hold it have ranks (`peers.py`); one has rank 0 and
  claims at once, the others wait step x log2(1 + rank) from when they saw it. A step outlasts a claim and the
  news of it: 20 ms when the queue trickles, 100 ms under a backlog, more where etcd is slow. A node that is alone
  never waits.
* **Load.** The wait grows with the node's load, so that a busy one lets idle ones go first, and shrinks with the task's
  age.
* **Backlog.** There, all waits are over, and everybody could race for the oldest tasks. So a node looks at a horizon of
  the oldest offers and takes those for which it has the lowest rank first; every second that one has been passed over
  lowers its rank by a step, so none is passed over for long.
* **Big tasks.** A task that fits here but not now makes room for itself once it is old: the node holds free capacity
  for the oldest such one instead of filling up with younger ones; the node of rank 0 first, others later. So that an
  endless task beside it does not idle the node for ever, it holds for two thirds of the time only, in phases that grow
  with the task's age: any finite task is outlasted by some phase.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from node.core.queue_view import Kind, Offer, QueueView
from node.core.requirements import Reservation


@dataclass(frozen=True, slots=True)
class ClaimSettings:
    """The policy's numbers. The steps are measured ones (the design, section 3)."""

    trickle_step_s: float = 0.020
    backlog_step_s: float = 0.100
    #: A step is at least so many round trips of a claim: its own, and the event's way to the others.
    round_trips_per_step: float = 3.0
    #: More queued tasks than this for each live node are a backlog.
    backlog_tasks_per_node: int = 16
    #: Steps that a fully loaded node lets pass, on top of its rank's; fewer below, and none below this load. Not 2: a
    #: node at 3 of its 4 CPUs would wait just as long as an idle one of rank 1, and race it.
    load_steps: float = 2.5
    busy_from_load: float = 0.5
    #: A task of this age waits for no rank.
    patience_s: float = 30.0
    #: Being passed over for so long lowers a task's rank by a step.
    passed_over_s: float = 1.0
    claim_ahead_s: float = 0.100
    #: The window's bounds: where the rate is not known yet, and for each kind of claims.
    claim_ahead_min: int = 4
    claims_max: int = 100
    #: From this age on capacity is held for a task that does not fit yet.
    hold_after_s: float = 10.0
    #: Offers looked at in one call.
    horizon_max: int = 2000


DEFAULT_SETTINGS = ClaimSettings()
NO_RESERVATION = Reservation()


@dataclass(frozen=True, slots=True)
class Situation:
    """What the policy has to know besides the queue."""

    #: Seconds, of the clock that the view's times are of.
    now: float
    free: Reservation
    #: 0 (idle) to 1.
    load: float = 0.0
    #: Claims in flight, and claims won that have not started yet: those with a reservation.
    unstarted: int = 0
    #: The same without one: claimed ahead.
    ahead: int = 0
    #: Starts per second that this node manages; 0 while it is not known.
    start_rate_per_s: float = 0.0
    #: Reservations that came free per second lately; 0 while that is not known, or none did of late.
    end_rate_per_s: float = 0.0
    #: The least that one of them set free, of each resource.
    smallest_end: Reservation = NO_RESERVATION
    #: A claim's usual time from sending to answer.
    round_trip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """What to do. `claim` fits together; the shell removes it from the view and books it before it sends."""

    claim: tuple[str, ...] = ()
    #: To be claimed without booking it, and started when it fits. The shell removes it from the view as well.
    ahead: tuple[str, ...] = ()
    #: When to ask again if nothing happens before; None: only when something does.
    look_again_at: float | None = None
    #: The task that capacity is being held for.
    held_for: str | None = None
    #: How many offers this took into account, which is what it cost.
    looked_at: int = 0
    #: False: nothing would be claimed whatever were queued, until capacity or what is under way has changed.
    has_room: bool = True


NOTHING = ClaimPlan()
FULL = ClaimPlan(has_room=False)


def claim_window(situation: Situation, settings: ClaimSettings = DEFAULT_SETTINGS) -> int:
    """How many more tasks may be claimed now; 0 or more."""
    ahead = math.ceil(situation.start_rate_per_s * settings.claim_ahead_s)
    ahead = min(max(ahead, settings.claim_ahead_min), settings.claims_max)
    return max(0, ahead - situation.unstarted)


def ahead_window(situation: Situation, settings: ClaimSettings = DEFAULT_SETTINGS) -> int:
    """How many more tasks may be claimed ahead; 0 or more.

    0 until half of what may be is used up: so they leave in groups, at a fraction of the cost of one by one.
    """
    most = min(int(situation.end_rate_per_s * settings.claim_ahead_s), settings.claims_max)
    return most - situation.ahead if situation.ahead * 2 <= most else 0


def _load_steps(load: float, settings: ClaimSettings) -> float:
    return settings.load_steps * max(0.0, min(load, 1.0) - settings.busy_from_load) / (1.0 - settings.busy_from_load)


def is_holding(age_s: float, steps: float, settings: ClaimSettings) -> tuple[bool, float]:
    """Whether capacity is held for a task of this age, and the age at which that changes.

    In units of hold_after_s x (1 + steps): held from 1 to 3, not from 3 to 4; held from 4 to 12, not from 12 to 16; ...
    """
    unit = settings.hold_after_s * (1 + steps)
    if age_s < unit:
        return False, unit
    while age_s >= 4 * unit:
        unit *= 4
    return (True, 3 * unit) if age_s < 3 * unit else (False, 4 * unit)


def plan_claims(view: QueueView, situation: Situation, settings: ClaimSettings = DEFAULT_SETTINGS) -> ClaimPlan:
    """The tasks to claim now, oldest preference first, and when to look again.

    Notes in the view which offers have come to its front; apart from that, the same view and situation give the same
    plan. Costs O(kinds + horizon).
    """
    wanted = claim_window(situation, settings)
    ahead = ahead_window(situation, settings)
    if wanted == 0 or (ahead == 0 and situation.free.milli_cpu <= 0):
        return FULL  # every task needs some CPU; the end of one looks again
    if not len(view):
        return NOTHING
    return _Planner(view, situation, settings).plan(wanted, ahead)


class _Planner:
    """One call of plan_claims: what has been picked, and what is left."""

    def __init__(self, view: QueueView, situation: Situation, settings: ClaimSettings) -> None:
        self._view = view
        self._now = situation.now
        self._claimed = situation.unstarted + situation.ahead
        self._smallest_end = situation.smallest_end
        self._settings = settings
        self._free = situation.free
        self._picked: dict[str, None] = {}
        self._look_again_at = math.inf
        self._held: Offer | None = None
        self._looked_at = 0
        self._is_backlog = len(view) > settings.backlog_tasks_per_node * view.peers.count
        step_s = settings.backlog_step_s if self._is_backlog else settings.trickle_step_s
        step_s = max(step_s, settings.round_trips_per_step * situation.round_trip_s)
        self._step_s = step_s
        #: What the load adds to the wait for any rank.
        self._load_s = _load_steps(situation.load, settings) * step_s

    def plan(self, wanted: int, wanted_ahead: int) -> ClaimPlan:
        """wanted: with room for them; wanted_ahead: without."""
        self._find_held()
        # Each round either fills up, or finds that a kind has no room left and goes on without it.
        kinds = self._with_room(self._view.kinds())
        while kinds and len(self._picked) < wanted:
            more = wanted - len(self._picked)
            room = min(more, max(self._free.times(kind.needs) for kind in kinds))
            self._pick(self._due(kinds, more, room), wanted)
            still = self._with_room(kinds)
            if len(still) == len(kinds):
                break
            kinds = still
        ahead = self._pick_ahead(wanted_ahead) if wanted_ahead and self._is_backlog and self._held is None else ()
        at = None if math.isinf(self._look_again_at) else self._look_again_at
        held_for = self._held.task_id if self._held else None
        return ClaimPlan(tuple(self._picked), ahead, at, held_for, self._looked_at)

    def _pick_ahead(self, wanted: int) -> tuple[str, ...]:
        room = self._free.at_least_nothing() + self._smallest_end
        kinds, passed_over = [], "g"  # beyond every id
        for kind in self._view.kinds():
            if room.holds(kind.needs):
                kinds.append(kind)
            elif self._view.get(kind.ids[0]).age_s(self._now) < self._settings.hold_after_s:
                passed_over = min(passed_over, kind.ids[0])
        due = self._due(kinds, wanted, wanted) if kinds else []
        return tuple([offer.task_id for offer in due if offer.task_id < passed_over][:wanted])

    def _with_room(self, kinds: Iterable[Kind]) -> list[Kind]:
        return [kind for kind in kinds if self._free.holds(kind.needs)]

    def _find_held(self) -> None:
        """The oldest task that fits here but not now, and is old enough to have capacity held for it."""
        for kind in self._view.kinds():
            if self._free.holds(kind.needs):
                continue
            offer = self._view.get(kind.ids[0])
            if offer.front_at is None:
                offer.front_at = self._now
            age_s = offer.age_s(self._now)
            holding, until_age_s = is_holding(age_s, offer.steps(), self._settings)
            if not holding:
                continue
            # The end of a phase frees what was held, and no event tells of it.
            self._look_again_at = min(self._look_again_at, self._now + until_age_s - age_s)
            if self._held is None or offer.task_id < self._held.task_id:
                self._held = offer

    def _horizon(self, kinds: list[Kind], wanted: int, room: int) -> int:
        """How many of the oldest offers to look at."""
        peers = max(kind.place.count for kind in kinds)
        if peers == 1:
            return wanted  # no choice needed
        # Peers are supposed to be claiming as much as this node: about half of these may be gone already, and of the
        # rest twice as many as needed have rank 0 here. What is further back is not passed over yet.
        return min(4 * peers * (room + self._claimed), self._settings.horizon_max)

    def _due(self, kinds: list[Kind], wanted: int, room: int) -> list[Offer]:
        """Offers at the front whose wait is over, those that this node is to take first in front. room: how many of
        those wanted there is room for."""
        horizon = self._horizon(kinds, wanted, room)
        self._looked_at += min(horizon, len(self._view))
        # By the steps of preference that are left, 0 first; each in the order of the queue. One pass over up to
        # `horizon_max` offers at each look: this loop is what a node among many spends most of its thinking on.
        due: dict[int, list[Offer]] = {}
        now, step_s, load_s, patience_s = self._now, self._step_s, self._load_s, self._settings.patience_s
        look_again_at = self._look_again_at
        for offer in islice(self._view.oldest_first(kinds), horizon + len(self._picked)):
            if offer.task_id in self._picked:
                continue
            if offer.front_at is None:
                offer.front_at = now
            steps = offer.steps()
            if offer.kind.place.count > 1:
                # The wait shrinks as the task gets older, down to nothing at patience_s: w is the wait at age 0, and t,
                # from when it was first seen, is the moment when t = w x (1 - (age + t) / patience).
                wait_s = step_s * steps + load_s
                due_at = offer.seen_at + wait_s * max(0.0, patience_s - offer.age_when_seen_s) / (patience_s + wait_s)
                if due_at > now:
                    look_again_at = min(look_again_at, due_at)
                    continue
                steps -= int((now - offer.front_at) / self._settings.passed_over_s)
            due.setdefault(max(0, int(steps)), []).append(offer)
        self._look_again_at = look_again_at
        return [offer for steps in sorted(due) for offer in due[steps]]

    def _pick(self, due: list[Offer], wanted: int) -> None:
        for offer in due:
            if len(self._picked) >= wanted:
                return
            free = self._free
            if self._held is not None and offer.task_id > self._held.task_id:
                free = free.left_after_holding(self._held.kind.needs)
            if free.holds(offer.kind.needs):
                self._picked[offer.task_id] = None
                self._free = self._free - offer.kind.needs
