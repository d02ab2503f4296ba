"""Members come and go, on the fake and on real etcds: what is refused, and what may be asked twice."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.errors import MemberNotFound, MembershipRefused, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.port import Etcd, Member, Put, Range, Txn
from tests.support.etcd_process import EtcdProcess, etcd_binary
from tests.support.fake_etcd import FakeEtcd
from tests.support.wait import wait_until

#: All voters must have been connected for 5 s before the next change; a busy machine takes longer.
PATIENCE_S = 60.0
#: Of a follower, right after a write: without a read before it one of four or five lacked what was written.
SNAPSHOTS = 40


class Cluster(Protocol):
    """One cluster, of one member at first."""

    #: Asks the members that there are.
    etcd: Etcd

    def peer_url(self) -> str:
        """Of a member to be."""

    async def start(self, member: Member) -> None:
        """Starts the member, for the first time or again."""

    async def kill(self, member: Member) -> None: ...

    def client_of(self, member: Member) -> Etcd:
        """Asks this member alone; closed with the cluster."""


class FakeCluster:
    """On a FakeEtcd, whose time runs faster: nothing in it is worth waiting for."""

    def __init__(self) -> None:
        self._fake = FakeEtcd(clock=lambda: 50 * time.monotonic())
        self.etcd: Etcd = self._fake
        self._ports = itertools.count(10)
        self._clients: list[FakeEtcd] = [self._fake]

    def peer_url(self) -> str:
        return f"https://127.0.0.1:{next(self._ports)}"

    async def start(self, member: Member) -> None:
        self._fake.store.membership.start(member.id, self._fake.now())

    async def kill(self, member: Member) -> None:
        self._fake.store.membership.stop(member.id)

    def client_of(self, member: Member) -> Etcd:
        client = FakeEtcd(self._fake.store, member_id=member.id, clock=self._fake.now)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class RealCluster:
    """Of etcd processes on loopback."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._first = EtcdProcess(etcd_binary(), directory / "first")
        self._planned: dict[str, EtcdProcess] = {}
        self._clients: list[EtcdClient] = []
        self.etcd: Etcd = self._client(self._addresses)

    async def found(self) -> None:
        self._first.start()
        await self._first.wait_ready()

    def peer_url(self) -> str:
        name = f"member{len(self._planned)}"
        process = EtcdProcess(etcd_binary(), self._directory / name, name=name, joins=self._first)
        self._planned[process.peer_url] = process
        return process.peer_url

    async def start(self, member: Member) -> None:
        process = self._process(member)
        known = () if process.config.has_data else await self.etcd.members()
        process.start([other for other in known if other.id != member.id])

    async def kill(self, member: Member) -> None:
        self._process(member).kill()

    def client_of(self, member: Member) -> Etcd:
        address = self._process(member).address
        return self._client(lambda: (address,))

    def _process(self, member: Member) -> EtcdProcess:
        return self._planned.get(member.peer_urls[0], self._first)

    def _addresses(self) -> tuple[str, ...]:
        return tuple(process.address for process in (self._first, *self._planned.values()))

    def _client(self, addresses: Callable[[], tuple[str, ...]]) -> EtcdClient:
        client = EtcdClient(addresses, self._first.tls)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    def end(self) -> None:
        for process in (self._first, *self._planned.values()):
            process.kill()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.etcd)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeCluster | RealCluster]:
    """Not async: etcd dies with the thread that started it."""
    if request.param == "fake":
        yield FakeCluster()
        return
    cluster = RealCluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


@pytest_asyncio.fixture
async def cluster(made: FakeCluster | RealCluster) -> AsyncIterator[Cluster]:
    if isinstance(made, RealCluster):
        await made.found()
    yield made
    await made.close()


async def agreed(change: Callable[[], Awaitable[object]]) -> None:
    """Asks for a change until it is no longer refused."""

    async def is_done() -> bool:
        with contextlib.suppress(MembershipRefused, StoreUnavailable):
            await change()
            return True
        return False

    await wait_until(is_done, PATIENCE_S, what="etcd agrees to the change")


async def add_learner(cluster: Cluster) -> Member:
    url, added = cluster.peer_url(), list[Member]()

    async def add() -> None:
        added.append(await cluster.etcd.add_learner([url]))

    await agreed(add)
    return added[0]


async def add_voter(cluster: Cluster) -> Member:
    member = await add_learner(cluster)
    await cluster.start(member)
    await agreed(lambda: cluster.etcd.promote(member.id))
    return member


async def find(cluster: Cluster, member_id: int) -> Member | None:
    return next((member for member in await cluster.etcd.members() if member.id == member_id), None)


async def test_a_learner_is_added_alone_and_has_its_vote_when_it_is_in_sync(cluster: Cluster) -> None:
    learner = await add_learner(cluster)
    assert learner.is_learner
    assert await find(cluster, learner.id) == learner
    assert (learner.name, learner.client_urls) == ("", ())  # it has not been heard of
    with pytest.raises(MembershipRefused, match="too many learner"):
        await cluster.etcd.add_learner([cluster.peer_url()])
    with pytest.raises(MembershipRefused, match="in sync"):
        await cluster.etcd.promote(learner.id)
    await cluster.start(learner)
    await agreed(lambda: cluster.etcd.promote(learner.id))
    voter = await find(cluster, learner.id)
    assert voter is not None
    assert not voter.is_learner
    assert voter.name
    await cluster.etcd.promote(learner.id)  # again: nothing to do
    await cluster.etcd.txn(Txn((), (Put(b"/a"),)))


async def test_a_learner_answers_for_itself_alone(cluster: Cluster) -> None:
    learner = await add_learner(cluster)
    await cluster.start(learner)
    if isinstance(cluster, FakeCluster):
        assert (await cluster.client_of(learner).status()).is_learner
        return  # the fake does not refuse reads by member
    client = cluster.client_of(learner)

    async def answers() -> bool:
        with contextlib.suppress(StoreError):
            return (await client.status()).is_learner
        return False

    await wait_until(answers, PATIENCE_S, what="the learner answers")
    with pytest.raises(StoreUnavailable, match="learner"):
        await client.range(Range(b"/a"))
    with pytest.raises(StoreUnavailable, match="learner"):  # not OutcomeUnknown: nothing was proposed
        await client.txn(Txn((), (Put(b"/a"),)))


async def test_what_is_not_there_is_removed_already(cluster: Cluster) -> None:
    learner = await add_learner(cluster)
    await cluster.etcd.remove_member(learner.id)
    assert await find(cluster, learner.id) is None
    await cluster.etcd.remove_member(learner.id)
    with pytest.raises(MemberNotFound):
        await cluster.etcd.promote(learner.id)
    with pytest.raises(MemberNotFound):
        await cluster.etcd.update_member(learner.id, ["https://127.0.0.1:9"])
    with pytest.raises(MembershipRefused):
        await cluster.etcd.move_leader(learner.id)


async def test_the_last_voter_cannot_be_removed(cluster: Cluster) -> None:
    (only,) = await cluster.etcd.members()
    with pytest.raises(MembershipRefused):
        await cluster.etcd.remove_member(only.id)
    assert len(await cluster.etcd.members()) == 1


async def test_addresses_are_not_given_twice(cluster: Cluster) -> None:
    (only,) = await cluster.etcd.members()
    with pytest.raises(MembershipRefused, match="Peer URLs"):
        await cluster.etcd.add_learner(only.peer_urls)


async def test_three_voters_lose_one_and_get_another(cluster: Cluster) -> None:
    """The story of a cluster: grow, move the leader, lose a voter, replace it."""
    (first,) = await cluster.etcd.members()
    second = await add_voter(cluster)
    third = await add_voter(cluster)
    assert [member.is_learner for member in await cluster.etcd.members()] == [False] * 3

    leader = (await cluster.etcd.status()).leader_id
    assert leader == first.id
    with pytest.raises(MembershipRefused, match="not leader"):
        await cluster.client_of(second).move_leader(third.id)
    await cluster.client_of(first).move_leader(second.id)
    assert (await cluster.client_of(second).status()).leader_id == second.id
    await cluster.client_of(second).move_leader(second.id)  # again: nothing to do

    await cluster.kill(third)
    with pytest.raises(MembershipRefused, match="unhealthy"):
        await cluster.etcd.add_learner([cluster.peer_url()])
    await agreed(lambda: cluster.etcd.remove_member(third.id))
    fourth = await add_voter(cluster)
    assert {member.id for member in await cluster.etcd.members()} == {first.id, second.id, fourth.id}
    await cluster.etcd.txn(Txn((), (Put(b"/a"),)))


async def test_without_a_quorum_nothing_is_agreed_on(cluster: Cluster, tmp_path: Path) -> None:
    (first,) = await cluster.etcd.members()
    second = await add_voter(cluster)
    asked = cluster.client_of(first)
    await cluster.kill(second)
    with pytest.raises(OutcomeUnknown):
        await asked.txn(Txn((), (Put(b"/a"),)), timeout_s=2)
    with pytest.raises(StoreUnavailable):
        await asked.range(Range(b"/a"), timeout_s=2)

    async def knows_no_leader() -> bool:
        return (await asked.status()).leader_id == 0

    await wait_until(knows_no_leader, PATIENCE_S, what="the member knows that nobody leads")
    with pytest.raises(StoreUnavailable):
        await asked.members(timeout_s=2)
    known = await asked.members(timeout_s=2, linearizable=False)  # what it knows of itself needs nobody
    assert {(member.id, member.is_learner) for member in known} == {(first.id, False), (second.id, False)}
    assert all(member.name for member in known)
    with pytest.raises(StoreUnavailable):
        await asked.snapshot(tmp_path / "snapshot", timeout_s=2)  # it may lack what was acknowledged
    assert not (tmp_path / "snapshot").exists()
    await cluster.start(second)
    await agreed(lambda: asked.range(Range(b"/a"), timeout_s=2))


async def test_a_snapshot_is_a_whole_file(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.etcd.txn(Txn((), (Put(b"/a", b"found again"),)))
    file = tmp_path / "snapshot"
    size = await cluster.etcd.snapshot(file)
    assert file.stat().st_size == size
    assert b"found again" in file.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["snapshot"]


async def test_a_snapshot_of_a_follower_has_all_that_was_acknowledged(cluster: Cluster, tmp_path: Path) -> None:
    """A member that does not lead may have applied less, and etcd's snapshot is of what it has applied."""
    (first,) = await cluster.etcd.members()
    followers = [cluster.client_of(await add_voter(cluster)) for _ in range(2)]
    leader = cluster.client_of(first)
    for number in range(SNAPSHOTS):
        await leader.txn(Txn((), (Put(b"/a", b"content %06d." % number),)))
        file = tmp_path / f"{number}"
        await followers[number % 2].snapshot(file)
        assert b"content %06d." % number in file.read_bytes()
