"""What every node of the cluster looks like at this moment, as one node can find out.

Who lives, who is known and gone, and who is drained lies in etcd, read at one revision. How a living node is doing
it tells itself (`Describe`): its key is written once and holds no load. All are asked at the same time, each has a
second; one that does not answer is listed as unreachable, with its running tasks counted in etcd.

Without a quorum the same is read from what a member of etcd last saw, and the answering node's view says so: that is
when an operator needs the list most.

Must not do: decide anything. A state here is news, no ground for a requeue (that is a guard's) or a removal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc

from etcd import cluster_codec, codec, keys
from etcd.errors import OutcomeUnknown, RecordCorrupt, StoreError, StoreUnavailable
from etcd.port import Etcd, KeyRange, KeyValue, Member, Range, RangeResult, Txn
from node.core.find_node import KnownNode
from node.core.model import Drain, Host, Node
from node.core.node_warnings import SeenNode, node_warnings
from node.peer_channels import PeerChannels
from pilfer.v1 import nodes_pb2, records_pb2

Record = TypeVar("Record")

log = logging.getLogger(__name__)

#: A node that has not described itself by then is listed as unreachable.
DESCRIBE_TIMEOUT_S = 1.0
#: A node that answers but cannot reach etcd is worth more than a listing that waits for etcd.
READ_TIMEOUT_S = 2.0

UNREACHABLE = "unreachable"
GONE = "gone"


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """Hosts and their nodes as etcd has them, at one revision."""

    #: Living, by node id.
    nodes: Mapping[str, Node]
    #: By host id; living and gone, without those removed.
    hosts: Mapping[str, Host]
    drained: Mapping[str, Drain]
    #: Read from one member's own copy, because there is no quorum.
    is_stale: bool = False

    @property
    def gone(self) -> list[Host]:
        living = {node.host_id for node in self.nodes.values()}
        return [host for host in self.hosts.values() if host.id not in living]

    def known(self) -> list[KnownNode]:
        """For `find_nodes`: every living node, and every host without one."""
        living = [KnownNode(node.host_id, node.id, node.name, is_living=True) for node in self.nodes.values()]
        return living + [KnownNode(host.id, host.node_id, host.name, is_living=False) for host in self.gone]


async def read_hosts(etcd: Etcd) -> KnownHosts:
    """Raises StoreError where no member of etcd answers at all."""
    ranges = [_range(keys.all_nodes()), _range(keys.all_hosts()), _range(keys.all_drained())]
    try:
        return await _read(etcd, ranges, is_stale=False)
    except (StoreUnavailable, OutcomeUnknown) as error:
        try:
            return await _read(etcd, [replace(one, serializable=True) for one in ranges], is_stale=True)
        except StoreError:
            raise error from None


async def _read(etcd: Etcd, ranges: Sequence[Range], *, is_stale: bool) -> KnownHosts:
    result = await etcd.txn(Txn(success=tuple(ranges)), timeout_s=READ_TIMEOUT_S)
    nodes, hosts, drained = (found.kvs for found in result.results if isinstance(found, RangeResult))
    return KnownHosts(
        {node.id: node for node in _decoded(nodes, codec.decode_node)},
        {host.id: host for host in _decoded(hosts, cluster_codec.decode_host)},
        dict(_decoded(drained, _decode_drain)),
        is_stale,
    )


def _decoded(kvs: Iterable[KeyValue], decode: Callable[[bytes, bytes], Record]) -> Iterator[Record]:
    for kv in kvs:
        try:
            yield decode(kv.key, kv.value)
        except RecordCorrupt as error:
            log.error("ignored: %s", error)  # noqa: TRY400  (a stranger's key, no defect of ours)


def _decode_drain(key: bytes, value: bytes) -> tuple[str, Drain]:
    return keys.parse_cluster_id(key), cluster_codec.decode_drain(key, value)


def _range(of: KeyRange) -> Range:
    return Range(of.key, of.range_end)


class NodeViews:
    """Looks at all nodes, on demand."""

    def __init__(
        self,
        etcd: Etcd,
        peers: PeerChannels,
        own: Callable[[], nodes_pb2.NodeView],
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """own: how this node is doing, as `Describe` answers it."""
        self._etcd = etcd
        self._peers = peers
        self._own = own
        self._wall_clock = wall_clock

    async def collect(self) -> list[nodes_pb2.NodeView]:
        """All living nodes, then all hosts that are known and gone, each by name. Raises StoreError where no member
        of etcd answers."""
        known = await read_hosts(self._etcd)
        own = self._own()
        members, looks = await asyncio.gather(
            self._members(known),
            asyncio.gather(*(self._look(node, own, known) for node in known.nodes.values())),
        )
        self._warn(looks, own, members, known)
        gone = [_gone(host, members, known) for host in known.gone]
        views = [look.view for look in looks]
        return [*sorted(views, key=_by_name), *sorted(gone, key=_by_name)]

    async def of_host(self, host_id: str) -> nodes_pb2.NodeView | None:
        """The view of one host alone: of its living node, else of what is known of it."""
        return next((view for view in await self.collect() if view.node.host_id == host_id), None)

    async def _members(self, known: KnownHosts) -> Sequence[Member]:
        """Without a quorum as one of them knows them: those it lost sight of have their votes still. Empty where etcd
        does not tell."""
        try:
            return await self._etcd.members(timeout_s=READ_TIMEOUT_S, linearizable=not known.is_stale)
        except StoreError as error:
            log.debug("no member list: %s", error)
            return ()

    async def _look(self, node: Node, own: nodes_pb2.NodeView, known: KnownHosts) -> _Look:
        found = _Look(own, clock_ahead_s=0.0) if node.id == own.node.id else await self._ask(node)
        look = found or _Look(nodes_pb2.NodeView(state=UNREACHABLE))
        if found is None:
            look.view.running = await self._count_running(node.id, known)
        view = look.view
        # What etcd has is what the cluster goes by, also for a node that answers.
        view.node.CopyFrom(codec.node_to_proto(node))
        if node.host_id in known.drained and view.state == "ready":
            view.state = "draining"  # it has not heard of it yet
        return look

    async def _ask(self, node: Node) -> _Look | None:
        """What the node says of itself; None where it does not."""
        if not node.address:
            return None
        before = self._wall_clock()
        try:
            stub = self._peers.nodes(node.address)
            view = await stub.Describe(nodes_pb2.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        except (grpc.aio.AioRpcError, OSError) as error:
            log.debug("node=%s at %s does not describe itself: %s", node.id, node.address, error)
            return None
        after = self._wall_clock()
        if view.node.id != node.id:
            return None  # another node has that address by now
        ahead_s = view.now.ToNanoseconds() / 1e9 - (before + after) / 2
        return _Look(view, ahead_s, abs(after - before) / 2)

    async def _count_running(self, node_id: str, known: KnownHosts) -> int:
        running = replace(_range(keys.running_of(node_id)), count_only=True, serializable=known.is_stale)
        try:
            return (await self._etcd.range(running, timeout_s=READ_TIMEOUT_S)).count
        except StoreError as error:
            log.debug("running tasks of node=%s not counted: %s", node_id, error)
            return 0

    def _warn(
        self, looks: Sequence[_Look], own: nodes_pb2.NodeView, members: Sequence[Member], known: KnownHosts
    ) -> None:
        """Fills in roles and warnings."""
        roles = {member.name: "learner" if member.is_learner else "voter" for member in members if member.name}
        for look in looks:
            if members:
                look.view.role = roles.get(look.view.node.host_id, "client")
        found = node_warnings(
            [look.seen() for look in looks],
            me=own.node.id,
            voters=sum(not member.is_learner for member in members),
            gone_voters=[host.name for host in known.gone if roles.get(host.id) == "voter"],
        )
        for look in looks:
            if known.is_stale and look.view.node.id == own.node.id:
                look.view.warnings.append("etcd has no quorum: this list is what one of its members last saw")
            if look.view.state == UNREACHABLE and not look.view.node.address:
                look.view.warnings.append("it serves its unix socket alone: start it with --listen")
            if look.view.pause:
                look.view.warnings.append(f"claims nothing at this moment: {look.view.pause}")
            look.view.warnings.extend(found[look.view.node.id])


@dataclass(frozen=True, slots=True)
class _Look:
    """One node's view, and what its answer tells of its clock."""

    view: nodes_pb2.NodeView
    #: None: it did not answer.
    clock_ahead_s: float | None = None
    clock_error_s: float = 0.0

    def seen(self) -> SeenNode:
        node = self.view.node
        return SeenNode(
            id=node.id,
            name=node.name,
            version=node.version,
            role=self.view.role,
            etcd_version=self.view.etcd_version,
            clock_ahead_s=self.clock_ahead_s,
            clock_error_s=self.clock_error_s,
        )


def _gone(host: Host, members: Sequence[Member], known: KnownHosts) -> nodes_pb2.NodeView:
    node = records_pb2.Node(
        id=host.node_id,
        host_id=host.id,
        name=host.name,
        address=host.address,
        capacity=records_pb2.Capacity(cpu=host.capacity.cpu, memory_bytes=host.capacity.memory_bytes),
        version=host.version,
    )
    view = nodes_pb2.NodeView(node=node, state=GONE)
    view.last_seen.FromNanoseconds(int(host.last_seen * 1e9))
    view.role = next(("learner" if m.is_learner else "voter" for m in members if m.name == host.id), "")
    if host.id in known.drained:
        view.warnings.append("it is drained: when it comes back it claims nothing until node drain --undo")
    return view


def _by_name(view: nodes_pb2.NodeView) -> tuple[str, str]:
    return view.node.name, view.node.host_id
