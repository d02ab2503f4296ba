"""Several nodes as others see them: NodeService on real grpc servers, over one fake etcd. Nothing runs there.

A test says how each is doing (`ApiNode.condition`), and stops one by closing its server or by taking its key away.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import status_pb2

from etcd import cluster_codec, codec, keys
from etcd.port import Delete, Put, Range, Txn
from etcd.store import TaskStore
from node.api.drain import DrainCalls
from node.api.node_views import NodeViews
from node.api.nodes import Condition, NodeCalls, OwnView
from node.api.server import node_service
from node.api.tasks import TaskCalls
from node.api.why import WhyCall
from node.cluster.drains import Drains
from node.core.model import Capacity, Host, Node
from node.peer_channels import PeerChannels
from node.running.admission import Admission
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_store import FakeStore
from tests.support.tasks import TIMEOUT_S, open_store

GIB = 1 << 30
STARTED_AT = 1_800_000_000.0


def node_record(number: int, **fields: Any) -> Node:
    """The node called n1, n2, ...: its ids begin with that digit, and its host id ends with an f."""
    digit = f"{number:x}"
    node = Node(
        id=f"{digit * 8}-0000-4000-8000-000000000001",
        host_id=f"{digit * 8}-0000-4000-8000-00000000000f",
        name=f"n{number}",
        capacity=Capacity(4.0, 8 * GIB),
        version="0.1.0",
        started_at=STARTED_AT,
    )
    return replace(node, **fields)


def host_of(node: Node, last_seen: float = STARTED_AT) -> Host:
    return Host(node.host_id, node.name, node.address, node.id, node.version, node.capacity, last_seen)


async def come(etcd: FakeEtcd, node: Node) -> None:
    """Writes the node's key, and its host record with it."""
    await etcd.txn(
        Txn(
            success=(
                Put(keys.node(node.id), codec.encode_node(node)),
                Put(keys.host_key(node.host_id), cluster_codec.encode_host(host_of(node))),
            )
        )
    )


async def go(etcd: FakeEtcd, node: Node) -> None:
    """As if its lease had run out."""
    await etcd.txn(Txn(success=(Delete(keys.node(node.id)),)))


@dataclass(slots=True)
class ApiNode:
    """One node: its server, and the parts behind it."""

    condition: Condition
    etcd: FakeEtcd
    drains: Drains
    views: NodeViews
    store: TaskStore
    peers: PeerChannels
    server: grpc.aio.Server
    stub: nodes_pb2_grpc.NodeServiceAsyncStub

    @property
    def node(self) -> Node:
        return self.condition.node


@asynccontextmanager
async def api_nodes(
    store: FakeStore, *records: Node, admission: Admission | None = None
) -> AsyncIterator[list[ApiNode]]:
    """Serves these nodes on loopback, their keys in the store; all are ready, idle, and clients of etcd."""
    async with AsyncExitStack() as stack:
        nodes = []
        for record in records:
            nodes.append(await _serve(stack, store, record, admission or Admission((), (), allow_host_network=False)))
        yield nodes


async def _serve(stack: AsyncExitStack, store: FakeStore, record: Node, admission: Admission) -> ApiNode:
    etcd = await stack.enter_async_context(FakeEtcd(store, clock=time.monotonic))
    tasks = await stack.enter_async_context(open_store(etcd))
    peers = PeerChannels(lambda: None)
    stack.push_async_callback(peers.close)
    drains = Drains(etcd)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    node = replace(record, address=record.address or f"127.0.0.1:{port}")
    condition = Condition(node, "ready", "client", 0.0, 0, 0.0, 0, "3.5.30")
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    stub: nodes_pb2_grpc.NodeServiceAsyncStub = nodes_pb2_grpc.NodeServiceStub(channel)
    own = OwnView(lambda: made.condition, drains, admission)
    views = NodeViews(etcd, peers, own)
    made = ApiNode(condition, etcd, drains, views, tasks, peers, server, stub)
    calls = TaskCalls(tasks, admission, retention_age_s=1e9, refusal=lambda: None)
    parts = (NodeCalls(own, views), DrainCalls(etcd, views), WhyCall(calls, tasks, views))
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(node_service(*parts), server)
    await server.start()
    stack.push_async_callback(server.stop, None)
    await come(etcd, node)
    return made


# -- what tests ask of it ----------------------------------------------------------------------------------------------


async def listed(node: ApiNode) -> dict[str, nodes_pb2.NodeView]:
    """ListNodes of this node: by name, in order."""
    response = await node.stub.ListNodes(nodes_pb2.ListNodesRequest(), timeout=TIMEOUT_S)
    return {view.node.name: view for view in response.nodes}


async def drain(node: ApiNode, name: str, **options: bool) -> nodes_pb2.NodeView:
    return (await node.stub.Drain(nodes_pb2.DrainRequest(node=name, **options), timeout=TIMEOUT_S)).node


async def remove(node: ApiNode, name: str) -> nodes_pb2.RemoveResponse:
    return await node.stub.Remove(nodes_pb2.RemoveRequest(node=name), timeout=TIMEOUT_S)


async def why(node: ApiNode, task_id: str) -> nodes_pb2.WhyResponse:
    return await node.stub.Why(nodes_pb2.WhyRequest(id=task_id), timeout=TIMEOUT_S)


def is_there(store: FakeStore, key: bytes) -> bool:
    return bool(store.read(Range(key)).kvs)


def refused(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError], code: grpc.StatusCode, kind: type[Message]) -> Any:
    """The typed detail of a refusal."""
    assert caught.value.code() is code, caught.value.details()
    packed = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    (detail,) = status_pb2.Status.FromString(packed).details
    message = kind()
    assert detail.Unpack(message)
    return message


def once(
    fault: Fault, method: str, wanted: Callable[[Any], bool] = lambda _: True
) -> Callable[[str, object], Fault | None]:
    """The first such call fails."""
    left = [fault]
    return lambda name, argument: left.pop() if left and name == method and wanted(argument) else None


def writes(txn: Txn) -> bool:
    """Whether it would change anything where its guards hold."""
    return any(isinstance(op, Put | Delete) for op in txn.success)


def no_quorum(method: str, argument: object) -> Fault | None:
    """Reads that need a quorum fail; those that do not are answered."""
    ops = argument.success if isinstance(argument, Txn) else (argument,)
    is_local = all(isinstance(op, Range) and op.serializable for op in ops) or (method, argument) == ("members", False)
    return None if is_local or method not in ("txn", "range", "members") else LOST_BEFORE
