"""Puts one node together and runs it: the only place where adapters meet.

Order of a start: the foothold in a cluster (`node/joining/foothold.py`); the spawner and this host's part in etcd, side
by side (`node/engines.py`); the API, so that peers that come back can ask where the cluster is; etcd's quorum; the old
lease is revoked, since its processes are gone by then; a session. A stop goes backwards, and each step has a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from etcd import codec, keys
from etcd.client import EtcdClient
from etcd.duty import Duty
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.maintenance import Maintenance
from etcd.port import Etcd
from etcd.server import EtcdNotReady
from node.api.nodes import Condition
from node.api.server import Listen, serving
from node.api.services import Services
from node.cluster.drains import Drains
from node.cluster.duties import Duties
from node.cluster.founding import Cluster, WrongCluster, found_cluster, read_when_ready
from node.cluster.host_record import host_of
from node.cluster.membership import MembershipError
from node.cluster.removals import Removals
from node.cluster.session import Session
from node.cluster.voters_duty import VotersDuty
from node.cluster.whereabouts import Whereabouts
from node.config import Settings
from node.core.model import Capacity, Node
from node.core.retention import Limits
from node.core.voters import takes_vote
from node.datadir import DataDir, boot_id, machine_id
from node.datadir import Incarnation as LastRun
from node.engines import Engines, start_engines
from node.incarnation import ExtraDuty, Surroundings
from node.joining.cluster_memory import Contacts
from node.joining.coming_back import find_contacts, seek, seek_when_lost
from node.joining.foothold import Foothold, papers_of
from node.joining.place import Place
from node.lives import Lives
from node.peer_channels import PeerChannels
from node.recovery.snapshots import Snapshots
from node.retention import Retention
from node.running.admission import Admission
from node.running.log_sweep import LogSweep
from node.running.logs import LogStore
from node.running.runner import RunContext
from node.store_duties import StoreDuties, remove_logs
from node.trust.authority_fetch import fetch_authority
from node.trust.certificates import keep_certificates
from node.units import format_size
from pilfer.version import VERSION

log = logging.getLogger(__name__)

#: While etcd has no quorum: how often is looked whether our own etcd has given up, and how often the log says so.
LOOK_EVERY_S = 1.0
SAY_EVERY_S = 10.0


class Assembly:
    """One run of the node process."""

    def __init__(
        self,
        settings: Settings,
        place: Place,
        data: DataDir,
        foothold: Foothold,
        *,
        on_start: Callable[[], None],
    ) -> None:
        """on_start: called when there is a lease; from then on a stop has tasks to give back."""
        self._settings = settings
        self._place = place
        self._data = data
        self._foothold = foothold
        self._on_start = on_start
        self._started_at = time.time()
        self._whereabouts: Whereabouts | None = None
        #: None until there is a quorum.
        self._lives: Lives | None = None
        self._voters: VotersDuty | None = None
        self._node_count = 1

    async def run(self, stack: contextlib.AsyncExitStack, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Until `stop`; `hurry` cuts the stop short. Prints one line on stdout when the node serves."""
        engines = await self._start_engines(stack)
        whereabouts = self._whereabouts = Whereabouts(
            self._foothold.memory, self._place, self._data.host_id, engines.membership
        )
        if self._foothold.is_founding:
            await self._found(engines)
        logs = LogStore(self._data.logs, self._settings.log_limit_bytes)
        stack.callback(logs.close)
        drains, removals = Drains(engines.etcd), Removals(engines.etcd)
        admission = Admission.of(self._settings)
        duties = self._store_duties(engines, logs)
        services = Services(
            self._settings,
            engines,
            self._foothold,
            whereabouts,
            host_id=self._data.host_id,
            admission=admission,
            logs=logs,
            drains=drains,
            removed=removals,
            condition=lambda: self._condition(engines),
            refusal=lambda: duties.refusal,
        )
        async with (
            serving(
                services.tasks,
                services.nodes,
                socket=self._data.socket,
                listen=self._listen(),
                is_removed=lambda host_id: host_id in removals,
            ),
            asyncio.TaskGroup() as group,
        ):
            running: list[ExtraDuty] = [
                ("membership", engines.membership.run(engines.etcd)),
                ("spawner", engines.spawner.run()),
                ("channels", engines.peers.run()),
                ("drains", drains.run()),
                ("removals", removals.run()),
                ("shared watch", services.watch.run()),
                ("certificates", keep_certificates(self._foothold.trust, services.signer)),
            ]
            background = [group.create_task(duty, name=name) for name, duty in running]
            try:
                await self._come_back(engines)
                # Not before it is known whose tasks these are: the log sweep removes logs that no record speaks of.
                background.append(group.create_task(duties.run(), name="store duties"))
                lost = seek_when_lost(lambda: engines.membership.is_lost, *self._contacts(engines))
                background.append(group.create_task(lost, name="seek the lost cluster"))
                await self._end_last_run(engines.etcd)
                # A drained host must not claim before it hears of its drain.
                await drains.wait_known()
                around = self._surroundings(engines, logs, admission, drains)
                await self._live(engines, around, drains, stop, hurry)
            finally:
                for task in background:
                    task.cancel()

    async def _start_engines(self, stack: contextlib.AsyncExitStack) -> Engines:
        return await start_engines(
            stack,
            self._settings,
            self._place,
            self._data,
            self._foothold,
            get_authority=self._get_authority,
            on_voters=self._remember_voters,
        )

    async def _live(
        self, engines: Engines, around: Surroundings, drains: Drains, stop: asyncio.Event, hurry: asyncio.Event
    ) -> None:
        lives = self._lives = Lives(
            around,
            lambda: self._session(engines),
            on_begin=self._remember,
        )
        drains.on_change = lambda: lives.set_drained(drains.drained)
        identity = await lives.begin()
        self._on_start()
        self._announce(identity, engines.capacity)
        # What is there by now stays for good: the collector need not walk it again and again.
        gc.freeze()
        await lives.run(stop, hurry)

    # The cluster

    async def _found(self, engines: Engines) -> None:
        """etcd is empty and ours: the cluster begins."""
        await self._wait_for_quorum(engines)
        self._check(await found_cluster(engines.etcd, self._foothold.memory.cluster_id))
        self._foothold.founded()

    async def _come_back(self, engines: Engines) -> None:
        """When etcd answers, for as long as that takes: meanwhile the others are asked where the cluster is now."""
        find, use = self._contacts(engines)
        seeking = asyncio.create_task(seek(find, use), name="seek the cluster")
        waiting = asyncio.create_task(
            read_when_ready(engines.etcd, lambda: self._wait_for_quorum(engines)), name="wait for a quorum"
        )
        try:
            await asyncio.wait([seeking, waiting], return_when=asyncio.FIRST_COMPLETED)
            if seeking.done():
                seeking.result()
            self._check(await waiting)
        finally:
            for task in (seeking, waiting):
                task.cancel()
            await asyncio.wait([seeking, waiting])

    def _contacts(self, engines: Engines) -> tuple[Callable[[], Awaitable[Contacts]], Callable[[Contacts], None]]:
        """Asks other nodes where the cluster is, and takes in what they say."""
        memory, trust = self._foothold.memory, self._foothold.trust

        async def find() -> Contacts:
            return await find_contacts(
                memory,
                [str(peer) for peer in self._settings.peers],
                lambda: papers_of(trust),
                host_id=self._data.host_id,
                own_address=self._place.address,
            )

        def use(contacts: Contacts) -> None:
            engines.membership.hear_of(contacts.etcd_endpoints)
            if self._whereabouts is not None:
                self._whereabouts.remember(node_addresses=list(contacts.node_addresses))

        return find, use

    async def _wait_for_quorum(self, engines: Engines) -> None:
        """Raises EtcdNotReady when this host's etcd does not come up and there is no other."""
        told_at = time.monotonic()
        while True:
            try:
                await engines.membership.wait_ready(engines.etcd, LOOK_EVERY_S)
            except MembershipError as error:
                hopeless = engines.membership.hopeless
                if hopeless is not None and len(engines.membership.endpoints()) <= 1:
                    raise EtcdNotReady(hopeless) from None
                if time.monotonic() - told_at >= SAY_EVERY_S:
                    told_at = time.monotonic()
                    log.warning("still waiting: %s", error)
            else:
                return

    def _check(self, found: Cluster | None) -> None:
        mine = self._foothold.memory
        if found is None or found.id != mine.cluster_id:
            raise WrongCluster(
                f"etcd holds cluster {found.id if found else '(none)'}, and {mine.path} says {mine.cluster_id}: "
                "the data directory was put together from two; restore both from the same copy"
            )

    async def _get_authority(self, peers: PeerChannels) -> None:
        addresses = self._whereabouts.of_signers if self._whereabouts is not None else list[str]
        await fetch_authority(self._foothold.trust, peers, addresses)

    def _remember_voters(self, endpoints: tuple[str, ...]) -> None:
        if self._whereabouts is not None:
            self._whereabouts.remember(etcd_endpoints=list(endpoints))

    async def _end_last_run(self, etcd: EtcdClient) -> None:
        """Revokes the lease of the last run on this host, whose processes the spawner's start has ended, so that its
        tasks are requeued at once and not after the lease's time. Only on the machine and boot that it ran on, and in
        the directory that it was written in: in a copy it is the lease of a node that may live."""
        last = self._data.find_incarnation()
        if last is not None and self._data.wrote(last):
            log.info("node=%s was the last run here: revoking its lease", last.node_id)
            try:
                await etcd.lease_revoke(last.lease_id)
            except StoreError as error:
                log.warning("it could not be revoked and runs out by itself: %s", error)

    # This node

    def _surroundings(self, engines: Engines, logs: LogStore, admission: Admission, drains: Drains) -> Surroundings:
        return Surroundings(
            etcd=engines.etcd,
            store=engines.store,
            spawner=engines.spawner,
            logs=logs,
            context=RunContext(engines.capacity.memory_bytes, admission),
            capacity=engines.capacity,
            queue_window=self._settings.queue_window,
            stop_wait_s=self._settings.stop_wait_s,
            extra_duties=lambda identity: self._extra_duties(engines, identity),
            drained=lambda: drains.drained,
            on_nodes=self._see_nodes,
        )

    def _snapshots(self, etcd: Etcd) -> Snapshots:
        return Snapshots(
            etcd,
            self._data.snapshots,
            self._data.host_id,
            interval_s=self._settings.snapshot_interval_s,
            count_nodes=lambda: self._node_count,
        )

    def _extra_duties(self, engines: Engines, identity: Identity) -> list[ExtraDuty]:
        duty = Duty(engines.etcd, VotersDuty.DUTY, identity)
        self._voters = VotersDuty(engines.etcd, duty, engines.make_member_client)
        return [("voters", self._voters.run())]

    def _see_nodes(self, nodes: Mapping[str, Node]) -> None:
        self._node_count = len(nodes)
        if self._whereabouts is not None:
            self._whereabouts.set_nodes(nodes)
        if self._voters is not None:
            self._voters.wake()

    def _session(self, engines: Engines) -> Session:
        def record(node_id: str) -> Node:
            return self._record(node_id, engines)

        return Session(
            make_etcd=engines.make_etcd,
            ttl_s=self._settings.lease_ttl_s,
            host_id=self._data.host_id,
            record=lambda node_id: codec.encode_node(record(node_id)),
            host=lambda node_id: host_of(record(node_id), last_seen=time.time()),
            key=keys.node,
            on_deadline=engines.spawner.set_deadline,
        )

    def _record(self, node_id: str, engines: Engines) -> Node:
        # Who is reached by nobody, or has an etcd that is unfit for company, takes no vote.
        is_willing = bool(self._place.address) and takes_vote(engines.binary.version)
        return Node(
            id=node_id,
            host_id=self._data.host_id,
            name=self._name,
            capacity=engines.capacity,
            version=VERSION,
            started_at=self._started_at,
            address=self._place.address,
            not_enforced=engines.spawner.report.not_enforced,
            etcd_peer_url=engines.membership.peer_url if is_willing else "",
            etcd_client_url=engines.membership.client_url if is_willing else "",
        )

    @property
    def _name(self) -> str:
        """As a person says now, or as the cluster was told."""
        is_given = self._settings.origins.get("name", "default") != "default"
        return self._settings.name if is_given else self._foothold.memory.name

    def _remember(self, session: Session, identity: Identity) -> None:
        """For the next start on this host, should this run not end in order."""
        self._data.write_incarnation(
            LastRun(
                node_id=identity.node_id,
                lease_id=session.lease_id,
                machine_id=machine_id(),
                boot_id=boot_id(),
                directory=self._data.identity,
            )
        )

    def _identity(self) -> Identity | None:
        """Of the incarnation that lives now."""
        life = self._lives.current if self._lives is not None else None
        return life.identity if life is not None else None

    def _store_duties(self, engines: Engines, logs: LogStore) -> StoreDuties:
        settings = self._settings
        held = Duties(engines.etcd, self._identity)

        async def on_forgotten(task_ids: Sequence[str]) -> None:
            await remove_logs(logs, task_ids)

        return StoreDuties(
            Maintenance(
                engines.etcd,
                quota_bytes=settings.etcd_quota_bytes,
                compaction_interval_s=settings.compaction_interval_s,
                duties=held,
                own=lambda: self._own_member(engines),
            ),
            Retention(
                engines.etcd,
                engines.batcher,
                Limits(max_age_s=settings.retention_age_s, max_count=settings.retention_count),
                on_forgotten=on_forgotten,
                duties=held,
            ),
            LogSweep(engines.etcd, logs, self._data.logs),
            self._snapshots(engines.etcd),
        )

    @staticmethod
    @contextlib.asynccontextmanager
    async def _own_member(engines: Engines) -> AsyncIterator[Etcd | None]:
        """A client of this host's own member of etcd; None where it has none."""
        server = engines.membership.server
        if server is None:
            yield None
            return
        async with engines.make_member_client(server.client_address) as client:
            yield client

    def _condition(self, engines: Engines) -> Condition:
        life = self._lives.current if self._lives is not None else None
        role, etcd_version = engines.membership.role.value, engines.binary.version_text
        if life is None:
            return Condition(self._record("", engines), "joining", role, 0.0, 0, 0.0, 0, etcd_version)
        state = "draining" if life.is_stopping else "at_risk" if life.is_at_risk else "ready"
        reserved = life.ledger.reserved
        return Condition(
            node=self._record(life.identity.node_id, engines),
            state=state,
            role=role,
            load=life.ledger.load,
            running=life.running,
            reserved_cpu=reserved.milli_cpu / 1000,
            reserved_memory_bytes=reserved.memory_bytes,
            etcd_version=etcd_version,
            held_for=life.held_for or "",
            pause=life.pause,
        )

    def _listen(self) -> Listen | None:
        if self._place.listen is None:
            return None
        return Listen(str(self._place.listen), None if self._settings.insecure else self._foothold.trust)

    def _announce(self, identity: Identity, capacity: Capacity) -> None:
        """The one line on stdout: whoever started the node may go on."""
        where = f"unix:{self._data.socket}" + (f" and {self._place.address}" if self._place.address else "")
        print(f"node {self._name} ({identity.node_id}) serves on {where}", flush=True)  # noqa: T201  (for whoever started it)
        log.info(
            "node=%s host=%s lends %g CPU and %s of memory",
            identity.node_id,
            self._data.host_id,
            capacity.cpu,
            format_size(capacity.memory_bytes),
        )
