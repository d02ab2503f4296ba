"""How long this node may be sure of its lease: the bookkeeping of pings.

Theory. etcd renews a lease at some moment between our sending a ping and our hearing its answer. Only the sending is
ours to date, so
    the lease lives until at least   send time of the last ping that was answered + TTL,
and everything that must end before the lease can run out ends at the deadline = that - margin. Answers on one stream
come in the order of its pings; should one be missing, taking each answer for the *oldest* open ping errs on the early
side. A new stream knows nothing of the pings of the one before: they are forgotten, never answered. The deadline only
moves forward, and stops for good when the lease is known lost.

Pure: time comes in, in seconds of CLOCK_BOOTTIME (which counts while the machine is suspended, as the lease does).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

#: Between the deadline and the first moment at which the lease can be gone.
MARGIN_S = 0.5
#: Pings per TTL.
PINGS_PER_TTL = 4
#: How long an answer may take, at most, before another connection is asked too.
PATIENCE_S = 1.0


class Lane(StrEnum):
    """Two connections to ask on. The second is used only while the first is silent."""

    FIRST = "first"
    SECOND = "second"


@dataclass
class _LaneState:
    #: Send times of the pings on its present stream that are not answered, oldest first.
    open_pings: deque[float] = field(default_factory=deque)
    #: Send time of its last answered ping (of the grant, or its opening, before the first).
    heard_at: float = 0.0


class Fence:
    """The deadline of one lease. `lost` is set once, and then nothing changes any more."""

    def __init__(self, *, granted_ttl_s: float, sent_at: float) -> None:
        """sent_at: when the request for the lease was sent; the grant counts as an answered ping."""
        self.ttl_s = granted_ttl_s
        #: Why the lease is known to be gone; None while it is not.
        self.lost: str | None = None
        self._deadline = sent_at + granted_ttl_s - MARGIN_S
        self._lanes = {lane: _LaneState(heard_at=sent_at) for lane in Lane}

    @property
    def deadline(self) -> float:
        """From this instant on nothing of this incarnation may make progress, unless a later answer moved it."""
        return self._deadline

    @property
    def ping_every_s(self) -> float:
        return self.ttl_s / PINGS_PER_TTL

    @property
    def patience_s(self) -> float:
        """For a short TTL there is less of it, so that the second connection comes before the deadline."""
        return min(PATIENCE_S, self.ttl_s / PINGS_PER_TTL)

    def is_at_risk(self, now: float) -> bool:
        """Whether nothing may be started: the deadline has passed, or the lease is lost."""
        return self.lost is not None or now >= self._deadline

    def stream_opened(self, lane: Lane, now: float) -> None:
        """A new stream on the lane: open pings of the old one are forgotten."""
        state = self._lanes[lane]
        state.open_pings.clear()
        if lane is Lane.SECOND:
            state.heard_at = now  # it has not been asked anything yet

    def ping_sent(self, lane: Lane, now: float) -> None:
        """To be called just before sending, so that the time is not later than the sending."""
        self._lanes[lane].open_pings.append(now)

    def answered(self, lane: Lane, ttl_s: float) -> bool:
        """An answer came; True when the deadline has moved. ttl_s of 0 or less: the lease is gone."""
        if self.lost is not None:
            return False
        if ttl_s <= 0:
            self.lost = "the lease has run out"
            return False
        state = self._lanes[lane]
        if not state.open_pings:
            return False  # of a ping that was forgotten
        sent_at = state.open_pings.popleft()
        state.heard_at = max(state.heard_at, sent_at)
        deadline = sent_at + min(ttl_s, self.ttl_s) - MARGIN_S
        if deadline <= self._deadline:
            return False
        self._deadline = deadline
        return True

    def key_gone(self) -> None:
        """The node's own key was deleted, whoever did it: peers may be requeueing our tasks already."""
        if self.lost is None:
            self.lost = "the node's key was deleted"

    def overdue_at(self, lane: Lane) -> float:
        """When the lane has been silent for so long that another connection is to be tried."""
        return self._lanes[lane].heard_at + self.ping_every_s + self.patience_s

    def is_overdue(self, lane: Lane, now: float) -> bool:
        return now >= self.overdue_at(lane)
