"""A data directory that may be a copy: its member of etcd must not speak in the living original's name."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from node.core.newcomer import Why
from node.joining import alone
from node.joining.alone import wait_alone
from node.joining.cluster_memory import ClusterMemory, Contacts
from node.joining.foothold import papers_of
from node.joining.peer_answers import JoinRefused
from node.trust.material import ensure_trust
from tests.support.joining import DOWN, Cluster, Host

OWN = "10.9.9.99:7400"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster")


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "AGAIN_S", 0.01)


class Member:
    """A host that joined."""

    def __init__(self, host: Host, memory: ClusterMemory) -> None:
        self.id = host.newcomer.host_id
        self.memory = memory
        self._trust = ensure_trust(
            host.pki, cluster_name="test", host_id=self.id, host_names=["web"], now=time.time(), may_found=False
        )

    async def wait(self, *peers: str, remembered: tuple[str, ...] = (), patience_s: float = 30.0) -> None:
        self.memory.contacts = Contacts((), remembered)
        async with asyncio.timeout(40):
            await wait_alone(
                self.memory,
                peers,
                lambda: papers_of(self._trust),
                host_id=self.id,
                own_address=OWN,
                patience_s=patience_s,
            )


@pytest.fixture
async def member(cluster: Cluster, tmp_path: Path) -> Member:
    host = Host.make(tmp_path / "host")
    async with cluster.peer() as peer:
        return Member(host, await host.join([peer], await cluster.token()))


def living(host_id: str, node_id: str) -> Callable[[str], str]:
    return lambda asked: node_id if asked == host_id else ""


async def test_a_living_node_of_this_host_keeps_its_copy_from_starting(cluster: Cluster, member: Member) -> None:
    node_id = str(uuid.uuid4())
    async with cluster.peer() as unaware, cluster.peer(living_node=living(member.id, node_id)) as aware:
        with pytest.raises(JoinRefused, match="copied") as refused:
            await member.wait(unaware, remembered=(DOWN, aware), patience_s=0.0)
    assert refused.value.why is Why.HOST_ALIVE
    assert node_id in str(refused.value)


async def test_the_original_answers_itself(cluster: Cluster, member: Member) -> None:
    """Of a cluster of one, nobody else could."""
    async with cluster.peer(host_id=member.id) as original:
        with pytest.raises(JoinRefused, match=f"it answers at {original}"):
            await member.wait(remembered=(original,), patience_s=0.0)


async def test_its_own_last_lease_is_waited_for(cluster: Cluster, member: Member) -> None:
    """A quick reboot: the cluster has not heard of its end yet."""
    asked: list[str] = []

    def until_asked_thrice(host_id: str) -> str:
        asked.append(host_id)
        return "last-run" if len(asked) < 3 else ""

    async with cluster.peer(living_node=until_asked_thrice) as peer:
        await member.wait(peer)
    assert asked == [member.id] * 3


async def test_nodes_of_other_hosts_are_no_hindrance(cluster: Cluster, member: Member) -> None:
    async with cluster.peer(living_node=living(str(uuid.uuid4()), "other")) as peer:
        await member.wait(peer)


async def test_a_cluster_that_is_down_as_a_whole_comes_up(member: Member) -> None:
    await member.wait(DOWN, remembered=(DOWN, "nonsense"))
    await member.wait()


async def test_another_cluster_at_a_remembered_address_says_nothing(cluster: Cluster, member: Member) -> None:
    async with cluster.peer(cluster_id=str(uuid.uuid4()), living_node=living(member.id, "x")) as peer:
        await member.wait(remembered=(peer,))
