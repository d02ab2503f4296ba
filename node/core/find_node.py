"""Which node a user means: by its name, or by the first digits of its node id or host id.

A name that fits exactly goes before prefixes of ids, or a node called `a` could not be named. Two hosts may share a
name while one of them is gone; then the answer is ambiguous and the ids tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A host of the cluster and its newest node."""

    host_id: str
    #: Empty where none is known.
    node_id: str
    name: str
    #: Whether that node's key is there.
    is_living: bool


def find_nodes(given: str, known: Iterable[KnownNode]) -> list[KnownNode]:
    """All that the text may mean, in the order given: one is an answer, none or several are the caller's to refuse."""
    candidates = [*known]
    if not given:
        return []
    by_name = [node for node in candidates if node.name == given]
    if by_name:
        return by_name
    prefix = given.lower()
    return [node for node in candidates if node.host_id.startswith(prefix) or node.node_id.startswith(prefix)]


def naming(node: KnownNode) -> str:
    """For a message in which the user is to tell several apart."""
    return f"{node.name or 'no name'} (host {node.host_id}, {'alive' if node.is_living else 'gone'})"
