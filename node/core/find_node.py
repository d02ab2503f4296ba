"""Which node a user means: by its name, or by the first digits of its node id or host id.

A name that fits exactly goes before prefixes of ids, or a node called `a` could not be named. Two hosts may share a
name while one of them is gone; then the answer is ambiguous and the ids tell them apart.

Names are never cut short, and one or two characters begin some id in most clusters: `3`, meant for n3, may begin the
host id of n1. So little is nobody's id, though it may fit one alone; what is done to a node may be for good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: So many characters of an id stand for it.
PREFIX_MIN = 4


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
    """All that the text may mean, in the order given: one is an answer, none or several are the caller's to refuse,
    and those of a text that `is_too_short`."""
    candidates = [*known]
    if not given:
        return []
    by_name = [node for node in candidates if node.name == given]
    if by_name:
        return by_name
    prefix = given.lower()
    return [node for node in candidates if node.host_id.startswith(prefix) or node.node_id.startswith(prefix)]


def is_too_short(given: str, found: Iterable[KnownNode]) -> bool:
    """Whether the text is no name of those that it was found to mean, and too little of an id to act upon."""
    return len(given) < PREFIX_MIN and any(node.name != given for node in found)


def naming(node: KnownNode) -> str:
    """For a message in which the user is to tell several apart."""
    return f"{node.name or 'no name'} (host {node.host_id}, {'alive' if node.is_living else 'gone'})"
