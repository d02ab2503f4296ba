"""What an operator should know of a node, in words: what is odd about it alone, and beside the others.

What a host cannot enforce is told by its record (`not_enforced`) and not repeated here. Pure: one look at all nodes
in, sentences out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A fence deadline does not depend on wall clocks; records, ages and certificates do.
CLOCK_DIFFERENCE_MAX_S = 1.0

#: The oldest of each line that may be one of several voters: older ones may revoke a living lease or lose watch
#: events (the design, section 5).
_OLDEST_OF_SEVERAL = {(3, 4): (3, 4, 38), (3, 5): (3, 5, 23)}
_TOO_OLD = "etcd {} is too old to be one of several voters: it takes 3.4.38 or newer, or 3.5.23 or newer"


@dataclass(frozen=True, slots=True)
class SeenNode:
    """One living node as the node that asks sees it."""

    id: str
    name: str
    version: str
    #: "voter", "learner", "client"; empty: not known.
    role: str
    #: Empty: it did not answer.
    etcd_version: str
    #: Its wall clock less the asker's; None: it did not answer.
    clock_ahead_s: float | None
    #: How far that may be wrong: half of the round trip.
    clock_error_s: float = 0.0


def node_warnings(
    nodes: Sequence[SeenNode], *, me: str, voters: int, gone_voters: Sequence[str] = ()
) -> Mapping[str, list[str]]:
    """Node id -> warnings; what concerns the whole cluster stands at the node that asks.

    nodes: all living ones. me: the asker's node id. voters: members of etcd with a vote, 0: not known.
    gone_voters: names of those whose node is gone.
    """
    found: dict[str, list[str]] = {node.id: [] for node in nodes}
    names = {node.id: node.name for node in nodes}
    newest = max((node.version for node in nodes), key=_version, default="")
    for node in nodes:
        of_it = found[node.id]
        if node.version != newest:
            of_it.append(f"runs version {node.version}, while {newest} runs elsewhere: upgrade it")
        if len(nodes) > 1 and node.etcd_version and not may_be_one_of_several(node.etcd_version):
            of_it.append(_TOO_OLD.format(node.etcd_version))
        ahead_s = node.clock_ahead_s
        if ahead_s is not None and abs(ahead_s) > CLOCK_DIFFERENCE_MAX_S + node.clock_error_s:
            way = "ahead of" if ahead_s > 0 else "behind"
            of_it.append(f"its clock is {abs(ahead_s):.1f} s {way} that of {names.get(me) or 'this node'}: set it")
    if me in found:
        if voters and voters % 2 == 0:
            found[me].append(f"etcd has {voters} voters: an even number adds risk and no safety")
        for name in gone_voters:
            found[me].append(f"{name} has a vote in etcd and is gone: one more loss weighs more until it is back")
    return found


def may_be_one_of_several(etcd_version: str) -> bool:
    """Whether this etcd may be one of several voters. A version that is no version may not."""
    version = _version(etcd_version)
    if len(version) < 2:
        return False
    return version >= _OLDEST_OF_SEVERAL.get((version[0], version[1]), (3, 5))


def _version(text: str) -> tuple[int, ...]:
    """Its leading numbers: `0.3.0.dev1` is (0, 3, 0)."""
    numbers: list[int] = []
    for part in text.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return tuple(numbers)
