"""Which finished tasks are forgotten: those that ended too long ago, and the oldest beyond a number.

Pure: the duty that reads and deletes is `node/retention.py`. Without it a full rate of tasks fills etcd's quota within
minutes.

A forgotten task leaves no trace, so a late first try of its submit would make it anew and run it twice. Two rules keep
that from happening: an id that tells its age (UUIDv7) is refused once it is older than the age limit, and the limit on
the number never forgets what ended within the last `keep_s` seconds, which is longer than any request is under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from node.core.ids import uuid7_time


@dataclass(frozen=True, slots=True, order=True)
class Ended:
    """A finished task, as its terminal key tells it. Sorts by the time at which it ended."""

    #: Unix second.
    ended_s: int
    task_id: str


@dataclass(frozen=True, slots=True)
class Limits:
    #: Ended longer ago than this, in seconds: forgotten.
    max_age_s: float
    #: More than this many: the oldest are forgotten.
    max_count: int
    #: What ended within so many seconds is not forgotten for its number.
    keep_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Listed:
    """The oldest finished tasks of one status, oldest first."""

    oldest: Sequence[Ended]
    #: How many there are in all.
    total: int


def to_forget(statuses: Iterable[Listed], limits: Limits, *, now: float) -> list[Ended]:
    """Which finished tasks are to be forgotten now, oldest first; now: Unix seconds.

    Of a status that was not listed to its end nothing is known beyond its last one, so nothing that ended later is
    forgotten in this round: older ones may be left.
    """
    listed = list(statuses)
    total = sum(one.total for one in listed)
    ends = [one.oldest[-1] for one in listed if one.oldest and len(one.oldest) < one.total]
    horizon = min(ends, default=None)
    oldest = sorted(
        ended for one in listed for ended in one.oldest if horizon is None or ended.ended_s <= horizon.ended_s
    )
    excess = max(0, total - limits.max_count)
    return [
        ended
        for place, ended in enumerate(oldest)
        if ended.ended_s < now - limits.max_age_s or (place < excess and ended.ended_s < now - limits.keep_s)
    ]


def is_too_old_to_submit(task_id: str, *, now: float, max_age_s: float) -> bool:
    """Whether a task of this id may have ended and been forgotten already. Only a UUIDv7 tells; others never are."""
    made_at = uuid7_time(task_id)
    return made_at is not None and made_at < now - max_age_s
