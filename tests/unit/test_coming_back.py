"""Finding the cluster again over real connections: from what any node remembers, without etcd."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from pathlib import Path

import pytest

from node.core.newcomer import Why
from node.joining import coming_back
from node.joining.cluster_memory import ClusterMemory, Contacts
from node.joining.coming_back import find_contacts, merged
from node.joining.handshake import Papers
from node.joining.peer_answers import JoinRefused
from tests.support.fake_etcd import FakeEtcd
from tests.support.joining import DOWN, PACE, Cluster, Host
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

OWN = "10.9.9.99:7400"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster")


class Member:
    """A host that joined, was away, and comes back."""

    def __init__(self, host: Host, memory: ClusterMemory) -> None:
        self.host = host
        self.memory = memory

    @classmethod
    async def make(cls, cluster: Cluster, directory: Path) -> Member:
        host = Host.make(directory)
        async with cluster.peer() as peer:
            memory = await host.join([peer], await cluster.token())
        memory.contacts = Contacts()
        return cls(host, memory)

    def papers(self) -> Papers:
        return Papers(*((self.host.pki / name).read_bytes() for name in ("ca.crt", "node.crt", "node.key")))

    async def find(self, *peers: str, remembered: tuple[str, ...] = ()) -> Contacts:
        self.memory.contacts = Contacts(("10.0.0.1:1",), remembered)
        async with asyncio.timeout(30):
            return await find_contacts(
                self.memory,
                peers,
                self.papers,
                host_id=self.host.newcomer.host_id,
                own_address=OWN,
                random=random.Random(1),
                pace=PACE,
            )

    async def refused(self, *peers: str, remembered: tuple[str, ...] = ()) -> JoinRefused:
        with pytest.raises(JoinRefused) as caught:
            await self.find(*peers, remembered=remembered)
        return caught.value


@pytest.fixture
async def member(cluster: Cluster, tmp_path: Path) -> Member:
    return await Member.make(cluster, tmp_path / "host")


NEW = Contacts(("10.0.0.5:7401", "10.0.0.6:7401"), ("10.0.0.5:7400",))


async def test_what_others_know_is_found_by_remembered_and_by_named_nodes(cluster: Cluster, member: Member) -> None:
    async with cluster.peer(contacts=NEW) as peer:
        expected = Contacts(NEW.etcd_endpoints, (peer, *NEW.node_addresses))
        assert await member.find(peer) == expected
        assert await member.find(remembered=(DOWN, peer)) == expected
        assert await member.find(OWN, DOWN, remembered=(OWN, peer)) == expected


async def test_what_is_no_address_keeps_nobody_from_being_asked(cluster: Cluster, member: Member) -> None:
    async with cluster.peer(contacts=NEW) as peer:
        found = await member.find(remembered=("nonsense", "fe80::1:7400", peer))
    assert found.etcd_endpoints == NEW.etcd_endpoints


async def test_it_is_answered_without_etcd(cluster: Cluster, member: Member) -> None:
    etcd = FakeEtcd(cluster.store)
    etcd.is_cut = True
    async with cluster.peer(contacts=NEW, etcd=etcd) as peer:
        assert (await member.find(peer)).etcd_endpoints == NEW.etcd_endpoints
    assert etcd.calls == []


async def test_several_answers_are_put_together(cluster: Cluster, member: Member) -> None:
    old = Contacts(("10.0.0.1:7401", "10.0.0.5:7401"), (OWN,))
    async with (
        cluster.peer(contacts=NEW) as one,
        cluster.peer(contacts=old) as two,
        cluster.peer(contacts=NEW) as three,
    ):
        found = await member.find(one, two, three)
    # What most of them name comes first; the own address is none of the others'.
    assert found.etcd_endpoints == ("10.0.0.5:7401", "10.0.0.6:7401", "10.0.0.1:7401")
    assert set(found.node_addresses) == {one, two, three, "10.0.0.5:7400"}


async def test_it_asks_until_one_answers(cluster: Cluster, member: Member, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster.peer() as peer:
        pass
    with caplog.at_level(logging.WARNING):
        finding = asyncio.create_task(member.find(remembered=(peer,)))
        await wait_until(lambda: f"{peer}: Connection refused" in caplog.text, what="the log says why")
    assert not finding.done()
    async with cluster.peer(listen=peer, contacts=NEW):
        assert (await finding).etcd_endpoints == NEW.etcd_endpoints


async def test_nobody_to_ask(member: Member) -> None:
    assert await member.find(OWN, remembered=(OWN,)) == Contacts(("10.0.0.1:1",), (OWN,))


async def test_of_many_that_are_remembered_a_few_are_asked_each_time_and_all_in_the_end(
    cluster: Cluster, member: Member, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coming_back, "ASKED_PER_ROUND", 2)
    others = tuple(f"127.0.0.1:{port}" for port in range(1, 7))
    async with cluster.peer(contacts=NEW) as peer:
        assert (await member.find(remembered=(*others, peer))).etcd_endpoints == NEW.etcd_endpoints


async def test_a_host_that_was_removed(cluster: Cluster, member: Member) -> None:
    await cluster.remove(member.host.newcomer.host_id)
    async with cluster.peer() as peer:
        refused = await member.refused(remembered=(peer,))
    assert refused.why is Why.CERTIFICATE_REFUSED
    assert "removed" in str(refused)


async def test_another_cluster_is_an_error_where_it_was_named(cluster: Cluster, member: Member, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    async with other.peer() as wrong, cluster.peer(contacts=NEW) as right:
        refused = await member.refused(wrong)
        assert refused.why is Why.WRONG_CLUSTER
        assert wrong in str(refused)
        # An address that is only remembered may have gone to somebody else.
        assert (await member.find(remembered=(wrong, right))).etcd_endpoints == NEW.etcd_endpoints


async def test_one_authority_and_two_cluster_ids(cluster: Cluster, member: Member) -> None:
    async with cluster.peer(cluster_id=str(uuid.uuid4())) as wrong, cluster.peer(contacts=NEW) as right:
        refused = await member.refused(wrong)
        assert refused.why is Why.WRONG_CLUSTER
        assert member.memory.cluster_id in str(refused)
        assert (await member.find(remembered=(wrong, right))).etcd_endpoints == NEW.etcd_endpoints


async def test_its_own_answer_is_no_answer(cluster: Cluster, member: Member, caplog: pytest.LogCaptureFixture) -> None:
    """By another name of the same machine: it would only hear what it remembers."""
    async with cluster.peer(host_id=member.host.newcomer.host_id) as same, cluster.peer(contacts=NEW) as other:
        found = await member.find(same, other)
    assert same not in found.node_addresses
    assert found.etcd_endpoints == NEW.etcd_endpoints


def test_merged() -> None:
    one, two = Contacts(("a", "b"), ("x",)), Contacts(("b", "c", "c"), ("y", "x"))
    assert merged([one, two]) == Contacts(("b", "a", "c"), ("x", "y"))
    assert merged([one, two], without="x").node_addresses == ("y",)
    assert merged([]) == Contacts()


async def test_who_answers_first_may_know_no_more_than_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """All voters moved while this host and the peer that it asks were away: asked once only, it would wait for ever."""
    monkeypatch.setattr(coming_back, "SEEK_EVERY_S", 0.0)
    answers = iter([Contacts(("10.0.0.1:1",)), Contacts(("10.0.0.1:1",)), NEW])
    used: list[Contacts] = []

    async def find() -> Contacts:
        found = next(answers, None)
        if found is None:
            raise JoinRefused(Why.REMOVED, "removed")
        return found

    with pytest.raises(JoinRefused, match="removed"):
        await coming_back.seek(find, used.append)
    assert used[-1] == NEW


@virtual_time
async def test_a_node_that_runs_asks_the_others_when_it_has_lost_its_cluster() -> None:
    """It was cut off for an hour, and all voters are others by now: etcd answers nowhere that it knows of."""
    used: list[Contacts] = []
    asked: list[float] = []
    answers: list[Contacts | Exception | None] = [
        None,
        OSError("too many open files"),
        JoinRefused(Why.WRONG_CLUSTER, "somebody else has that address now"),
        NEW,
        JoinRefused(Why.REMOVED, "this host was removed"),
    ]

    def is_lost() -> bool:
        return asyncio.get_running_loop().time() - began >= 3600

    async def find() -> Contacts:
        asked.append(asyncio.get_running_loop().time() - began)
        answer = answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()  # nobody answers: it is not to hang on to that
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    began = asyncio.get_running_loop().time()
    with pytest.raises(JoinRefused, match="removed"):
        await coming_back.seek_when_lost(is_lost, find, used.append)
    assert used == [NEW]
    assert asked[0] >= 3600, "nobody is asked without need"
