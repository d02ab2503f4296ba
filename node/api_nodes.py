"""NodeService: who is in the cluster, and how this node is doing.

A node's key holds no load (it is written once, and every node watches it); load is asked of the node itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etcd import codec, keys
from etcd.port import Etcd, Range
from node.api_errors import answers
from pilfer.v1 import nodes_pb2, records_pb2


@dataclass(frozen=True, slots=True)
class Condition:
    """How this node is doing at this moment."""

    node_id: str
    #: ready, draining, at_risk (no answer from etcd, tasks frozen) or joining (no lease yet).
    state: str
    load: float
    running: int
    reserved_cpu: float
    reserved_memory_bytes: int
    etcd_version: str


class NodeCalls:
    """The calls of NodeService."""

    def __init__(self, etcd: Etcd, condition: Callable[[], Condition]) -> None:
        self._etcd = etcd
        self._condition = condition

    @answers
    async def ListNodes(  # noqa: N802  (gRPC's name)
        self, _request: nodes_pb2.ListNodesRequest, _context: Any
    ) -> nodes_pb2.ListNodesResponse:
        nodes = keys.all_nodes()
        found = await self._etcd.range(Range(nodes.key, nodes.range_end))
        own = self._condition()
        response = nodes_pb2.ListNodesResponse()
        for kv in found.kvs:
            node = codec.decode_node(kv.key, kv.value)
            view = response.nodes.add(node=codec.node_to_proto(node), state="ready")
            view.now.FromNanoseconds(time.time_ns())
            if node.id == own.node_id:
                _fill(view, own)
        return response


def _fill(view: nodes_pb2.NodeView, own: Condition) -> None:
    view.state = own.state
    view.role = "voter"
    view.load = own.load
    view.running = own.running
    view.reserved.CopyFrom(records_pb2.Capacity(cpu=own.reserved_cpu, memory_bytes=own.reserved_memory_bytes))
    view.etcd_version = own.etcd_version
