"""Upkeep: what is decided from what etcd reports, and a fake etcd that fills up and heals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from etcd.errors import NoSpace
from etcd.maintenance import (
    DEFRAGMENT_EVERY_S,
    DEFRAGMENT_MIN_BYTES,
    HEAL_EVERY_S,
    HEALING_INTERVAL_S,
    Maintenance,
    RevisionsByTime,
    Step,
    alarms_to_disarm,
    is_filling_up,
    next_step,
)
from etcd.port import Alarm, Delete, MemberStatus, Put, Range, Txn
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_membership import MEMBER_ID
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

QUOTA = 1000 << 20
MIB = 1 << 20
NOSPACE = (Alarm(1, "NOSPACE"),)
OF_ANOTHER = (Alarm(2, "NOSPACE"),)
CORRUPT = (Alarm(1, "CORRUPT"),)
LONG_AGO = DEFRAGMENT_EVERY_S + 1


def report(size_mib: int, in_use_mib: int) -> MemberStatus:
    return MemberStatus("3.5.30", size_mib * MIB, in_use_mib * MIB, 1, 1, 1)


@pytest.mark.parametrize(
    ("size_mib", "in_use_mib", "alarms", "since_s", "expected"),
    [
        (200, 150, (), LONG_AGO, Step.NOTHING),
        (200, 99, (), LONG_AGO, Step.DEFRAGMENT),
        (200, 99, (), 1.0, Step.NOTHING),  # not again so soon
        (DEFRAGMENT_MIN_BYTES // MIB, 1, (), LONG_AGO, Step.NOTHING),  # not worth it
        (900, 700, (), 1.0, Step.DEFRAGMENT),  # near the quota: at once
        (900, 850, (), LONG_AGO, Step.NOTHING),  # near the quota, but it would give nothing back
        (1000, 100, NOSPACE, 1.0, Step.DEFRAGMENT),
        (1000, 990, NOSPACE, 1.0, Step.NOTHING),  # waits for retention
        (1000, 990, NOSPACE, LONG_AGO, Step.DEFRAGMENT),  # the report may be wrong
        (300, 290, NOSPACE, 1.0, Step.DISARM),
        (1000, 990, OF_ANOTHER, LONG_AGO, Step.DEFRAGMENT),  # it would be the next to raise one
        (1000, 990, OF_ANOTHER, 1.0, Step.NOTHING),
        (300, 290, OF_ANOTHER, 1.0, Step.DISARM),  # which of them: below
        (300, 290, CORRUPT, LONG_AGO, Step.NOTHING),  # never disarmed by a program
    ],
)
def test_next_step(size_mib: int, in_use_mib: int, alarms: tuple[Alarm, ...], since_s: float, expected: Step) -> None:
    step = next_step(report(size_mib, in_use_mib), alarms, quota_bytes=QUOTA, since_defragment_s=since_s)
    assert step is expected


@pytest.mark.parametrize(
    ("raised", "member", "after_s", "expected"),
    [
        ([1], 1, 0.0, [1]),
        ([1, 3], 1, 0.0, [1]),
        ([3], 1, 0.0, []),
        ([3], 1, 3 * HEAL_EVERY_S, []),  # the last one's turn has only just come to its end
        ([3], 1, 3 * HEAL_EVERY_S + 1, [3]),
        ([2, 3], 1, 3 * HEAL_EVERY_S + 1, [2, 3]),
        ([1, 9], 1, 3 * HEAL_EVERY_S + 1, [1, 9]),  # one that is no voter, too
        ([], 1, 1000.0, []),
    ],
)
def test_the_own_alarm_is_taken_back_at_once_and_others_after_all_turns(
    raised: list[int], member: int, after_s: float, expected: list[int]
) -> None:
    alarms = [Alarm(number, "NOSPACE") for number in raised] + [Alarm(1, "CORRUPT"), Alarm(2, "CORRUPT")]
    due = alarms_to_disarm(alarms, (1, 2, 3), member, healing_for_s=after_s)
    assert due == tuple(Alarm(number, "NOSPACE") for number in expected)


@pytest.mark.parametrize(
    ("size_mib", "in_use_mib", "expected"),
    [(500, 500, False), (800, 800, False), (801, 801, True), (900, 850, True), (950, 100, False)],
)
def test_is_filling_up(size_mib: int, in_use_mib: int, expected: bool) -> None:
    assert is_filling_up(report(size_mib, in_use_mib), QUOTA) == expected


def test_revisions_come_out_when_they_are_old_enough_and_only_once() -> None:
    revisions = RevisionsByTime(60)
    for now, revision in ((0, 10), (30, 20), (60, 30)):
        revisions.note(now, revision)
    assert revisions.take_old(59) is None
    assert revisions.take_old(95) == 20
    assert revisions.take_old(95) is None
    assert revisions.take_old(1000) == 30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def put(etcd: FakeEtcd, key: bytes, size: int = 0) -> None:
    await etcd.txn(Txn((), (Put(key, bytes(size)),)))


async def test_compacts_to_what_was_newest_a_minute_ago() -> None:
    async with FakeEtcd() as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=QUOTA, clock=clock)
        revisions = []
        for _ in range(4):
            await put(etcd, b"/a")
            await duty.look()
            revisions.append(etcd.store.revision)
            clock.now += 30
        assert etcd.store.compacted == revisions[1]
        assert not duty.is_filling_up
        assert duty.status is not None
        assert duty.status.revision == revisions[-1]


async def test_heals_when_the_quota_is_used_up() -> None:
    async with FakeEtcd(FakeStore(quota_bytes=100_000)) as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=100_000, clock=clock, sleep=clock.sleep)
        with pytest.raises(NoSpace):
            while True:
                await put(etcd, b"/same", 9_000)
        await duty.look()
        assert not etcd.store.has_no_space_alarm
        assert not duty.is_filling_up
        await put(etcd, b"/same", 9_000)


async def test_stays_closed_while_what_is_in_use_fills_the_quota_and_opens_after_deletes() -> None:
    async with FakeEtcd(FakeStore(quota_bytes=100_000)) as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=100_000, clock=clock, sleep=clock.sleep)
        keys = [b"/k%d" % i for i in range(20)]
        with pytest.raises(NoSpace):
            for key in keys:
                await put(etcd, key, 9_000)
        running = asyncio.create_task(duty.run())
        await wait_until(lambda: len(clock.slept) >= 3, what="it keeps looking")
        assert duty.is_filling_up
        assert etcd.store.has_no_space_alarm
        assert set(clock.slept) == {HEALING_INTERVAL_S}
        await etcd.txn(Txn((), (Delete(b"/k", b"/l"),)))
        await wait_until(lambda: not duty.is_filling_up, what="it has healed")
        await put(etcd, b"/again", 9_000)
        running.cancel()


async def test_an_outage_costs_a_round_and_not_the_duty() -> None:
    async with FakeEtcd() as etcd:
        clock = Clock()
        duty = Maintenance(etcd, quota_bytes=QUOTA, clock=clock, sleep=clock.sleep)
        failing = True

        def faults(_method: str, _argument: object) -> Fault | None:
            return LOST_BEFORE if failing else None

        etcd.faults = faults
        running = asyncio.create_task(duty.run())
        await wait_until(lambda: len(clock.slept) >= 2, what="it has tried twice")
        assert duty.status is None
        failing = False
        await wait_until(lambda: duty.status is not None, what="it has got through")
        running.cancel()
        assert (await etcd.range(Range(b"/a"))).count == 0


# -- several voters, of which one does not take its alarm back

SMALL_QUOTA = 100_000
FIRST = MEMBER_ID
SECOND, THIRD = FIRST + 1, FIRST + 2
#: How late a node may notice the alarm, and how long it may take to come to its turn.
SLACK_S = 30.0 + 2 * HEALING_INTERVAL_S


@dataclass
class Voter:
    """A member and the upkeep of its host."""

    etcd: FakeEtcd
    upkeep: Maintenance
    #: When it defragmented, and whose alarm it took back when.
    defragmented_at: list[float] = field(default_factory=list)
    disarmed: list[tuple[float, int]] = field(default_factory=list)

    def note(self, method: str, argument: object) -> None:
        now = asyncio.get_running_loop().time()
        if method == "defragment":
            self.defragmented_at.append(now)
        if method == "disarm" and isinstance(argument, Alarm):
            self.disarmed.append((now, argument.member_id))


class Voters:
    """Three members with a quota, and the upkeep of those that live; on virtual time."""

    def __init__(self) -> None:
        self.store = FakeStore(quota_bytes=SMALL_QUOTA)
        self.by_id: dict[int, Voter] = {}
        #: What befalls the calls of a member.
        self.faults: Callable[[int, str], Fault | None] = lambda _member, _method: None
        self._running: list[asyncio.Task[None]] = []
        membership = self.store.membership
        for number, member_id in enumerate((SECOND, THIRD), 1):
            now = number * 100.0
            assert membership.add_learner([f"https://127.0.0.1:{number}00"], now).id == member_id
            membership.start(member_id, now)
            membership.promote(member_id, now + 10)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def make(self, member_id: int) -> Voter:
        etcd = FakeEtcd(self.store, member_id=member_id)
        clock = asyncio.get_running_loop().time
        voter = self.by_id[member_id] = Voter(etcd, Maintenance(etcd, quota_bytes=SMALL_QUOTA, clock=clock))

        def faults(method: str, argument: object) -> Fault | None:
            voter.note(method, argument)
            return self.faults(member_id, method)

        etcd.faults = faults
        return voter

    def run(self, *member_ids: int) -> list[Voter]:
        """Upkeep on these, not at the same moment."""

        async def begin(voter: Voter, after_s: float) -> None:
            await asyncio.sleep(after_s)
            await voter.upkeep.run()

        voters = [self.make(member_id) for member_id in member_ids]
        for number, voter in enumerate(voters):
            self._running.append(asyncio.create_task(begin(voter, number * 0.7)))
        return voters

    async def write(self) -> None:
        await put(self.by_id[FIRST].etcd, b"/same", 9_000)

    async def is_writable(self) -> bool:
        """Whether a put is taken; it raises the alarm of a member that is full."""
        with suppress(NoSpace):
            await self.write()
            return True
        return False

    async def fill(self, raised_by: int, *, others: bool = False) -> None:
        """Until the quota is used up. others: by what is wanted, not by what was."""
        etcd = FakeEtcd(self.store)
        with pytest.raises(NoSpace):
            for number in range(1000):
                await put(etcd, b"/kept%d" % number if others else b"/same", 9_000)
        self.store.no_space_alarms = {raised_by}

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for voter in self.by_id.values():
            await voter.etcd.close()


@asynccontextmanager
async def three_voters() -> AsyncIterator[Voters]:
    voters = Voters()
    try:
        yield voters
    finally:
        await voters.close()


@virtual_time
async def test_the_alarm_of_a_voter_that_died_is_taken_back() -> None:
    """It raised the alarm, died before it had healed, and keeps its seat: nobody else took its alarm back."""
    async with three_voters() as voters:
        await voters.fill(raised_by=THIRD)
        voters.store.membership.stop(THIRD)
        began = voters.now
        first, second = voters.run(FIRST, SECOND)
        await wait_until(lambda: not voters.store.no_space_alarms, 200, what="healed", every_s=0.5)
        assert 3 * HEAL_EVERY_S < voters.now - began < 3 * HEAL_EVERY_S + SLACK_S
        # Those that live had made room by then, one after the other, or theirs would have been the next alarm.
        assert [len(first.defragmented_at), len(second.defragmented_at)] == [1, 1]
        assert second.defragmented_at[0] - first.defragmented_at[0] >= HEAL_EVERY_S - 2 * HEALING_INTERVAL_S
        for member in (FIRST, SECOND):
            assert voters.store.file_bytes(member) < SMALL_QUOTA // 5
        await voters.write()
        await asyncio.sleep(SLACK_S)
        assert not first.upkeep.is_filling_up
        assert not second.upkeep.is_filling_up
        assert not voters.store.no_space_alarms


@virtual_time
async def test_no_alarm_of_another_is_taken_back_while_the_own_file_is_full() -> None:
    async with three_voters() as voters:
        await voters.fill(raised_by=THIRD, others=True)
        voters.store.membership.stop(THIRD)
        running = voters.run(FIRST, SECOND)
        await asyncio.sleep(20 * HEAL_EVERY_S)
        assert voters.store.no_space_alarms == {THIRD}
        for voter in running:
            assert voter.disarmed == []
            assert voter.upkeep.is_filling_up
            assert 10 < len(voter.defragmented_at) <= 20, "as often as one that raised the alarm itself, no more"
        await running[0].etcd.txn(Txn((), (Delete(b"/kept", b"/l"),)))
        await wait_until(voters.is_writable, HEAL_EVERY_S + SLACK_S, what="healed", every_s=0.5)
        assert all(voter.disarmed for voter in running)


@virtual_time
async def test_an_alarm_that_comes_again_and_again_is_taken_back_at_the_pace_of_the_turns() -> None:
    """Of a member that lives, is full, and cannot defragment (its disk has no room for the copy)."""
    async with three_voters() as voters:
        await voters.fill(raised_by=THIRD)
        voters.faults = lambda member, method: LOST_BEFORE if (member, method) == (THIRD, "defragment") else None
        running = voters.run(FIRST, SECOND, THIRD)
        for _ in range(1000):
            await asyncio.sleep(1.0)
            assert not await voters.is_writable()
            assert voters.store.no_space_alarms == {THIRD}
        for voter in running[:2]:
            times = [at for at, _ in voter.disarmed]
            assert all(later - at > 3 * HEAL_EVERY_S for at, later in pairwise(times))
        assert sum(len(voter.disarmed) for voter in running) > 5, "they go on trying"
        assert running[2].disarmed == []
        voters.faults = lambda _member, _method: None
        await wait_until(lambda: not voters.store.no_space_alarms, 200, what="it has healed", every_s=0.5)
        assert voters.store.file_bytes(THIRD) < SMALL_QUOTA // 2


@virtual_time
async def test_a_voter_that_is_slow_at_its_defragmentation_finds_its_alarm_taken_back() -> None:
    """Nothing waits for it, and it comes back to a store that is as it should be."""
    async with three_voters() as voters:
        await voters.fill(raised_by=THIRD)
        slow = Fault(applied_after_s=150.0, error_after_s=60.0)
        voters.faults = lambda member, method: slow if (member, method) == (THIRD, "defragment") else None
        running = voters.run(FIRST, SECOND, THIRD)
        await wait_until(lambda: not voters.store.no_space_alarms, 200, what="taken back", every_s=0.5)
        assert voters.store.file_bytes(THIRD) > SMALL_QUOTA // 2
        voters.faults = lambda _member, _method: None
        await asyncio.sleep(200)
        await voters.write()
        assert not any(voter.upkeep.is_filling_up for voter in running)
        assert voters.store.file_bytes(THIRD) < SMALL_QUOTA // 2


@virtual_time
async def test_a_voter_that_heals_by_itself_is_left_to_do_it() -> None:
    async with three_voters() as voters:
        await voters.fill(raised_by=THIRD)
        running = voters.run(FIRST, SECOND, THIRD)
        await wait_until(lambda: not voters.store.no_space_alarms, HEAL_EVERY_S, what="healed", every_s=0.1)
        assert [[member for _, member in voter.disarmed] for voter in running] == [[], [], [THIRD]]


@virtual_time
async def test_a_disarming_that_gets_lost_is_tried_again() -> None:
    async with three_voters() as voters:
        await voters.fill(raised_by=THIRD)
        voters.store.membership.stop(THIRD)
        began = voters.now
        lost = 3

        def faults(_member: int, method: str) -> Fault | None:
            nonlocal lost
            if method == "disarm" and lost:
                lost -= 1
                return LOST_BEFORE
            return None

        voters.faults = faults
        voters.run(FIRST, SECOND)
        await wait_until(lambda: not voters.store.no_space_alarms, 200, what="healed", every_s=0.5)
        assert lost == 0
        assert voters.now - began < 3 * HEAL_EVERY_S + SLACK_S
