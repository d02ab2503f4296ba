"""Puts one node together and runs it: the only place where adapters meet.

Order of a start: the data directory's lock; certificates; the spawner (which first ends whatever an earlier run left)
and etcd, side by side; the old lease is revoked, since its processes are gone by then; the first incarnation; the API.
A stop goes backwards, and each step has a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.binary import EtcdNotFound, find_etcd
from etcd.client import EtcdClient
from etcd.errors import StoreError
from etcd.store import TaskStore
from isolation.client import SpawnerConfig
from isolation.errors import IsolationError
from isolation.spec import BindMount
from node.admission import Admission
from node.api import TaskCalls
from node.api_log import LogCall
from node.api_nodes import Condition, NodeCalls
from node.api_watch import WatchCall
from node.cluster import Cluster, ensure_cluster
from node.config import Settings
from node.core.model import Capacity
from node.core.model import Node as NodeRecord
from node.datadir import DataDir, DataDirError, boot_id, machine_id
from node.datadir import Incarnation as LastRun
from node.incarnation import Incarnation, Surroundings
from node.load import host_capacity
from node.logs import LogStore
from node.runner import RunContext
from node.server import AddressInUse, Listen, Tasks, serving
from node.session import Session
from node.store_duties import StoreDuties
from node.supervised_spawner import SupervisedSpawner
from node.trust import Trust, TrustError, ensure_trust, names_of_this_host
from pilfer.version import VERSION

log = logging.getLogger(__name__)

#: What keeps a node from starting and is the user's to mend: told in one line, without a traceback.
REFUSALS = (DataDirError, TrustError, AddressInUse, EtcdNotFound, IsolationError, StoreError)

#: To open a session, before it is tried again.
SESSION_OPEN_TIMEOUT_S = 10.0


def main(settings: Settings) -> int:
    """Runs a node until SIGTERM or SIGINT. Exit status: 0 stopped in order, 1 could not start or broke."""
    _start_logging(settings.log_level)
    try:
        asyncio.run(_until_signal(settings))
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


async def _until_signal(settings: Settings) -> None:
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
        async with NodeProcess(settings, data, trust) as node:
            await node.run(stop, hurry)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What runs for as long as the node does."""

    etcd: EtcdClient
    store: TaskStore
    spawner: SupervisedSpawner
    cluster: Cluster
    capacity: Capacity
    duties: StoreDuties


class NodeProcess:
    """One node, from its first child process to its last."""

    def __init__(self, settings: Settings, data: DataDir, trust: Trust) -> None:
        self._settings = settings
        self._data = data
        self._trust = trust
        self._logs = LogStore(data.logs)
        self._admission = Admission.of(settings)
        self._stack = contextlib.AsyncExitStack()
        self._incarnation: Incarnation | None = None
        self._is_stopping = False
        self._parts: _Parts

    async def __aenter__(self) -> NodeProcess:
        try:
            self._parts = await self._assemble()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _assemble(self) -> _Parts:
        settings, data, stack = self._settings, self._data, self._stack
        capacity = host_capacity(settings.cpu, settings.memory_bytes)
        spawner = SupervisedSpawner(self._spawner_config())
        server = self._etcd_server()
        stack.push_async_callback(spawner.close)
        await asyncio.gather(spawner.start(), stack.enter_async_context(server))
        for lack in spawner.report.not_enforced:
            log.warning("not enforced on this host: %s", lack)
        etcd = await stack.enter_async_context(self._etcd_client())
        cluster = await ensure_cluster(etcd)
        await self._end_last_run(etcd)
        batcher = await stack.enter_async_context(Batcher(etcd))
        store = TaskStore(batcher, etcd)
        duties = StoreDuties(etcd, settings, on_deleted=self._remove_logs)
        return _Parts(etcd, store, spawner, cluster, capacity, duties)
