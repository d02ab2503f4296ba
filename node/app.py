"""Puts one node together and runs it: the only place where adapters meet.

Order of a start: the data directory's lock; certificates; the spawner (which first ends whatever an earlier run left)
and etcd, side by side; the old lease is revoked, since its processes are gone by then; a session; the API.
A stop goes backwards, and each step has a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.binary import EtcdNotFound, find_etcd
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.maintenance import Maintenance
from etcd.server import EtcdNotReady, EtcdServer, ServerEvent, ServerEventKind
from etcd.server_flags import EtcdConfig
from etcd.store import TaskStore
from isolation.config import SpawnerConfig
from isolation.errors import HostLacks, SpawnerDied
from isolation.spec import BindMount
from node.admission import Admission
from node.api import TaskCalls
from node.api_drain import DrainCalls
from node.api_log import LogCall
from node.api_nodes import Condition, NodeCalls, OwnView
from node.api_watch import WatchCall
from node.api_why import WhyCall
from node.authority import TrustError
from node.certificates import keep_certificates
from node.cluster import Cluster, ensure_cluster
from node.config import Settings
from node.core.model import Node as NodeRecord
from node.core.retention import Limits
from node.datadir import DataDir, DataDirError, boot_id, machine_id
from node.datadir import Incarnation as LastRun
from node.drains import Drains
from node.host_record import host_of
from node.incarnation import Surroundings
from node.lives import Lives
from node.load import host_capacity
from node.log_forward import RemoteLogs
from node.logs import LogStore
from node.node_views import NodeViews
from node.peer_channels import PeerChannels
from node.retention import Retention
from node.runner import RunContext
from node.server import AddressInUse, Listen, node_service, serving, task_service
from node.session import Session
from node.signer import Signer
from node.store_duties import StoreDuties, remove_logs
from node.supervised_spawner import SupervisedSpawner
from node.trust import Trust, ensure_trust, names_of_this_host
from pilfer.version import VERSION

log = logging.getLogger(__name__)

#: What keeps a node from starting and is the user's to mend: told in one line, without a traceback.
REFUSALS = (
    DataDirError, TrustError, AddressInUse, EtcdNotFound, EtcdNotReady, HostLacks, SpawnerDied, StoreError, OSError,
)  # fmt: skip

#: etcd's ports are this plus 1 and 2 where they are free and --listen says nothing else.
DEFAULT_API_PORT = 7400
ETCD_READY_TIMEOUT_S = 30.0


def main(settings: Settings, join_token: str | None = None) -> int:
    """Runs a node until SIGTERM or SIGINT. Exit status: 0 stopped in order, 1 could not start or broke.

    join_token: needed where settings.peers are to be joined for the first time.
    """
    _start_logging(settings.log_level)
    try:
        asyncio.run(_until_signal(settings, join_token))
    except REFUSALS as error:
        print(f"node: {error}", file=sys.stderr)  # noqa: T201  (the command line's own error)
        return 1
    except BaseExceptionGroup:
        log.exception("the node broke; its tasks are requeued by whoever starts next")
        return 1
    return 0


def _start_logging(level: str) -> None:
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    for name in ("grpc", "asyncio"):  # their debug lines are about themselves, a dozen for each call
        logging.getLogger(name).setLevel(logging.WARNING)


async def _until_signal(settings: Settings, join_token: str | None) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("second signal: killing what still runs")
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await serve(settings, stop=stop, hurry=hurry)


async def serve(settings: Settings, *, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Runs a node until `stop`; `hurry` cuts the stop short. Prints one line on stdout when it serves."""
    with DataDir.open(settings.data_dir) as data:
        trust = ensure_trust(
            data.pki,
            cluster_name="pilfer",
            host_id=data.host_id,
            host_names=names_of_this_host(settings.listen.host if settings.listen else None),
            now=time.time(),
        )
        async with contextlib.AsyncExitStack() as stack:
            await _Node(settings, data, trust).run(stack, stop, hurry)


@dataclass(frozen=True, slots=True)
class _Engines:
    """The child processes, and the ways to them."""

    spawner: SupervisedSpawner
    server: EtcdServer
    etcd: EtcdClient
    batcher: Batcher
    store: TaskStore


class _Node:
    """One run of the node process."""

    def __init__(self, settings: Settings, data: DataDir, trust: Trust) -> None:
        self._settings = settings
        self._data = data
        self._trust = trust
        self._tls = ClientTls(ca=trust.ca_cert, cert=trust.node_cert, key=trust.node_key)
        self._etcd = find_etcd(str(settings.etcd_binary) if settings.etcd_binary else None)
        self._capacity = host_capacity(settings.cpu, settings.memory_bytes)
        self._started_at = time.time()
        #: HOST:PORT that is served, with the real port; empty without --listen.
        self._address = ""

    async def run(self, stack: contextlib.AsyncExitStack, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        settings = self._settings
        engines = await self._start_engines(stack)
        cluster = await ensure_cluster(engines.etcd)
        await self._end_last_run(engines.etcd)
        logs = LogStore(self._data.logs)
        stack.callback(logs.close)
        admission = Admission.of(settings)
        lives = Lives(
            self._surroundings(engines, cluster, logs, admission),
            lambda: self._session(engines),
            on_begin=lambda session, identity: self._remember(session, identity, engines.spawner),
        )
        duties = self._store_duties(engines, logs)
        peers = PeerChannels(self._tls.credentials)
        stack.push_async_callback(peers.close)
        signer = Signer(self._data.pki, peers, lambda: ())
        calls = TaskCalls(
            engines.store, admission, retention_age_s=settings.retention_age_s, refusal=lambda: duties.refusal
        )
        remote_logs = RemoteLogs(engines.etcd, peers.tasks)
        log_call = LogCall(engines.etcd, calls, logs, self._data.host_id, remote_logs)
        tasks = task_service(calls, WatchCall(engines.etcd), log_call)
        drains = Drains(engines.etcd)
        own = OwnView(lambda: self._condition(lives, engines.spawner), drains, admission)
        views = NodeViews(engines.etcd, peers, own)
        nodes = node_service(
            NodeCalls(own, views), DrainCalls(engines.etcd, views), WhyCall(calls, engines.store, views)
        )
        async with serving(tasks, nodes, socket=self._data.socket, listen=self._listen()) as address:
            self._address = address or ""
            identity = await lives.begin()
            async with asyncio.TaskGroup() as group:
                background = (
                    group.create_task(engines.spawner.run(), name="spawner"),
                    group.create_task(duties.run(), name="store duties"),
                    group.create_task(drains.run(), name="drains"),
                    group.create_task(peers.run(), name="channels to peers"),
                    group.create_task(keep_certificates(self._trust, signer), name="certificates"),
                )
                self._announce(identity)
                # What is there by now stays for good: the collector need not walk it again and again.
                gc.freeze()
                await lives.run(stop, hurry)
                for task in background:
                    task.cancel()

    async def _start_engines(self, stack: contextlib.AsyncExitStack) -> _Engines:
        """Starts spawner and etcd side by side; `stack` stops them."""
        spawner = SupervisedSpawner(self._spawner_config())
        server = EtcdServer(self._etcd_config(), on_event=_log_etcd)
        stack.push_async_callback(server.stop)
        stack.push_async_callback(spawner.close)

        async def start_etcd() -> None:
            await server.start()
            await server.wait_ready(ETCD_READY_TIMEOUT_S)

        await asyncio.gather(spawner.start(), start_etcd())
        for lack in spawner.report.not_enforced:
            log.warning("not enforced on this host: %s", lack)
        etcd = await stack.enter_async_context(EtcdClient([server.client_address], self._tls))
        batcher = await stack.enter_async_context(Batcher(etcd))
        return _Engines(spawner, server, etcd, batcher, TaskStore(batcher, etcd))

    def _spawner_config(self) -> SpawnerConfig:
        return SpawnerConfig(
            host_id=self._data.host_id,
            scratch_root=self._data.scratch,
            shares=tuple(BindMount(s.path, s.path, read_only=s.read_only) for s in self._settings.shares),
            allow_host_network=self._settings.allow_host_network,
            hidden=(self._data.path,),
            memory_bytes=self._capacity.memory_bytes,
        )

    def _etcd_config(self) -> EtcdConfig:
        settings = self._settings
        return EtcdConfig(
            binary=self._etcd,
            name=self._data.host_id,
            directory=self._data.etcd,
            tls=self._tls,
            api_port=settings.listen.port if settings.listen else DEFAULT_API_PORT,
            quota_bytes=settings.etcd_quota_bytes,
        )

    async def _end_last_run(self, etcd: EtcdClient) -> None:
        """Revokes the lease of the last run on this host, whose processes the spawner's start has ended, so that its
        tasks are requeued at once and not after the lease's time. Only on the machine and boot that it ran on: in a
        copied directory it is the lease of a node that lives elsewhere."""
        last = self._data.find_incarnation()
        if last is not None and last.is_of_this_boot:
            log.info("node=%s was the last run here: revoking its lease", last.node_id)
            try:
                await etcd.lease_revoke(last.lease_id)
            except StoreError as error:
                log.warning("it could not be revoked and runs out by itself: %s", error)

    def _surroundings(self, engines: _Engines, cluster: Cluster, logs: LogStore, admission: Admission) -> Surroundings:
        return Surroundings(
            etcd=engines.etcd,
            store=engines.store,
            spawner=engines.spawner,
            logs=logs,
            context=RunContext(self._data.host_id, cluster.epoch, self._capacity.memory_bytes, admission),
            capacity=self._capacity,
            queue_window=self._settings.queue_window,
            stop_wait_s=self._settings.stop_wait_s,
        )

    def _session(self, engines: _Engines) -> Session:
        def record(node_id: str) -> bytes:
            return codec.encode_node(self._record(node_id, engines.spawner))

        return Session(
            make_etcd=lambda: EtcdClient([engines.server.client_address], self._tls),
            ttl_s=self._settings.lease_ttl_s,
            host_id=self._data.host_id,
            record=record,
            host=lambda node_id: host_of(self._record(node_id, engines.spawner), last_seen=time.time()),
            key=keys.node,
            on_deadline=engines.spawner.set_deadline,
        )

    def _record(self, node_id: str, spawner: SupervisedSpawner) -> NodeRecord:
        return NodeRecord(
            id=node_id,
            host_id=self._data.host_id,
            name=self._settings.name,
            capacity=self._capacity,
            version=VERSION,
            started_at=self._started_at,
            address=self._address,
            not_enforced=spawner.report.not_enforced,
        )

    def _remember(self, session: Session, identity: Identity, spawner: SupervisedSpawner) -> None:
        """For the next start on this host, should this run not end in order."""
        self._data.write_incarnation(
            LastRun(
                node_id=identity.node_id,
                lease_id=session.lease_id,
                machine_id=machine_id(),
                boot_id=boot_id(),
                spawner_pid=spawner.pid,
            )
        )

    def _store_duties(self, engines: _Engines, logs: LogStore) -> StoreDuties:
        settings = self._settings

        async def on_forgotten(task_ids: Sequence[str]) -> None:
            await remove_logs(logs, task_ids)

        return StoreDuties(
            Maintenance(
                engines.etcd,
                quota_bytes=settings.etcd_quota_bytes,
                compaction_interval_s=settings.compaction_interval_s,
            ),
            Retention(
                engines.etcd,
                engines.batcher,
                Limits(max_age_s=settings.retention_age_s, max_count=settings.retention_count),
                on_forgotten=on_forgotten,
            ),
        )

    def _condition(self, lives: Lives, spawner: SupervisedSpawner) -> Condition:
        life, etcd_version = lives.current, self._etcd.version_text
        if life is None:
            return Condition(self._record("", spawner), "joining", "voter", 0.0, 0, 0.0, 0, etcd_version)
        state = "draining" if life.is_stopping else "at_risk" if life.is_at_risk else "ready"
        reserved = life.ledger.reserved
        return Condition(
            node=self._record(life.identity.node_id, spawner),
            state=state,
            role="voter",
            load=life.ledger.load,
            running=len(life.runner.runs),
            reserved_cpu=reserved.milli_cpu / 1000,
            reserved_memory_bytes=reserved.memory_bytes,
            etcd_version=etcd_version,
        )

    def _listen(self) -> Listen | None:
        if self._settings.listen is None:
            return None
        return Listen(str(self._settings.listen), None if self._settings.insecure else self._trust)

    def _announce(self, identity: Identity) -> None:
        """The one line on stdout: whoever started the node may go on."""
        where = f"unix:{self._data.socket}" + (f" and {self._address}" if self._address else "")
        print(f"node {self._settings.name} ({identity.node_id}) serves on {where}", flush=True)  # noqa: T201
        log.info(
            "node=%s host=%s capacity: %g CPUs, %d bytes",
            identity.node_id,
            self._data.host_id,
            self._capacity.cpu,
            self._capacity.memory_bytes,
        )


def _log_etcd(event: ServerEvent) -> None:
    level = logging.ERROR if event.kind is ServerEventKind.DIED else logging.INFO
    log.log(level, "%s", event)
