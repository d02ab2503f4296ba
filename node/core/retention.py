"""Which finished tasks are forgotten: those that ended too long ago, and the oldest beyond a number.

Pure: the duty that reads and deletes is `node/retention.py`. Without it a full rate of tasks fills etcd's quota within
minutes.

A forgotten task leaves no trace, so a late first try of its submit would make it anew and run it twice. Two rules keep
that from happening: an id that tells its age (UUIDv7) is refused once it is older than the age limit, and nothing is
forgotten within `keep_s` seconds after it ended, which is longer than any request is under way. When something ended is
what the wall clock of its node said, and now is what ours says, and either may be hours off or jump. So these seconds
are told by etcd's revisions instead: what is younger than a revision that was the newest `keep_s` ago, by the monotonic
clock of the one that looks (`Looks`), is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from node.core.ids import uuid7_time


@dataclass(frozen=True, slots=True, order=True)
class Ended:
    """A finished task, as its terminal key tells it. Sorts by the time at which it ended."""

    #: Unix second.
    ended_s: int
    task_id: str
    #: Of etcd, at which it ended.
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Limits:
    #: Ended longer ago than this, in seconds: forgotten.
    max_age_s: float
    #: More than this many: the oldest are forgotten.
    max_count: int
    #: What ended within so many seconds is not forgotten.
    keep_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Listed:
    """The oldest finished tasks of one status, oldest first."""

    oldest: Sequence[Ended]
    #: How many there are in all.
    total: int


class Looks:
    """When which revision was the newest, as the one that looks has seen it."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        #: (monotonic seconds, revision), oldest first: the newest that lies keep_s back, and those since.
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, revision: int, *, now: float) -> int:
        """What was written up to the revision that this gives was there keep_s ago; 0: nothing is known to have been.
        now: monotonic seconds, at the time of which `revision` was the newest or an older one."""
        seen = self._seen
        if seen and revision < seen[-1][1]:
            seen.clear()  # etcd was restored from a backup: its revisions are others
        # Looks may follow each other without a pause; remembered is one in each second.
        if not seen or now - seen[-1][0] >= min(1.0, self._keep_s):
            seen.append((now, revision))
        while len(seen) > 1 and seen[1][0] <= now - self._keep_s:
            seen.popleft()
        return seen[0][1] if seen[0][0] <= now - self._keep_s else 0


def to_forget(statuses: Iterable[Listed], limits: Limits, *, now: float, settled: int) -> list[Ended]:
    """Which finished tasks are to be forgotten now, oldest first. now: Unix seconds; settled: as `Looks.saw` gives it.

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
        if ended.revision <= settled and (place < excess or ended.ended_s < now - limits.max_age_s)
    ]


def is_too_old_to_submit(task_id: str, *, now: float, max_age_s: float) -> bool:
    """Whether a task of this id may have ended and been forgotten already. Only a UUIDv7 tells; others never are."""
    made_at = uuid7_time(task_id)
    return made_at is not None and made_at < now - max_age_s
