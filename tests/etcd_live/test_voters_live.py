"""Voters with real etcd: the duty and each host's own part together, 1 -> 3, deaths, losses, moves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from etcd import cluster_codec, codec, keys
from etcd.client import EtcdClient
from etcd.duty import Duty
from etcd.endpoints import ClientTls
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.port import Delete, Op, Put, Range, Txn
from etcd.server import EtcdServer, plan_ports
from etcd.server_flags import EtcdConfig
from node.cluster.membership import Membership, Role
from node.cluster.voters_duty import VotersDuty
from node.core.model import Capacity, Drain, Node
from node.core.voters import Limits
from tests.support.certificates import make_tls
from tests.support.etcd_process import etcd_binary
from tests.support.wait import wait_until

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

#: The grace is short; all else as in earnest.
LIMITS = Limits(grace_s=3.0, learner_grace_s=2.0)
WAIT_S = 60.0


@dataclass
class Host:
    """One host: its directory, its part in etcd, and what stands for its node."""

    place: int
    directory: Path
    tls: ClientTls
    host_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    membership: Membership = field(init=False)
    etcd: EtcdClient = field(init=False)
    told: list[tuple[tuple[str, ...], Role]] = field(default_factory=list)
    authority_asked: int = 0
    node_id: str = ""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def config(self) -> EtcdConfig:
        return EtcdConfig(etcd_binary(), name=self.host_id, directory=self.directory / "etcd", tls=self.tls)

    async def start(self, *, found: bool = False, remembered: tuple[str, ...] = ()) -> None:
        def make_server(config: EtcdConfig, on_event: Callable[[], None]) -> EtcdServer:
            return EtcdServer(config, on_event=lambda _event: on_event())

        async def get_authority() -> None:
            self.authority_asked += 1

        self.membership = Membership(
            self.config(),
            make_server=make_server,
            plan_ports=plan_ports,
            get_authority=get_authority,
            remembered=remembered or (self.told[-1][0] if self.told else ()),
            on_change=lambda contacts, role: self.told.append((contacts, role)),
        )
        await self.membership.start(found=found)
        self.etcd = EtcdClient(self.membership.endpoints, self.tls)
        self._tasks = [asyncio.create_task(self.membership.run(self.etcd))]
        await self.membership.wait_ready(self.etcd, WAIT_S)
        await self._begin_node()

    async def _begin_node(self) -> None:
        self.node_id = str(uuid.uuid4())
        record = Node(
            id=self.node_id,
            host_id=self.host_id,
            name=f"h{self.place}",
            capacity=Capacity(1, 1),
            version="1",
            started_at=float(self.place),
            etcd_peer_url=self.membership.peer_url,
            etcd_client_url=self.membership.client_url,
        )
        key = keys.node(self.node_id)
        await write(self.etcd, Put(key, codec.encode_node(record)))
        (kv,) = (await self.etcd.range(Range(key))).kvs
        duty = Duty(self.etcd, VotersDuty.DUTY, Identity(self.node_id, self.host_id, kv.create_revision))
        voters = VotersDuty(self.etcd, duty, lambda address: EtcdClient([address], self.tls), limits=LIMITS)
        self._tasks.append(asyncio.create_task(voters.run()))

    async def die(self) -> None:
        """As kill -9 of the node: its etcd dies with it. (Its key is left for others to delete: there is no lease.)"""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        server = self.membership.server
        if isinstance(server, EtcdServer) and server.pid is not None:
            os.kill(server.pid, signal.SIGKILL)
        await self.membership.stop()
        await self.etcd.close()

    @property
    def role(self) -> Role:
        return self.membership.role


@asynccontextmanager
async def hosts(directory: Path, count: int) -> AsyncIterator[list[Host]]:
    """A founder and others that joined as clients; their duties are on."""
    tls = make_tls(directory / "pki")
    made = [Host(place, directory / f"host{place}", tls) for place in range(count)]
    try:
        await made[0].start(found=True)
        for host in made[1:]:
            await host.start(remembered=made[0].membership.endpoints())
        yield made
    finally:
        for host in made:
            with contextlib.suppress(AttributeError):  # it was never started
                await host.die()


async def wait_for_roles(made: list[Host], voters: int) -> None:
    """Until so many of these hosts vote by their own account, and etcd has no other member."""

    async def there() -> bool:
        try:
            members = await made[0].etcd.members()
        except StoreError:
            return False
        by_role = [host for host in made if host.role is Role.VOTER]
        return len(by_role) == len(members) == voters and not any(m.is_learner for m in members)

    await wait_until(there, WAIT_S, what=f"{voters} voters")


async def gone(witness: Host, host: Host) -> None:
    """Its lease ran out."""
    await write(witness.etcd, Delete(keys.node(host.node_id)))


async def write(etcd: EtcdClient, op: Op) -> None:
    """Until it is answered."""

    async def is_answered() -> bool:
        with contextlib.suppress(StoreError):
            await etcd.txn(Txn(success=(op,)))
            return True
        return False

    await wait_until(is_answered, WAIT_S, what="a write is answered")


def leader_of(made: list[Host], leader_id: int) -> Host:
    (name,) = {m.name for m in made[0].membership.members if m.id == leader_id}
    return next(host for host in made if host.host_id == name)


async def test_one_voter_grows_to_three_and_a_dead_leader_is_replaced(tmp_path: Path) -> None:
    async with hosts(tmp_path, 4) as made:
        await wait_for_roles(made, 3)
        assert [h.role for h in made] == [Role.VOTER, Role.VOTER, Role.VOTER, Role.CLIENT]  # the longest-lived
        assert [h.authority_asked >= 1 for h in made] == [False, True, True, False]
        standby = made[3]
        await wait_until(lambda: len(standby.membership.endpoints()) == 3, WAIT_S, what="the standby knows all voters")
        own = made[1].membership
        assert own.server is not None
        assert own.endpoints()[0] == own.server.client_address

        leader = leader_of(made, (await made[0].etcd.status()).leader_id)
        await leader.die()
        rest = [host for host in made if host is not leader]
        await gone(standby, leader)
        await wait_for_roles(rest, 3)
        assert standby.role is Role.VOTER

        # It comes back with the old data: never as the old member.
        await leader.start()
        await wait_until(lambda: leader.role is Role.CLIENT and leader.membership.server is None, WAIT_S)
        assert len(list((leader.directory / "etcd").glob("data.removed-*"))) == 1
        assert not leader.config().has_data
        members = await standby.etcd.members()
        assert leader.host_id not in {m.name for m in members}


async def test_a_voter_that_moves_one_that_lost_its_data_and_one_that_is_drained(tmp_path: Path) -> None:
    async with hosts(tmp_path, 3) as made:
        await wait_for_roles(made, 3)
        first, second, third = made

        # It comes back within the grace period, at another address: the same member, and the others are told.
        before = {m.name: m.id for m in await first.etcd.members()}
        await third.die()
        third.config().ports_file.unlink()
        old_url = next(m.peer_urls[0] for m in first.membership.members if m.name == third.host_id)
        await gone(first, third)
        await third.start()

        async def is_told() -> bool:
            members = await first.etcd.members()
            return {m.name: m.id for m in members} == before and third.membership.peer_url in {
                url for m in members for url in m.peer_urls
            }

        assert third.membership.peer_url != old_url
        await wait_until(is_told, WAIT_S, what="the new address is told")
        await wait_for_roles(made, 3)

        # Its data are lost: it is removed, and comes in as a new member.
        await third.die()
        await gone(first, third)
        shutil.rmtree(third.config().data_dir)
        await third.start()
        assert third.role is Role.CLIENT
        await wait_for_roles(made, 3)
        after = {m.name: m.id for m in await first.etcd.members()}
        assert after.keys() == before.keys()
        assert after[third.host_id] != before[third.host_id]
        assert after[second.host_id] == before[second.host_id]

        # All of them die at once, and come back: the same members.
        dead_nodes = [host.node_id for host in made]
        await asyncio.gather(*(host.die() for host in made))
        await asyncio.gather(*(host.start() for host in made))
        for node_id in dead_nodes:
            await write(first.etcd, Delete(keys.node(node_id)))
        await wait_for_roles(made, 3)
        assert {m.name: m.id for m in await first.etcd.members()} == after

        # Drained, and nobody to take its seat: it keeps it. A fourth host comes: it takes it.
        await write(first.etcd, Put(keys.drained_key(first.host_id), cluster_codec.encode_drain(Drain(1.0))))
        fourth = Host(3, tmp_path / "host3", first.tls)
        made.append(fourth)
        await fourth.start(remembered=second.membership.contacts)
        # The founder holds the duty: it takes its own vote away.
        await wait_until(lambda: first.role is Role.CLIENT, WAIT_S, what="the drained one has no vote")
        await wait_for_roles([second, third, fourth, first], 3)
        assert [h.role for h in made] == [Role.CLIENT, Role.VOTER, Role.VOTER, Role.VOTER]


async def test_two_hosts_stay_at_one_voter_and_a_learner_whose_host_dies_is_evicted(tmp_path: Path) -> None:
    async with hosts(tmp_path, 2) as made:
        founder, other = made
        # Somebody (a duty's holder that died then) added a learner that never starts.
        lost = await founder.etcd.add_learner(["https://127.0.0.1:9"])

        async def is_evicted() -> bool:
            return lost.id not in {m.id for m in await founder.etcd.members()}

        await wait_until(is_evicted, WAIT_S)
        assert [h.role for h in made] == [Role.VOTER, Role.CLIENT]
        assert len(await other.etcd.members()) == 1
        assert not other.config().has_data
