"""The client's methods about nodes: a part of `AsyncClient`, in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from pilfer import _convert, _transport
from pilfer._reach import TRY_S, Trying
from pilfer.errors import TimedOut, Unavailable
from pilfer.types import NodeView, RemovedHost, Why
from pilfer.v1 import nodes_pb2

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

Nodes: TypeAlias = list[NodeView]


class NodeMethods(ABC):
    """List, drain, remove, why."""

    @abstractmethod
    async def _call(
        self,
        call: _transport.Call[Request, Response],
        request: Request,
        *,
        try_s: float = TRY_S,
        timeout_s: float | None = None,
        may_be_long: bool = False,
    ) -> Response:
        """A unary call with its retries; see `Reach.call`."""

    @abstractmethod
    def _trying(self, deadline: float | None) -> Trying:
        """For one stream; see `Reach.trying`."""

    async def backup(self) -> AsyncGenerator[tuple[bytes, int], None]:
        """The cluster's data as they are at one moment, in parts, each with the size of the whole: an etcd snapshot,
        for `node restore`. It holds whatever tasks were given, their environment and stdin too.

        Only an iteration that ends without an error gave all of it. Raises Unavailable, also where the connection
        breaks on the way: nothing is repeated once the first part was given.
        """
        trying = self._trying(None)
        while True:
            has_begun = False
            try:
                async with aclosing(trying.stream(_transport.BACKUP, nodes_pb2.BackupRequest())) as chunks:
                    async for chunk in chunks:
                        has_begun = True
                        yield chunk.data, chunk.size_bytes
            except (Unavailable, TimedOut) as error:
                if has_begun:
                    raise
                await trying.pause_after(error)
            else:
                return

    async def nodes(self, *, timeout_s: float | None = None) -> Nodes:
        """Every node that lives, then every host that is known and gone. timeout_s: in place of the client's."""
        response = await self._call(
            _transport.LIST_NODES, nodes_pb2.ListNodesRequest(), timeout_s=timeout_s, may_be_long=True
        )
        return [_convert.node_view(message) for message in response.nodes]

    async def drain(self, node: str, *, undo: bool = False, let_finish: bool = False) -> NodeView:
        """Lets a node claim nothing more, until undo; holds over its restarts. Gives its tasks back at once, except
        those that may not run again, or with let_finish none. Returns how it is doing now, not when it is idle.

        node: its whole name, or a unique prefix of its node id or host id, of 4 characters or more. Raises NotFound,
        and InvalidRequest for a shorter prefix and where several are meant. Repeating it is harmless.
        """
        request = nodes_pb2.DrainRequest(node=node, undo=undo, let_finish=let_finish)
        return _convert.node_view((await self._call(_transport.DRAIN, request, may_be_long=True)).node)

    async def remove(self, node: str) -> RemovedHost:
        """Forgets a host whose node is gone, and bars its return. node: as for `drain`.

        Raises PreconditionFailed while its node lives, and as `drain`. Repeating it is harmless.
        """
        request = nodes_pb2.RemoveRequest(node=node)
        return _convert.removed_host(await self._call(_transport.REMOVE, request, may_be_long=True))

    async def why(self, task_id: str) -> Why:
        """Why a task does not start, node by node; of others, where it runs or how it ended.

        A unique prefix of the id will do. Raises NotFound, and InvalidRequest for an ambiguous prefix.
        """
        request = nodes_pb2.WhyRequest(id=task_id)
        return _convert.why_value(await self._call(_transport.WHY, request, may_be_long=True))
