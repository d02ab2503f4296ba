"""etcd's members in a world: each on a host, a child of its node; who votes is the product's doing.

`Membership` and `VotersDuty` are the node's own. Simulated are the members' processes, which of them reach each other,
and whom a host's clients ask. The data are one, as a quorum's are: with a quorum everybody who reaches a member of it
is answered, without one nobody is. A host that is cut off (one way or both), or paused as a whole, is cut off with its
member. Clients of a member that dies go on with another after a moment.

* QuorumIsKept: no change of ours to the members takes a quorum away.
* VotersAreRestored: once nothing befalls the cluster, three hosts or more have three voters again, all of them well.
"""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from etcd.binary import EtcdBinary
from etcd.duty import Duty
from etcd.endpoints import ClientTls
from etcd.errors import StoreUnavailable
from etcd.identity import Identity
from etcd.port import Member, MemberStatus
from etcd.ports import Ports
from etcd.server_flags import EtcdConfig
from node.cluster.membership import Membership
from node.cluster.voters_duty import VotersDuty
from tests.simulation import clock
from tests.simulation.loop import of_nobody
from tests.simulation.network import Cluster, etcd_urls
from tests.support.fake_membership import MEMBER_ID, FakeMembership

if TYPE_CHECKING:
    from tests.simulation.etcd import SimEtcd
    from tests.simulation.host import Host, SimNode

#: From the loss of a leader, or the return of a quorum, until there is a leader.
ELECTION_S = (0.3, 2.5)
#: Until a client has found another member than the one that died.
REROUTE_S = (0.05, 1.5)
#: Until a node has started its etcd again.
RESTART_S = (0.2, 1.0)
LOOK_S = 0.1
#: From the end of all faults until the votes are right again: the grace of the dead, the time for which a host whose
#: learner was evicted is not asked again, and the steps.
RESTORED_S = 400.0


class SimMembership(FakeMembership):
    """Notices what we do to it."""

    def __init__(self, add: Callable[[str, str, str], None], tell: Callable[[str], None]) -> None:
        super().__init__()
        self._add = add
        self._tell = tell

    def remove(self, member_id: int, now: float) -> None:
        had_quorum, name = self.has_quorum, self._name(member_id)
        super().remove(member_id, now)
        self._check(had_quorum, f"etcd's member of {name} is removed")

    def promote(self, member_id: int, now: float) -> None:
        had_quorum = self.has_quorum
        super().promote(member_id, now)
        self._check(had_quorum, f"etcd's member of {self._name(member_id)} has a vote")

    def _name(self, member_id: int) -> str:
        member = self.members.get(member_id)
        return member.name[-4:] if member is not None else "nobody"

    def _check(self, had_quorum: bool, what: str) -> None:
        self._tell(f"{what}: {len(self.voters)} voters")
        if had_quorum and not self.has_quorum:
            running = sum(self.is_running(voter.id) for voter in self.voters)
            self._add("QuorumIsKept", what, f"{running} of {len(self.voters)} voters are well")


class SimServer:
    """A member's process, as `node.cluster.membership.MemberServer`. What it is lies in its data directory."""

    def __init__(self, members: Members, host: Host, config: EtcdConfig, on_event: Callable[[], None]) -> None:
        assert host.node is not None
        self._members = members
        self._node: SimNode = host.node
        self._config = config
        self._on_event = on_event
        self._supervision: asyncio.Task[None] | None = None
        self._runs = False
        self.peer_url, self.client_url = etcd_urls(host.machine_id)
        self.client_address = f"127.0.0.1:{host.machine_id}"
        self.member_id = 0
        self.is_removed = False
        self.hopeless: str | None = None

    @property
    def is_running(self) -> bool:
        """It dies with its node."""
        return self._runs and not self._node.process.is_dead and not self._node.task.done()

    @property
    def is_answering(self) -> bool:
        return self._members.membership.is_running(self.member_id)

    async def start(self) -> None:
        await asyncio.sleep(self._members.chance.uniform(*RESTART_S))
        self.member_id = self._read_id()
        if self.member_id:
            self._runs = True
            self._supervision = asyncio.create_task(self._live(), name="etcd")

    def _read_id(self) -> int:
        """0: the list of members that it was given is not the cluster's."""
        file = self._config.data_dir / "member" / "wal" / "id"
        if file.exists():
            return int(file.read_text())
        if self._config.state == "new":
            member_id = MEMBER_ID
        else:
            members = self._members.membership.members.values()
            member_id = next((m.id for m in members if not m.name and m.peer_urls == (self.peer_url,)), 0)
        if member_id:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(member_id))
        return member_id

    async def _live(self) -> None:
        while self.member_id in self._members.membership.members:
            await asyncio.sleep(LOOK_S)
            if not self._runs:
                await asyncio.sleep(self._members.chance.uniform(*RESTART_S))
                self._runs = True
                self._on_event()
        self._runs, self.is_removed = False, True
        self._on_event()

    @property
    def name(self) -> str:
        return self._config.name

    def die(self) -> None:
        """kill -9; its node starts it again."""
        self._runs = False

    async def stop(self) -> None:
        self._runs = False
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])


class _MemberClient:
    """A client of one member alone."""

    def __init__(self, members: Members, asker: Host, address: str) -> None:
        self._members = members
        self._asker = asker
        self._address = address

    async def status(self, *, timeout_s: float = 3.0) -> MemberStatus:
        membership = self._members.membership
        await asyncio.sleep(self._members.chance.uniform(0.001, 0.005))
        asked = next((m for m in membership.members.values() if f"https://{self._address}" in m.client_urls), None)
        if asked is None or not membership.is_running(asked.id) or not self._asker.link.reaches_others:
            await asyncio.sleep(timeout_s)
            raise StoreUnavailable(f"simulated: {self._address}: no answer within {timeout_s:g} s")
        leader_id = membership.leader_id if self._members.cluster.has_leader else 0
        return MemberStatus("3.5.30", 0, 0, leader_id, asked.id, 1, asked.is_learner)

    async def move_leader(self, member_id: int, *, timeout_s: float = 5.0) -> None:
        status = await self.status(timeout_s=timeout_s)
        self._members.membership.move_leader(member_id, asked=status.member_id)

    async def close(self) -> None:
        await asyncio.sleep(0)


class Members:
    """Of one world; its first host founds the cluster."""

    def __init__(
        self,
        hosts: list[Host],
        cluster: Cluster,
        chance: Random,
        *,
        directory: Path,
        add: Callable[[str, str, str], None],
        tell: Callable[[str], None],
    ) -> None:
        self._hosts = hosts
        self.cluster = cluster
        self.chance = chance
        self._directory = directory
        self._tell = tell
        self.membership = cluster.store.membership = SimMembership(add, tell)
        self._servers: dict[str, SimServer] = {}
        #: Hosts whose own member ran at the last look.
        self._well: set[str] = set()
        self._is_electing = False
        first, (peer, client) = hosts[0], etcd_urls(hosts[0].machine_id)
        founder = Member(MEMBER_ID, first.id, (peer,), (client,))
        self.membership.members[MEMBER_ID] = founder
        self.membership.stop(MEMBER_ID)
        #: Nobody is answered, by our doing; all hosts count as disturbed.
        self._is_disturbed = False
        self._lose_leader()
        self._look()

    # For a node

    async def membership_of(self, host: Host) -> Membership:
        """The part of this host in etcd, started."""
        config = self._config(host)

        def make_server(config: EtcdConfig, on_event: Callable[[], None]) -> SimServer:
            server = self._servers[host.name] = SimServer(self, host, config, on_event)
            return server

        async def get_authority() -> None:
            await asyncio.sleep(0)

        membership = Membership(
            config,
            make_server=make_server,
            plan_ports=lambda _config: Ports(client=2, peer=1),
            get_authority=get_authority,
            remembered=("somewhere.example:2",),
            on_change=lambda _contacts, _role: None,
            now=clock.wall,
        )
        await membership.start(found=host is self._hosts[0] and not config.has_data)
        return membership

    def duty_of(self, host: Host, etcd: SimEtcd, identity: Identity) -> VotersDuty:
        duty = Duty(etcd, VotersDuty.DUTY, identity)
        return VotersDuty(etcd, duty, lambda address: _MemberClient(self, host, address))

    def _config(self, host: Host) -> EtcdConfig:
        nothing = Path("unused")
        return EtcdConfig(
            EtcdBinary(nothing, (3, 5, 30)),
            name=host.id,
            directory=self._directory / host.name,
            tls=ClientTls(nothing, nothing, nothing),
            advertised_host=f"{host.machine_id}.example",
        )

    def wiped(self, host: Host) -> None:
        """Its data are gone."""
        shutil.rmtree(self._directory / host.name, ignore_errors=True)

    # What befalls them

    def kill_etcd(self, host: Host) -> bool:
        """kill -9 of the member alone; whether there was one."""
        server = self._servers.get(host.name)
        if server is None or not server.is_running:
            return False
        server.die()
        return True

    def _look(self) -> None:
        """Who runs and reaches the others, and what comes of it."""
        membership, before = self.membership, self.membership.leader_id
        well: set[str] = set()
        for host in self._hosts:
            server = self._servers.get(host.name)
            if server is None or server.member_id not in membership.members:
                continue
            is_well = server.is_running and host.link.reaches_others and not host.machine.is_paused
            if not is_well:
                membership.stop(server.member_id)
                continue
            well.add(host.name)
            if not membership.is_running(server.member_id):
                membership.start(
                    server.member_id, clock.monotonic(), name=server.name, client_urls=(server.client_url,)
                )
        for name in self._well - well:
            self._reroute(name)
        self._well = well
        if not membership.has_quorum or membership.leader_id != before:
            self._lose_leader()
        if not self.cluster.has_leader:
            self._elect()
        elif self._is_disturbed:
            self._disturb(is_disturbed=False)
        of_nobody(self._look, delay_s=LOOK_S)

    def _reroute(self, name: str) -> None:
        """Its own clients, and some of the others', ask another member from now on."""
        for host in self._hosts:
            if host.name == name or self.chance.random() < 0.3:
                host.disturb(1)
                host.link.reroute(self.chance.uniform(*REROUTE_S), then=functools.partial(host.disturb, -1))

    def _lose_leader(self) -> None:
        if self.cluster.has_leader:
            self._tell(f"etcd has lost its {'leader' if self.membership.has_quorum else 'quorum'}")
            self.cluster.lose_leader()
        if not self._is_disturbed:
            self._disturb(is_disturbed=True)

    def _disturb(self, *, is_disturbed: bool) -> None:
        self._is_disturbed = is_disturbed
        for host in self._hosts:
            host.disturb(1 if is_disturbed else -1)

    def _elect(self) -> None:
        if self.membership.has_quorum and not self._is_electing:
            self._is_electing = True
            of_nobody(self._elected, delay_s=self.chance.uniform(*ELECTION_S))

    def _elected(self) -> None:
        self._is_electing = False
        if self.membership.has_quorum and not self.cluster.has_leader:
            self._tell(f"etcd has a leader, and {len(self.membership.voters)} voters")
            self.cluster.elect()

    # The end

    @property
    def is_restored(self) -> bool:
        """Three hosts or more: three voters, no learner, all of them well."""
        members = self.membership.members.values()
        voters = self.membership.voters
        return (
            len(voters) == min(len(self._hosts), 3)
            and len(members) == len(voters)
            and all(self.membership.is_running(voter.id) for voter in voters)
            and self.cluster.has_leader
        )

    def words(self) -> str:
        """Who has which part, and who is well."""
        by_id = {host_id: host.name for host in self._hosts for host_id in host.ids}
        return ", ".join(
            f"{by_id.get(m.name, 'nobody yet')}{' (learner)' if m.is_learner else ''}"
            f"{'' if self.membership.is_running(m.id) else ' is not well'}"
            for m in self.membership.members.values()
        )
