"""A host: its data directory, and the node that runs on it, if one does.

The node is the real one from the lease to the requeue: Lives, Incarnation, Claimer, Runner, OwnKeys, Sweeper, Drains,
LeaseKeeper, the store and its batcher. Left out are gRPC, etcd's process, files, and the session's thread, whose
coroutines run on the node's own loop. `SimNode.run` follows `node/assembly.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, cast

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.store import TaskStore
from node.app import until_started_or_stopped
from node.cluster.drains import Drains
from node.cluster.duties import Duties
from node.cluster.host_record import HostRefused, host_of
from node.cluster.lease_keeper import LeaseKeeper
from node.cluster.membership import Membership
from node.cluster.session import Session
from node.core.model import Capacity, Node
from node.core.retention import Limits
from node.incarnation import ExtraDuty, Surroundings
from node.lives import Lives
from node.retention import Retention
from node.running.admission import Admission
from node.running.logs import LogStore
from node.running.runner import RunContext
from node.running.supervised_spawner import SupervisedSpawner
from tests.simulation import clock
from tests.simulation.checks import BREAKS
from tests.simulation.loop import Machine, Process, true_time
from tests.simulation.network import Cluster, Link, etcd_urls
from tests.simulation.sandboxes import LEASE_TTL_S, Command, SimSpawner, Watcher
from tests.simulation.stand_ins import SimLogs, SimSession

if TYPE_CHECKING:
    from tests.simulation.etcd import SimEtcd
    from tests.simulation.members import Members

#: After a fault is undone, its host counts as disturbed for so long: pings, retries, a look every 5 s.
AFTERMATH_S = 8.0
STOP_WAIT_S = 2.0


@dataclass
class LastRun:
    """incarnation.json."""

    lease_id: int
    #: The machine that it ran on, and whose directory this was.
    machine_id: str


class SimNode:
    """One run of `node start`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.process = Process(f"node of {host.name}", host.machine)
        self.spawner = SimSpawner(host.id, self.process, host.watcher, host.chance)
        self.started_at = clock.monotonic()
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        #: It has a lease; until then an order to stop breaks the start off.
        self._started = asyncio.Event()
        self._lives: Lives | None = None
        #: Why the cluster takes no node of this host; None: it does.
        self.refused: HostRefused | None = None
        self.task = self.process.start(self._run())
        # Of no process, so that it is told whoever lives by then.
        self.task.add_done_callback(self._ended, context=contextvars.Context())

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Told at once: by the end of the world another node may run in its place."""
        if task.cancelled():
            self._host.broke("nobody may cancel a node as a whole")
        elif (error := task.exception()) is not None:
            self._host.broke(repr(error))
        elif self.refused is not None and not self._host.may_be_refused:
            self._host.broke(f"it is refused for nothing: {self.refused!r}")

    async def _run(self) -> None:
        """A refusal ends the process, with its reason."""
        try:
            live = asyncio.create_task(self._live(), name="node")
            await until_started_or_stopped(live, self._started, self.stop)
            if not self._started.is_set():
                self.spawner.end_all()
        except* HostRefused as refused:
            self.refused = _first_of(refused)
            self._host.tell(f"{self._host.name} is refused: {type(self.refused).__name__}")
            self.spawner.end_all()

    async def _live(self) -> None:
        clock.wall_offset.set(self._host.wall_offset)
        # The spawner's start: nothing of an earlier run is left when it is ready.
        await asyncio.sleep(self._host.chance.uniform(0.05, 0.3))
        self._host.end_leftovers(but=self.spawner)
        if self._host.admission is not None:
            await self._host.admission(self._host)
        async with self._member() as membership, self._store() as (etcd, batcher):
            store = TaskStore(batcher, etcd)
            await self._end_last_run(etcd)
            drains = Drains(etcd)
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(drains.run(), name="drains"),
                    group.create_task(self.spawner.supervise(), name="spawner"),
                    *self._retention(etcd, batcher, group),
                    *([group.create_task(membership.run(etcd), name="membership")] if membership is not None else []),
                ]
                try:
                    await drains.wait_known()
                    lives = Lives(
                        self._surroundings(etcd, store, drains),
                        lambda: cast(Session, SimSession(self._keeper())),
                        on_begin=self._remember,
                    )
                    self._lives = lives
                    drains.on_change = lambda: lives.set_drained(drains.drained)
                    await lives.begin()
                    self._started.set()
                    await lives.run(self.stop, self.hurry)
                finally:
                    for task in background:
                        task.cancel()
        await self.spawner.close()

    @contextlib.asynccontextmanager
    async def _store(self) -> AsyncIterator[tuple[SimEtcd, Batcher]]:
        etcd = self._host.link.client()
        async with Batcher(etcd, random=Random(self._host.chance.getrandbits(64))) as batcher:
            yield etcd, batcher
        await etcd.close()

    async def _end_last_run(self, etcd: SimEtcd) -> None:
        last = self._host.last_run
        if last is not None and last.machine_id == self._host.machine_id:  # else this is a copy (DataDir.wrote)
            with contextlib.suppress(StoreError):
                await etcd.lease_revoke(last.lease_id)

    @contextlib.asynccontextmanager
    async def _member(self) -> AsyncIterator[Membership | None]:
        """This host's part in etcd, where members are simulated."""
        if self._host.members is None:
            yield None
            return
        membership = await self._host.members.membership_of(self._host)
        try:
            yield membership
        finally:
            await membership.stop()

    def _voting(self, etcd: SimEtcd, identity: Identity) -> list[ExtraDuty]:
        members = self._host.members
        return [] if members is None else [("voters", members.duty_of(self._host, etcd, identity).run())]

    def _retention(self, etcd: SimEtcd, batcher: Batcher, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        limits = self._host.limits
        if limits is None:
            return []

        async def on_forgotten(_task_ids: Sequence[str]) -> None:
            await asyncio.sleep(0)

        duties = Duties(etcd, self._identity)
        retention = Retention(
            etcd, batcher, limits, on_forgotten=on_forgotten, duties=duties, clock=clock.wall, monotonic=clock.monotonic
        )
        return [group.create_task(retention.run(), name="retention")]

    def _identity(self) -> Identity | None:
        """Of the incarnation that lives now."""
        life = self._lives.current if self._lives is not None else None
        return life.identity if life is not None else None

    def _surroundings(self, etcd: SimEtcd, store: TaskStore, drains: Drains) -> Surroundings:
        host = self._host
        admission = Admission((), (), allow_host_network=False)
        return Surroundings(
            etcd=etcd,
            store=store,
            spawner=cast(SupervisedSpawner, self.spawner),
            logs=cast(LogStore, SimLogs()),
            # What asks for no memory books none: no bound is enforced here, so that it says what is booked.
            context=RunContext(0, admission),
            capacity=host.capacity,
            queue_window=1000,
            stop_wait_s=STOP_WAIT_S,
            extra_duties=lambda identity: self._voting(etcd, identity),
            drained=lambda: drains.drained,
        )

    def _keeper(self) -> LeaseKeeper:
        host = self._host
        return LeaseKeeper(
            host.link.client,
            ttl_s=LEASE_TTL_S,
            host_id=host.id,
            record=lambda node_id: codec.encode_node(host.record(node_id)),
            host=lambda node_id: host_of(host.record(node_id), last_seen=clock.wall()),
            key=keys.node,
            on_deadline=self.spawner.set_deadline,
            clock=clock.monotonic,
        )

    def _remember(self, session: Session, identity: Identity) -> None:
        self._host.last_run = LastRun(session.lease_id, self._host.machine_id)
        self._host.node_id = identity.node_id


class Host:
    """One machine."""

    def __init__(
        self,
        name: str,
        host_id: str,
        cluster: Cluster,
        watcher: Watcher,
        chance: Random,
        *,
        capacity: Capacity,
        add: Callable[[str, str, str], None],
        tell: Callable[[str], None],
    ) -> None:
        """add: is given each flaw (rule, what, words)."""
        self.name = name
        #: Which machine it is; the host's id travels with a copy of its data directory, and this does not.
        self.machine_id = name
        self.machine = Machine()
        #: As the cluster calls its node.
        self.node_name = name
        self.id = host_id
        #: All that it ever had: a host that was removed comes back with another.
        self.ids = [host_id]
        self.address = f"{name}.example:7400"
        self.watcher = watcher
        self.chance = chance
        self.capacity = capacity
        self._add = add
        self.tell = tell
        self.link = Link(cluster, chance)
        #: Of the wall clock, ahead of the true time; a list, so that all of the host's contexts see it jump.
        self.wall_offset = [0.0]
        self.last_run: LastRun | None = None
        #: Of its newest session. The key of another id is an earlier one's, or a copy's.
        self.node_id = ""
        self.node: SimNode | None = None
        #: Of all nodes of this machine that ever were, as far as their sandboxes may be there. Each has its own below
        #: the cgroup of its host's id.
        self._below: list[SimSpawner] = []
        #: Since when nothing befalls this host; infinity while something does.
        self.calm_since = 0.0
        self._troubles = 0
        #: How many things have befallen it so far.
        self.befallen = 0
        #: etcd's members; None: etcd is elsewhere, and its members are not looked at.
        self.members: Members | None = None
        #: For finished tasks; None: they are kept.
        self.limits: Limits | None = None
        #: What a start does first where the directory is no member's yet: joins.
        self.admission: Callable[[Host], Awaitable[None]] | None = None
        #: The cluster may refuse it: it was removed, or there is a copy of it.
        self.may_be_refused = False

    def record(self, node_id: str) -> Node:
        urls = ("", "") if self.members is None else etcd_urls(self.machine_id)
        return Node(node_id, self.id, self.node_name, self.capacity, "0", clock.EPOCH, self.address, (), *urls)

    @property
    def is_up(self) -> bool:
        return self.node is not None and not self.node.process.is_dead and not self.node.task.done()

    @property
    def spawners(self) -> list[SimSpawner]:
        """That of the node that runs, and those of the dead whose sandboxes may still be there."""
        return [spawner for spawner in self._below if self._is_mine(spawner)]

    def _is_mine(self, spawner: SimSpawner) -> bool:
        """It is below the cgroup of this host's id."""
        return spawner.host_id in self.ids

    def share_cgroups(self, other: Host) -> None:
        """Two nodes, each with a data directory and a host id of its own, on one machine; its clock and its pauses are
        still each one's own here."""
        other._below = self._below

    def disturb(self, by: int) -> None:
        """One thing more befalls it (1), or one less (-1)."""
        self._troubles += by
        self.befallen += max(by, 0)
        self.calm_since = float("inf") if self._troubles else true_time() + AFTERMATH_S

    def broke(self, words: str) -> None:
        """A node of it has ended, and that was neither an order nor a refusal that it has earned."""
        self._add(BREAKS, self.name, words)

    def start(self) -> None:
        self.tell(f"{self.name} starts")
        self.node = SimNode(self)
        self._below.append(self.node.spawner)

    def start_first(self) -> None:
        """Unless something else has started it by now."""
        if self.node is None:
            self.start()

    def start_again(self) -> None:
        """Unless it is up."""
        if not self.is_up:
            self.start()

    def kill(self) -> None:
        """kill -9 of the node process."""
        node = self.node
        if node is None or not self.is_up:
            return
        self.tell(f"{self.name} is killed")
        node.process.kill()
        self.link.abandon()
        node.spawner.node_is_gone()

    def pause_machine(self) -> None:
        """Everything on it stands still, its clock too."""
        self.machine.pause()
        for command in self._commands():
            command.suspend()

    def resume_machine(self) -> None:
        self.machine.resume()
        for command in self._commands():
            command.go_on()

    def _commands(self) -> list[Command]:
        return [command for spawner in self.spawners for command in spawner.in_cgroups]

    def wipe(self, host_id: str) -> None:
        """An empty data directory, and so another id."""
        self.kill()
        self.tell(f"{self.name} is wiped, and is {host_id[-4:]} from now on")
        self.id, self.last_run = host_id, None
        self.ids.append(host_id)
        if self.members is not None:
            self.members.wiped(self)

    def end_leftovers(self, *, but: SimSpawner) -> None:
        """What the spawner does before it is ready: it kills what earlier ones left, frozen or not, below its own
        host's cgroup. Another node of this machine has one of its own."""
        for spawner in self._below:
            if spawner is but or not self._is_mine(spawner):
                continue
            spawner.end_commands("killed")
            spawner.process.kill()
        # The other node's may be dead for a moment, and be started again by it.
        self._below[:] = [
            spawner
            for spawner in self._below
            if spawner is but or not self._is_mine(spawner) or not spawner.process.is_dead or spawner.commands
        ]


def _first_of(group: BaseExceptionGroup[HostRefused]) -> HostRefused:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HostRefused)
    return error
