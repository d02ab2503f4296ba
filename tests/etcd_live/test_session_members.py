"""The session with three real members of etcd: whichever one dies or hangs, the lease lives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.errors import StoreError
from etcd.port import MemberStatus, Range
from node.cluster.session import boottime
from tests.etcd_live.test_session import Deadlines, key, make_session
from tests.support.etcd_process import EtcdProcess, etcd_binary
from tests.support.wait import wait_until

pytestmark = pytest.mark.etcd

TTL_S = 6.0
#: Three members on a busy machine.
READY_S = 60.0


class Members:
    """Three members on loopback."""

    def __init__(self, directory: Path) -> None:
        binary = etcd_binary()
        first = EtcdProcess(binary, directory / "a", name="a")
        self.all = [first, *(EtcdProcess(binary, directory / name, name=name, joins=first) for name in ("b", "c"))]
        for one in self.all:
            others = tuple((other.config.name, other.peer_url) for other in self.all if other is not one)
            one.config = replace(one.config, state="new", initial_cluster=others)

    async def status(self, member: EtcdProcess) -> MemberStatus | None:
        async with member.client() as client:
            with contextlib.suppress(StoreError):
                return await client.status(timeout_s=1.0)
        return None

    async def leader(self) -> EtcdProcess:
        """Whom all agree on."""
        found: list[EtcdProcess] = []

        async def agree() -> bool:
            statuses = [await self.status(member) for member in self.all]
            leaders = {status.leader_id if status else 0 for status in statuses}
            if len(leaders) == 1 and 0 not in leaders:
                found[:] = [
                    member
                    for member, status in zip(self.all, statuses, strict=True)
                    if status and status.member_id == status.leader_id
                ]
            return bool(found)

        await wait_until(agree, READY_S, what="a leader")
        return found[0]


@pytest_asyncio.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    made = Members(tmp_path)
    try:
        for member in made.all:
            member.start()
        yield made
    finally:
        for member in made.all:
            member.kill()


def kill(member: EtcdProcess) -> None:
    member.kill()


def freeze(member: EtcdProcess) -> None:
    member.freeze()


@pytest.mark.parametrize("fault", [kill, freeze])
@pytest.mark.parametrize(
    ("own_leads", "own_fails"),
    [(True, True), (False, True), (False, False)],
    ids=["own, which leads", "own, a follower", "the leader, another's"],
)
async def test_the_lease_outlives_one_member(
    members: Members, fault: Callable[[EtcdProcess], None], *, own_leads: bool, own_fails: bool
) -> None:
    leader = await members.leader()
    followers = [member for member in members.all if member is not leader]
    own = leader if own_leads else followers[0]
    fails = own if own_fails else leader
    addresses = [own.address, *(member.address for member in members.all if member is not own)]
    deadlines = Deadlines()
    session = make_session(lambda: EtcdClient(addresses, own.tls), deadlines, ttl_s=TTL_S)
    identity = await session.open(READY_S)
    lost = asyncio.create_task(session.wait_lost())
    try:
        first = deadlines.newest
        await wait_until(lambda: deadlines.newest > first, what="pings are answered")
        fault(fails)
        failed_at = boottime()
        # Several pings sent after the fault are answered, and the lease that was there before is lost by nobody.
        await wait_until(
            lambda: lost.done() or deadlines.newest > failed_at + 2 * TTL_S, 60, what="the deadline moves on"
        )
        assert not lost.done(), lost.result()
        assert not session.is_at_risk
        well = next(member for member in members.all if member is not fails)
        async with well.client() as client:
            found = await client.range(Range(key(identity.node_id)), timeout_s=10)
        assert [kv.create_revision for kv in found.kvs] == [identity.node_key_revision]
    finally:
        lost.cancel()
        await session.close()


async def test_a_member_that_comes_back_takes_nothing_away(members: Members) -> None:
    """Own member frozen for longer than the TTL, then thawed: late answers of the old stream count for nothing."""
    leader = await members.leader()
    own = next(member for member in members.all if member is not leader)
    addresses = [own.address, *(member.address for member in members.all if member is not own)]
    deadlines = Deadlines()
    session = make_session(lambda: EtcdClient(addresses, own.tls), deadlines, ttl_s=TTL_S)
    await session.open(READY_S)
    lost = asyncio.create_task(session.wait_lost())
    try:
        own.freeze()
        frozen_at = boottime()
        await wait_until(lambda: lost.done() or deadlines.newest > frozen_at + 2 * TTL_S, 60, what="it goes on")
        own.thaw()
        thawed_at = boottime()
        await wait_until(lambda: lost.done() or deadlines.newest > thawed_at + 2 * TTL_S, 60, what="it goes on still")
        assert not lost.done(), lost.result()
        assert not session.is_at_risk
        assert deadlines.told == sorted(deadlines.told)
    finally:
        lost.cancel()
        await session.close()
