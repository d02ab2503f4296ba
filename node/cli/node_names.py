"""What nodes are called, for tables of tasks: one question to the cluster, and no table waits long for its answer.

A task's record holds ids. A node id is of one run of a node's process and says nothing to people; its host's name does,
also of a node that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pilfer.errors import PilferError

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import Attempt, NodeView, Task

#: The node that is asked gives others 1 s to answer it.
TIMEOUT_S = 1.5
#: Of a node id where no name is known: ids are random, so that a few digits tell them apart, and `node drain` takes
#: them.
_DIGITS = 8


@dataclass(frozen=True, slots=True)
class NodeNames:
    """Names by host id; empty where nobody told."""

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Iterable[NodeView]) -> NodeNames:
        return cls({node.host_id: node.name for node in nodes if node.name})

    def short(self, attempt: Attempt | None) -> str:
        """Its node in a few characters; empty for no attempt."""
        return "" if attempt is None else self.names.get(attempt.host_id) or attempt.node_id[:_DIGITS]

    def full(self, attempt: Attempt) -> str:
        """The node's id, and its name where that is known."""
        name = self.names.get(attempt.host_id)
        return f"{name} ({attempt.node_id})" if name else attempt.node_id

    def tells_apart(self, tasks: Iterable[Task]) -> bool:
        """Whether it is worth saying which node: there are several, or the tasks have run on several hosts."""
        return len(self.names) > 1 or len({attempt.host_id for task in tasks for attempt in task.attempts[-1:]}) > 1


def ask_names(client: Client, tasks: Iterable[Task]) -> NodeNames:
    """The names of the cluster's nodes; not asked for where no task has run."""
    if not any(task.attempts for task in tasks):
        return NodeNames()
    try:
        return NodeNames.of(client.nodes(timeout_s=TIMEOUT_S))
    except PilferError:
        return NodeNames()  # a table of tasks is worth more than the names in it
