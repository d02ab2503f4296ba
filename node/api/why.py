"""NodeService, Why: for each node, why a task does not start there.

Gathers what the nodes tell of themselves; what it means is said by `node/core/why.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etcd import codec
from etcd.errors import StoreError
from etcd.store import TaskStore, Versioned
from node.api.errors import answers
from node.api.node_views import NodeViews
from node.api.tasks import TaskCalls, without_stdin
from node.core.model import Requirements
from node.core.requirements import Reservation
from node.core.why import Allowed, Held, NodeFacts, explain
from pilfer.v1 import nodes_pb2

_MILLI = 1000


class WhyCall:
    """Why."""

    def __init__(self, tasks: TaskCalls, store: TaskStore, views: NodeViews) -> None:
        """tasks: finds a task by what a user typed."""
        self._tasks = tasks
        self._store = store
        self._views = views

    @answers
    async def Why(  # noqa: N802  (gRPC's name)
        self, request: nodes_pb2.WhyRequest, _context: Any
    ) -> nodes_pb2.WhyResponse:
        seen = await self._tasks.get(request.id)
        views = [] if seen.task.status.is_terminal else await self._views.collect()
        needs = await self._requirements(sorted({view.held_for for view in views if view.held_for}))
        why = explain(seen.task, [_facts(view, needs) for view in views])
        response = nodes_pb2.WhyResponse(task=without_stdin(codec.task_to_proto(seen.task)), summary=why.summary)
        for of_node in why.nodes:
            response.nodes.add(
                node_id=of_node.node_id,
                name=of_node.name,
                fits=of_node.fits,
                reasons=[obstacle.words for obstacle in of_node.obstacles],
            )
        return response

    async def _requirements(self, task_ids: Sequence[str]) -> dict[str, Requirements]:
        """Of tasks that nodes hold capacity for, where their records can be had."""
        try:
            found = await self._store.read_each(task_ids)
        except StoreError:
            return {}
        return {one.task.id: one.task.spec.requirements for one in found if isinstance(one, Versioned)}


def _facts(view: nodes_pb2.NodeView, needs: dict[str, Requirements]) -> NodeFacts:
    node, allowed = view.node, view.allowed
    return NodeFacts(
        node_id=node.id,
        name=node.name,
        state=view.state,
        pause=view.pause,
        capacity=codec.capacity_from_proto(node.capacity),
        reserved=Reservation(round(view.reserved.cpu * _MILLI), view.reserved.memory_bytes)
        if view.HasField("reserved")
        else None,
        allowed=Allowed(
            tuple(allowed.mount_prefixes),
            tuple((share.path, share.read_only) for share in allowed.shares),
            allowed.host_network,
        )
        if view.HasField("allowed")
        else None,
        held=Held(view.held_for, needs.get(view.held_for)) if view.held_for else None,
    )
