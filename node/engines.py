"""The child processes of a node, and its ways to them and to the other nodes: made and started here, in one place.

The spawner first ends whatever an earlier run left; etcd is a member's or nobody's (`node/cluster/membership.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import grpc

from etcd.batcher import Batcher
from etcd.binary import EtcdBinary, find_etcd
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.server import EtcdServer, ServerEvent, ServerEventKind, plan_ports
from etcd.server_flags import EtcdConfig
from etcd.store import TaskStore
from isolation.config import SpawnerConfig
from isolation.spec import BindMount
from node.cluster.membership import Membership, Role
from node.config import Settings
from node.config_values import DEFAULT_API_PORT
from node.core.model import Capacity
from node.datadir import DataDir
from node.joining.foothold import Foothold
from node.joining.place import Place
from node.load import host_capacity
from node.peer_channels import PeerChannels
from node.running.supervised_spawner import SupervisedSpawner
from node.trust.material import Trust
from pilfer.address import NODE_DNS_NAME

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engines:
    """What runs beside the node's own loop."""

    binary: EtcdBinary
    capacity: Capacity
    spawner: SupervisedSpawner
    membership: Membership
    etcd: EtcdClient
    batcher: Batcher
    store: TaskStore
    peers: PeerChannels
    #: Makes clients of etcd by the endpoints of the moment, for threads of their own.
    make_etcd: Callable[[], EtcdClient]
    #: Makes a client of one member of etcd alone, at HOST:PORT.
    make_member_client: Callable[[str], EtcdClient]


async def start_engines(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    place: Place,
    data: DataDir,
    foothold: Foothold,
    *,
    get_authority: Callable[[PeerChannels], Awaitable[object]],
    on_voters: Callable[[tuple[str, ...]], None],
) -> Engines:
    """Starts the spawner and, where this host is one, the member of etcd, side by side; `stack` stops them.

    get_authority: fetches the authority's key. on_voters: told HOST:PORT of the voters whenever they change.
    """
    binary = find_etcd(str(settings.etcd_binary) if settings.etcd_binary else None)
    capacity = host_capacity(
        settings.cpu, settings.memory_bytes, scratch=data.scratch, scratch_bytes=settings.scratch_limit_bytes
    )
    tls = _tls(foothold.trust)
    peers = PeerChannels(lambda: _channel_credentials(foothold.trust))
    stack.push_async_callback(peers.close)

    def on_change(contacts: tuple[str, ...], _role: Role) -> None:
        on_voters(contacts)

    membership = Membership(
        _etcd_config(settings, place, data, binary, tls),
        make_server=_make_server,
        plan_ports=plan_ports,
        get_authority=lambda: get_authority(peers),
        remembered=foothold.memory.etcd_endpoints,
        on_change=on_change,
    )
    spawner = SupervisedSpawner(_spawner_config(settings, data, capacity))
    stack.push_async_callback(membership.stop)
    stack.push_async_callback(spawner.close)
    others = {*map(str, settings.peers), *foothold.memory.node_addresses} - {place.address}
    async with asyncio.TaskGroup() as group:  # where one cannot start, the other one is not left behind
        group.create_task(spawner.start(), name="start the spawner")
        group.create_task(membership.start(found=foothold.is_founding, may_hear=bool(others)), name="start etcd")
    for lack in spawner.report.not_enforced:
        log.warning("not enforced on this host: %s", lack)
    etcd = await stack.enter_async_context(EtcdClient(membership.endpoints, tls))
    batcher = await stack.enter_async_context(Batcher(etcd))
    return Engines(
        binary=binary,
        capacity=replace(capacity, limits=frozenset(spawner.report.limits)),
        spawner=spawner,
        membership=membership,
        etcd=etcd,
        batcher=batcher,
        store=TaskStore(batcher, etcd),
        peers=peers,
        make_etcd=lambda: EtcdClient(membership.endpoints, tls),
        make_member_client=lambda address: EtcdClient([address], tls),
    )


def _tls(trust: Trust) -> ClientTls:
    return ClientTls(ca=trust.ca_cert, cert=trust.node_cert, key=trust.node_key, server_name=NODE_DNS_NAME)


def _channel_credentials(trust: Trust) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        trust.ca_cert.read_bytes(), trust.node_key.read_bytes(), trust.node_cert.read_bytes()
    )


def _make_server(config: EtcdConfig, wake: Callable[[], None]) -> EtcdServer:
    def on_event(event: ServerEvent) -> None:
        level = logging.ERROR if event.kind is ServerEventKind.DIED else logging.INFO
        log.log(level, "%s", event)
        wake()

    return EtcdServer(config, on_event=on_event)


def _etcd_config(settings: Settings, place: Place, data: DataDir, binary: EtcdBinary, tls: ClientTls) -> EtcdConfig:
    hosts = place.bind_hosts
    return EtcdConfig(
        binary=binary,
        name=data.host_id,
        directory=data.etcd,
        tls=tls,
        client_hosts=hosts,
        peer_host=hosts[-1],
        advertised_host=place.host,
        allowed_hostname=NODE_DNS_NAME,
        api_port=place.listen.port if place.listen else DEFAULT_API_PORT,
        quota_bytes=settings.etcd_quota_bytes,
    )


def _spawner_config(settings: Settings, data: DataDir, capacity: Capacity) -> SpawnerConfig:
    return SpawnerConfig(
        host_id=data.host_id,
        scratch_root=data.scratch,
        lock=data.spawner_lock,
        shares=tuple(BindMount(s.path, s.path, read_only=s.read_only) for s in settings.shares),
        allow_host_network=settings.allow_host_network,
        hidden=(data.path,),
        memory_bytes=capacity.memory_bytes,
        scratch_limit_bytes=capacity.scratch_bytes,
        uid_base=settings.uids.first,
        uid_count=settings.uids.count,
        gid=settings.uids.first,
    )
