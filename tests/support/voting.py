"""Hosts around one fake etcd that vote, die, return and lose their data: real duties and memberships, fake processes.

`FakeServer` stands for a member's process: its identity lies in its data directory, as the real one's does, so that a
host that comes back is the member that it was, one whose data are gone is nobody, and a removed one finds out.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from etcd import codec, keys
from etcd.binary import EtcdBinary
from etcd.duty import Duty
from etcd.endpoints import ClientTls
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.port import Delete, Member, Put, Range, Txn
from etcd.ports import Ports
from etcd.server_flags import EtcdConfig
from node.cluster.membership import Membership, Role
from node.cluster.voters_duty import VotersDuty
from node.core.model import Capacity, Node
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_membership import MEMBER_ID
from tests.support.fake_store import FakeStore

#: From a node's death until its key is gone.
TTL_S = 5.0


class FakeServer:
    """A member's process, as `node.cluster.membership.MemberServer`."""

    def __init__(self, world: World, place: int, config: EtcdConfig, on_event: Callable[[], None]) -> None:
        self._world = world
        self._config = config
        self._on_event = on_event
        self._supervision: asyncio.Task[None] | None = None
        self.peer_url: str = world.peer_url(place)
        self.client_url: str = world.client_url(place)
        self.client_address = f"local{place}:1"
        self.member_id = 0
        self.is_removed = False
        self.hopeless: str | None = None

    @property
    def is_answering(self) -> bool:
        return self._supervision is not None and self._world.store.membership.is_running(self.member_id)

    async def start(self) -> None:
        assert self._supervision is None
        if not self._world.program_is_there:
            raise FileNotFoundError("the program is just being replaced")
        file = self._config.data_dir / "member" / "wal" / "id"
        if file.exists():
            self.member_id = int(file.read_text())
        elif self._config.state == "new":
            self.member_id = MEMBER_ID
        else:
            seats = [m for m in self._members.values() if not m.name and m.peer_urls == (self.peer_url,)]
            if not seats:
                return  # etcd: the list that it was given is not the cluster's
            self.member_id = seats[0].id
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(self.member_id))
        self._world.started.append((self._config.name, self.member_id))
        self._supervision = asyncio.create_task(self._live())

    async def _live(self) -> None:
        while self.member_id in self._members:
            if not self._world.store.membership.is_running(self.member_id):
                self._world.store.membership.start(
                    self.member_id, self._now(), name=self._config.name, client_urls=(self.client_url,)
                )
                self._on_event()
            await asyncio.sleep(0.1)
        self.is_removed = True
        self._on_event()

    def tell(self) -> None:
        """Something happened to the process."""
        self._on_event()

    def hang(self) -> None:
        """The process is there and does nothing any more."""
        assert self._supervision is not None
        self._supervision.cancel()
        self._world.store.membership.stop(self.member_id)

    @property
    def _members(self) -> dict[int, Member]:
        return self._world.store.membership.members

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def stop(self) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
        self._world.store.membership.stop(self.member_id)


@dataclass
class Host:
    """One host: its directory, what runs there, what was told."""

    world: World
    place: int
    host_id: str
    moved: int = 0
    has_authority: bool = True
    membership: Membership = field(init=False)
    etcd: FakeEtcd = field(init=False)
    duty: VotersDuty = field(init=False)
    told: list[tuple[tuple[str, ...], Role]] = field(default_factory=list)
    node_id: str = ""
    is_alive: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def config(self) -> EtcdConfig:
        nothing = Path("unused")
        return EtcdConfig(
            EtcdBinary(nothing, (3, 5, 30)),
            name=self.host_id,
            directory=self.world.directory / str(self.place),
            tls=ClientTls(nothing, nothing, nothing),
            advertised_host=self.world.name_of(self.place),
        )

    @property
    def role(self) -> Role:
        return self.membership.role

    async def start(self, *, found: bool = False) -> None:
        """The node starts; nothing waits for etcd to be ready."""
        self.membership = Membership(
            self.config,
            make_server=self._make_server,
            plan_ports=lambda _config: Ports(client=2, peer=1),
            get_authority=self._get_authority,
            remembered=self.told[-1][0] if self.told else ("somewhere:1",),
            on_change=lambda contacts, role: self.told.append((contacts, role)),
            now=lambda: asyncio.get_running_loop().time(),
        )
        await self.membership.start(found=found)
        self.etcd = self.world.client()
        self.is_alive = True
        self._tasks = [
            asyncio.create_task(self.membership.run(self.etcd)),
            asyncio.create_task(self._serve()),
        ]

    async def _get_authority(self) -> None:
        if not self.world.authority_is_there or not self.has_authority:
            raise OSError("nobody hands out the authority's key")

    def _make_server(self, config: EtcdConfig, on_event: Callable[[], None]) -> FakeServer:
        return FakeServer(self.world, self.place, config, on_event)

    async def _serve(self) -> None:
        await self.membership.wait_ready(self.etcd, 1e6)
        self.node_id = str(uuid.UUID(int=self.world.random.getrandbits(128), version=4))
        record = Node(
            id=self.node_id,
            host_id=self.host_id,
            name=f"h{self.place}",
            capacity=Capacity(1, 1),
            version="1",
            started_at=float(self.place),
            etcd_peer_url=self.world.peer_url(self.place),
        )
        key = keys.node(self.node_id)
        await self.world.write(Put(key, codec.encode_node(record)))
        (kv,) = (await self.world.quiet.range(Range(key))).kvs
        duty = Duty(self.etcd, VotersDuty.DUTY, Identity(self.node_id, self.host_id, kv.create_revision))
        self.duty = VotersDuty(self.etcd, duty, self.world.client_of)
        await self.duty.run()

    async def die(self) -> None:
        """kill -9: the node and its etcd; its key goes when its lease has run out."""
        self.is_alive = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.membership.stop()
        await self.etcd.close()
        if self.node_id:
            self.world.background.append(asyncio.create_task(self.world.expire(self.node_id)))
            self.node_id = ""

    def lose_data(self) -> None:
        assert not self.is_alive
        shutil.rmtree(self.config.data_dir, ignore_errors=True)


class World:
    """One fake cluster and its hosts. Host 0 founded it."""

    def __init__(self, directory: Path, count: int, *, seed: int = 0) -> None:
        self.directory = directory
        self.store = FakeStore()
        self.random = Random(seed)
        self.quiet = FakeEtcd(self.store)
        self.hosts = [Host(self, n, f"00000000-0000-4000-8000-{n:012d}") for n in range(count)]
        #: (host id, member id) of each start of a process.
        self.started: list[tuple[str, int]] = []
        self.authority_is_there = True
        self.program_is_there = True
        self.background: list[asyncio.Task[None]] = []
        self._clients: list[FakeEtcd] = []
        first = self.store.membership.members[MEMBER_ID]
        self.store.membership.members[MEMBER_ID] = replace(
            first, name=self.hosts[0].host_id, peer_urls=(self.peer_url(0),), client_urls=(self.client_url(0),)
        )

    def name_of(self, place: int) -> str:
        """By which the others reach the host; another one after a move."""
        return f"at{place}" + "-moved" * self.hosts[place].moved

    def peer_url(self, place: int) -> str:
        return f"https://{self.name_of(place)}:1"

    def client_url(self, place: int) -> str:
        return f"https://{self.name_of(place)}:2"

    def client(self) -> FakeEtcd:
        made = FakeEtcd(self.store)
        self._clients.append(made)
        return made

    def client_of(self, address: str) -> FakeEtcd:
        """Of one member alone."""
        found = [m.id for m in self.store.membership.members.values() if f"https://{address}" in m.client_urls]
        client = self.client()
        client.member_id = found[0] if found else 1
        return client

    async def write(self, op: Put | Delete) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self.quiet.txn(Txn(success=(op,)))
                return

    async def expire(self, node_id: str) -> None:
        await asyncio.sleep(TTL_S)
        await self.write(Delete(keys.node(node_id)))

    async def start(self) -> None:
        await self.hosts[0].start(found=True)
        for host in self.hosts[1:]:
            await asyncio.sleep(0.1)
            await host.start()

    async def close(self) -> None:
        for host in self.hosts:
            if host.is_alive:
                await host.die()
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        for client in (*self._clients, self.quiet):
            await client.close()

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self.store.membership.members.values())

    @property
    def voters(self) -> str:
        """The places of the hosts that vote, in order."""
        by_id = {host.host_id: str(host.place) for host in self.hosts}
        return "".join(sorted(by_id[m.name] for m in self.members if not m.is_learner))

    async def wait_for(self, condition: Callable[[], bool], seconds: float = 120.0, *, what: str = "") -> None:
        """In virtual time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition():
            assert loop.time() < end, f"not within {seconds} s: {what or condition}; members {self.members}"
            await asyncio.sleep(0.05)

    async def wait_for_voters(self, places: str, seconds: float = 120.0) -> None:
        """These vote, and no learner is left."""
        await self.wait_for(
            lambda: self.voters == places and len(self.members) == len(places), seconds, what=f"voters {places}"
        )
