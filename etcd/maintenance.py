"""Upkeep of one etcd: compaction, defragmentation, healing when the quota is used up.

Theory. Every write leaves its old version behind until compaction; compaction frees pages in the file, which are used
again; only defragmentation makes the file smaller, and it blocks the member while it runs (0.4 s at 190 MiB). The
quota counts the file. So: compact on a schedule, to a revision that watchers have long passed; defragment rarely;
refuse new tasks while there is still room to record how the old ones end (`is_filling_up`). When etcd has raised
NOSPACE nevertheless, it takes no more puts until: compact, defragment, and the alarm is disarmed with the member id
from the alarm list (with 0, etcd answers OK and does nothing). Without the defragmentation the next put trips it again.

In a cluster every node looks, since every node must know when to refuse tasks; one compacts (duty "compaction"); each
that has a member of etcd defragments that one, one after the other (duty "defragment", given back after it), and
disarms that member's alarm. While NOSPACE stands no duty can be taken, since taking it is a put: then all compact,
which is harmless, and the voters whose files are near the quota defragment some time apart: those that raised the alarm
first, then the others, each in the order of their ids.

Whoever raised the alarm may never take it back: it died and keeps its seat, or its disk has no room to defragment on.
So once every voter has had its turn, each whose own file is small again takes back the alarms of the others, too. Too
soon is harmless, and so are several at once: the data are the same everywhere, a sound file shows that they have room,
and a member whose file is full nevertheless raises its alarm again with the next put. All turns begin anew then, so
that an alarm that comes again and again is taken back no more often than the turns take.

The decisions are functions of what etcd reports; `Maintenance` carries them out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum, auto
from typing import Protocol

from etcd.errors import StoreError
from etcd.port import Alarm, Etcd, Member, MemberStatus

log = logging.getLogger(__name__)

#: Above this share of the quota no new tasks are taken.
FULL_SHARE = 0.8
#: A smaller file is never worth blocking for.
DEFRAGMENT_MIN_BYTES = 64 << 20
#: Between two defragmentations that are merely tidy.
DEFRAGMENT_EVERY_S = 600.0
#: While NOSPACE stands, it looks this often, and defragments this often whatever the report says.
HEALING_INTERVAL_S = 2.0
HEAL_EVERY_S = 20.0

NOSPACE = "NOSPACE"

COMPACTION = "compaction"
DEFRAGMENT = "defragment"


class Step(Enum):
    """What to do next."""

    NOTHING = auto()
    DEFRAGMENT = auto()
    DISARM = auto()


def is_filling_up(status: MemberStatus, quota_bytes: int) -> bool:
    """Whether new tasks are to be refused: what is in use, not only the file, is near the quota, or the file is and
    cannot be made much smaller."""
    if status.db_size_bytes <= FULL_SHARE * quota_bytes:
        return False
    return not _is_slack(status) or status.db_in_use_bytes > FULL_SHARE * quota_bytes


def next_step(status: MemberStatus, alarms: Sequence[Alarm], *, quota_bytes: int, since_defragment_s: float) -> Step:
    """From what etcd reports, after compaction. alarms: of all members, since any NOSPACE stops all writes."""
    is_nearly_full = status.db_size_bytes > FULL_SHARE * quota_bytes
    if _is_full(alarms):
        if not is_nearly_full:
            return Step.DISARM
        # What compaction frees is counted as in use until the next write, which the alarm forbids: so the report may
        # say "no slack" for ever.
        is_due = _is_slack(status) or since_defragment_s > HEAL_EVERY_S
        return Step.DEFRAGMENT if is_due else Step.NOTHING
    if is_nearly_full and _is_slack(status):
        return Step.DEFRAGMENT
    is_mostly_air = status.db_in_use_bytes * 2 < status.db_size_bytes
    if is_mostly_air and status.db_size_bytes > DEFRAGMENT_MIN_BYTES and since_defragment_s > DEFRAGMENT_EVERY_S:
        return Step.DEFRAGMENT
    return Step.NOTHING


def _is_slack(status: MemberStatus) -> bool:
    """Whether a defragmentation gives at least a fifth of the file back."""
    return status.db_in_use_bytes < 0.8 * status.db_size_bytes


def _is_full(alarms: Sequence[Alarm]) -> bool:
    return any(alarm.kind == NOSPACE for alarm in alarms)


def is_turn_to_heal(alarms: Sequence[Alarm], voters: Collection[int], member_id: int, *, healing_for_s: float) -> bool:
    """Whether this voter may defragment while NOSPACE stands: those before it had their time. First come those that
    raised it, without which nothing is written; the others would raise it next."""
    in_need = {alarm.member_id for alarm in alarms if alarm.kind == NOSPACE}
    order = sorted(voters, key=lambda voter: (voter not in in_need, voter))
    return member_id in order and healing_for_s >= order.index(member_id) * HEAL_EVERY_S


def alarms_to_disarm(
    alarms: Sequence[Alarm], voters: Collection[int], member_id: int, *, healing_for_s: float
) -> tuple[Alarm, ...]:
    """Which alarms this member, whose own file is no longer near the quota, may take back: its own, and those of the
    others when every voter has had its turn."""
    all_had_their_turn = healing_for_s > len(voters) * HEAL_EVERY_S
    return tuple(
        alarm for alarm in alarms if alarm.kind == NOSPACE and (alarm.member_id == member_id or all_had_their_turn)
    )


class Holds(Protocol):
    """Which duties of the cluster are this node's."""

    async def hold(self, name: str) -> bool:
        """Takes the duty where it is free; whether it is this node's. Raises StoreError."""

    async def release(self, name: str) -> None:
        """Gives it up, so that another node may take it. Raises StoreError."""


class AllDuties:
    """Of a node that is alone: there is nobody to share with."""

    async def hold(self, name: str) -> bool:
        return bool(name)

    async def release(self, name: str) -> None:
        """Nobody waits for it."""


class RevisionsByTime:
    """Which revision was the newest at which time, for as long back as is asked for."""

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, now: float, revision: int) -> None:
        self._noted.append((now, revision))

    def take_old(self, now: float) -> int | None:
        """The newest revision that is at least kept_s old, where one has become so since the last call."""
        found = None
        while self._noted and self._noted[0][0] <= now - self._kept_s:
            found = self._noted.popleft()[1]
        return found


class Maintenance:
    """The upkeep duty. `run` ends by being canceled."""

    def __init__(
        self,
        etcd: Etcd,
        *,
        quota_bytes: int,
        compaction_interval_s: float = 30.0,
        history_kept_s: float = 60.0,
        duties: Holds | None = None,
        own: Callable[[], AbstractAsyncContextManager[Etcd | None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """history_kept_s: how long a watcher may be away before it has to list again. duties: by default all are this
        node's. own: a client of the etcd member on this host alone, for one look, None where there is none; by default
        `etcd` is."""
        self._etcd = etcd
        self._duties = duties or AllDuties()
        self._own = own or (lambda: contextlib.nullcontext(etcd))
        self._quota_bytes = quota_bytes
        self._interval_s = compaction_interval_s
        self._clock = clock
        self._sleep = sleep
        self._revisions = RevisionsByTime(history_kept_s)
        self._defragmented_at = -math.inf
        self._is_healing = False
        self._healing_since = 0.0
        #: What the member last reported; None before the first look.
        self.status: MemberStatus | None = None

    @property
    def is_filling_up(self) -> bool:
        """No new tasks are to be taken. As of the last look."""
        return self._is_healing or (self.status is not None and is_filling_up(self.status, self._quota_bytes))

    async def run(self) -> None:
        """Looks now, and then on schedule. Errors of the store are told, and tried again at the next look."""
        while True:
            try:
                await self.look()
            except StoreError as error:
                log.warning("etcd's upkeep did not get through, trying again: %s", error)
            await self._sleep(HEALING_INTERVAL_S if self._is_healing else self._interval_s)

    async def look(self) -> None:
        """One round: look, compact what is old, and do what that shows to be needed."""
        async with self._own() as member:
            status = self.status = await (member or self._etcd).status()
            alarms = await self._etcd.alarms()
            await self._compact(status, alarms)
            voters: tuple[int, ...] = ()
            if self._is_healing:
                members = await self._etcd.members()
                await self._disarm_departed(alarms, members)
                # A learner cannot defragment: etcd refuses it until it votes.
                voters = tuple(one.id for one in members if not one.is_learner)
            if member is not None:
                await self._follow_up(member, alarms, voters)

    async def _compact(self, status: MemberStatus, alarms: Sequence[Alarm]) -> None:
        now = self._clock()
        self._set_healing(now, is_healing=_is_full(alarms))
        self._revisions.note(now, status.revision)
        old = self._revisions.take_old(now)
        if self._is_healing:
            log.error("etcd's quota of %d bytes is used up: compacting all history", self._quota_bytes)
            await self._etcd.compact(status.revision, physical=True)
        elif old is not None and await self._duties.hold(COMPACTION):
            await self._etcd.compact(old)
            log.debug("etcd compacted to revision %d of %d", old, status.revision)

    def _set_healing(self, now: float, *, is_healing: bool) -> None:
        if is_healing and not self._is_healing:
            self._healing_since = now
        self._is_healing = is_healing

    async def _disarm_departed(self, alarms: Sequence[Alarm], members: Sequence[Member]) -> None:
        """The alarm of a member that is no more, at once and whoever looks: nobody need defragment for it."""
        there = {member.id for member in members}
        for alarm in alarms:
            if alarm.kind == NOSPACE and alarm.member_id not in there:
                await self._etcd.disarm(alarm)

    async def _follow_up(self, member: Etcd, alarms: Sequence[Alarm], voters: Collection[int]) -> None:
        """What this host's own member needs, after compaction."""
        status = self.status = await member.status()
        step = self._next_step(status, alarms)
        if step is Step.DEFRAGMENT:
            if not await self._may_defragment(status, alarms, voters):
                return
            try:
                status = self.status = await self._defragment(member, status)
            finally:
                if not self._is_healing:
                    await self._duties.release(DEFRAGMENT)
            step = self._next_step(status, alarms)
        if step is Step.DISARM:
            await self._disarm(status, alarms, voters)

    async def _disarm(self, status: MemberStatus, alarms: Sequence[Alarm], voters: Collection[int]) -> None:
        due = alarms_to_disarm(alarms, voters, status.member_id, healing_for_s=self._healing_for_s())
        for alarm in due:
            if alarm.member_id != status.member_id:
                log.warning("etcd's member %x does not take its alarm back: doing it in its place", alarm.member_id)
            await self._etcd.disarm(alarm)
        self._is_healing = _is_full([alarm for alarm in alarms if alarm not in due])
        if not self._is_healing:
            log.info("etcd takes writes again")

    async def _may_defragment(self, status: MemberStatus, alarms: Sequence[Alarm], voters: Collection[int]) -> bool:
        if self._is_healing:
            return is_turn_to_heal(alarms, voters, status.member_id, healing_for_s=self._healing_for_s())
        return await self._duties.hold(DEFRAGMENT)

    def _healing_for_s(self) -> float:
        return self._clock() - self._healing_since

    async def _defragment(self, member: Etcd, before: MemberStatus) -> MemberStatus:
        started = self._clock()
        await member.defragment()
        self._defragmented_at = self._clock()
        after = await member.status()
        log.info(
            "etcd's file defragmented: %d to %d bytes, blocked for %.2f s",
            before.db_size_bytes,
            after.db_size_bytes,
            self._defragmented_at - started,
        )
        return after

    def _next_step(self, status: MemberStatus, alarms: Sequence[Alarm]) -> Step:
        return next_step(
            status,
            alarms,
            quota_bytes=self._quota_bytes,
            since_defragment_s=self._clock() - self._defragmented_at,
        )
