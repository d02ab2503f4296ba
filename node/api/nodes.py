"""NodeService, ListNodes and Describe: who is in the cluster, and how this node is doing.

A node's key holds no load (it is written once, and every node watches it); load is asked of the node itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etcd import codec
from node.api.errors import answers
from node.api.node_views import NodeViews
from node.cluster.drains import Drains
from node.core.model import Node
from node.running.admission import Admission
from pilfer.v1 import nodes_pb2, records_pb2


@dataclass(frozen=True, slots=True)
class Condition:
    """How this node is doing at this moment."""

    #: Its record; with an empty id while it has no lease.
    node: Node
    #: joining (no lease yet), ready, draining (it stops) or at_risk (no answer from etcd, tasks frozen).
    state: str
    #: Of etcd: voter, learner or client.
    role: str
    load: float
    #: Tasks that it has claimed and not given back or ended.
    running: int
    reserved_cpu: float
    reserved_memory_bytes: int
    etcd_version: str
    #: Id of the task that free capacity is held for; empty: none.
    held_for: str = ""
    #: Why it claims nothing at this moment although it is ready, in words; empty: it does.
    pause: str = ""


class OwnView:
    """This node's own view, from what it knows by itself: good without etcd."""

    def __init__(self, condition: Callable[[], Condition], drains: Drains, admission: Admission) -> None:
        self._condition = condition
        self._drains = drains
        self._allowed = nodes_pb2.Allowed(
            mount_prefixes=admission.allow_mounts,
            shares=[nodes_pb2.Allowed.Share(path=path, read_only=read_only) for path, read_only in admission.shares],
            host_network=admission.allow_host_network,
        )

    def __call__(self) -> nodes_pb2.NodeView:
        own = self._condition()
        state = own.state
        if state == "ready" and self._drains.find(own.node.host_id) is not None:
            # "drained" is this node's own word alone: it has heard of the drain, so it claims nothing from here on.
            state = "draining" if own.running else "drained"
        view = nodes_pb2.NodeView(
            node=codec.node_to_proto(own.node),
            state=state,
            role=own.role,
            load=own.load,
            running=own.running,
            reserved=records_pb2.Capacity(cpu=own.reserved_cpu, memory_bytes=own.reserved_memory_bytes),
            etcd_version=own.etcd_version,
            allowed=self._allowed,
            held_for=own.held_for,
            pause=own.pause,
        )
        view.now.FromNanoseconds(time.time_ns())
        return view


class NodeCalls:
    """ListNodes and Describe."""

    def __init__(self, own: OwnView, views: NodeViews) -> None:
        self._own = own
        self._views = views

    @answers
    async def ListNodes(  # noqa: N802  (gRPC's name)
        self, _request: nodes_pb2.ListNodesRequest, _context: Any
    ) -> nodes_pb2.ListNodesResponse:
        return nodes_pb2.ListNodesResponse(nodes=await self._views.collect())

    @answers
    async def Describe(  # noqa: N802
        self, _request: nodes_pb2.DescribeRequest, _context: Any
    ) -> nodes_pb2.NodeView:
        return self._own()
