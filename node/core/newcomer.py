"""Whether a newcomer may join, and under which name: pure checks over what the cluster knows.

A peer that is asked reads the living nodes, the removed hosts and the claims on names, asks here, and does what comes
out: claims the name, counts the token's use, has the certificate signed. The token itself is not judged here.

Names. People call nodes by name, so that two living nodes with one name would make every command about them
ambiguous. A name that a person gave is never changed: it is refused where it is taken. A name that was made up (the
host's name) gets a number: web, web-2, web-3. A name is taken while a living node of another host has it, and for
`NAME_CLAIM_S` after another newcomer was given it: two who ask at the same moment both find no living node, and the
claim, written with a guard, lets one of them win. The name of a node that is gone is free: a machine that was
installed anew comes back under its old name. The same host that asks again (its answer was lost) finds its own claim
and is given the same name.

Must not do: I/O, look at a clock, or know of certificates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from node.core import ids
from node.core.model import Node, Removal

#: Certificates and leases bear more than this, but people who compare logs do not; NTP keeps machines within
#: milliseconds, so that half a minute apart means that nothing does.
CLOCK_DIFFERENCE_MAX_S = 30.0
#: From the answer to a join until the newcomer's node key stands. A newcomer that takes longer keeps its name where
#: nobody else asks for it.
NAME_CLAIM_S = 60.0
NAME_MAX_CHARS = 64
#: Numbers tried for a made-up name; a cluster has at most some thousand nodes.
_NUMBERS_MAX = 10_000
HOST_NAMES_MAX = 64
_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){3}")


#: Of google.rpc.ErrorInfo.
ERROR_DOMAIN = "pilfer"


class Why(StrEnum):
    """Why a newcomer is not admitted. The words travel to it in google.rpc.ErrorInfo, in upper case."""

    INVALID = "invalid"
    PROTOCOL = "protocol_differs"
    WRONG_CLUSTER = "wrong_cluster"
    CLOCK = "clock_off"
    REMOVED = "host_removed"
    NAME_TAKEN = "name_taken"
    #: A node of that host lives (or its lease has not run out yet).
    HOST_ALIVE = "host_alive"
    #: Another host's living node has that address (or its lease has not run out yet).
    ADDRESS_TAKEN = "address_taken"
    ADDRESS_UNREACHABLE = "address_unreachable"
    SELF = "peer_is_self"
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105  (a word for what is wrong, no secret)
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    TOKEN_USED_UP = "token_used_up"  # noqa: S105
    TOKEN_UNREADABLE = "token_unreadable"  # noqa: S105
    #: The peer does not accept the certificate that the call was made with.
    CERTIFICATE_REFUSED = "certificate_refused"
    #: What answers there is no node, or one that is older than joining.
    NOT_A_NODE = "not_a_node"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: the field of the request that is to blame, and what to do."""

    why: Why
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What a host says of itself when it asks to join."""

    host_id: str
    name: str
    #: By a person; a name that was made up may be changed by the answer.
    is_name_given: bool
    #: HOST:PORT that it serves.
    address: str
    #: What its certificate is to cover, besides what every node's covers.
    host_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Greeting:
    """What has to agree before anything else counts."""

    protocol: int
    version: str
    cluster_id: str
    #: The newcomer's clock, Unix seconds.
    now: float


@dataclass(frozen=True, slots=True)
class NameClaim:
    """Who was given a name at a join, and when (Unix seconds)."""

    host_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The node that is asked, and how it was reached."""

    protocol: int
    version: str
    cluster_id: str
    host_id: str
    #: Unix seconds.
    now: float
    #: The call came from another machine, not by loopback.
    is_from_elsewhere: bool


def refusal_of_greeting(greeting: Greeting, asked: Asked) -> Refusal | None:
    """What can be said without looking into the cluster: version, cluster and clock."""
    if greeting.protocol != asked.protocol:
        return Refusal(
            Why.PROTOCOL,
            "protocol",
            f"the newcomer speaks protocol {greeting.protocol} (version {greeting.version or 'unknown'}), this cluster"
            f" {asked.protocol} (version {asked.version}): install the cluster's version there",
        )
    if greeting.cluster_id != asked.cluster_id:
        return Refusal(
            Why.WRONG_CLUSTER,
            "cluster_id",
            f"the token is for cluster {greeting.cluster_id or '(none)'}, this node belongs to {asked.cluster_id}:"
            " take a token from a node of this cluster (node token create), or name the other cluster's nodes",
        )
    difference_s = greeting.now - asked.now
    # Not the other way round: a clock that is no number must not pass.
    if not abs(difference_s) <= CLOCK_DIFFERENCE_MAX_S:
        way = "behind" if difference_s < 0 else "ahead of"
        amount = f"{abs(difference_s):.0f} s" if math.isfinite(difference_s) else "far"
        return Refusal(
            Why.CLOCK,
            "now",
            f"the newcomer's clock is {amount} {way} this node's; at most {CLOCK_DIFFERENCE_MAX_S:.0f} s are borne:"
            " set the clocks (NTP) and start it again",
        )
    return None


def refusal_of_newcomer(
    newcomer: Newcomer, asked: Asked, *, nodes: Sequence[Node], removed: Mapping[str, Removal]
) -> Refusal | None:
    """What the cluster has against this host. `nodes`: the living ones; `removed`: by host id."""
    host_id = newcomer.host_id
    if not ids.is_task_id(host_id):
        return Refusal(Why.INVALID, "host_id", f"{host_id!r} is no UUID in canonical lower-case text")
    if host_id == asked.host_id:
        return Refusal(
            Why.SELF,
            "host_id",
            "the newcomer and the node that it asked are one host: name other nodes with --peers. If this is a copy"
            " of a data directory, give the newcomer an empty one",
        )
    if (removal := removed.get(host_id)) is not None:
        return Refusal(
            Why.REMOVED,
            "host_id",
            f"host {host_id} ({removal.name}) was removed from this cluster and may not come back as itself: start it"
            " with an empty --data-dir and it joins as a new host",
        )
    living = next((node for node in nodes if node.host_id == host_id), None)
    if living is not None:
        return Refusal(
            Why.HOST_ALIVE,
            "host_id",
            f"a node of host {host_id} lives already, at {living.address or 'no address'} ({living.name}): if this is"
            " a copy of its data directory, give the newcomer an empty one; if that node has just died, its lease"
            " runs out within seconds",
        )
    return refusal_of_names(newcomer) or _refusal_of_address(newcomer, asked, nodes)


def refusal_of_names(newcomer: Newcomer) -> Refusal | None:
    """Whether its name and host names can be used at all."""
    name = newcomer.name
    if not name or len(name) > NAME_MAX_CHARS or not name.isprintable() or name != name.strip():
        return Refusal(Why.INVALID, "name", f"{name!r} is no name: 1 to {NAME_MAX_CHARS} printable characters")
    if len(newcomer.host_names) > HOST_NAMES_MAX:
        return Refusal(
            Why.INVALID, "host_names", f"{len(newcomer.host_names)} names; a certificate takes {HOST_NAMES_MAX}"
        )
    return None


def _refusal_of_address(newcomer: Newcomer, asked: Asked, nodes: Sequence[Node]) -> Refusal | None:
    address = newcomer.address
    host, colon, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    is_whole = colon and host and (is_bracketed or not set(host) & set(":[]/ "))
    if not (is_whole and port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        return Refusal(
            Why.INVALID, "address", f"{address!r} is not HOST:PORT: start the newcomer with --listen HOST:PORT"
        )
    is_local = is_loopback_host(host)
    if is_wildcard_host(host) or (is_local and asked.is_from_elsewhere):
        meaning = "this machine's own" if is_local else "no address of one machine"
        return Refusal(
            Why.ADDRESS_UNREACHABLE,
            "address",
            f"{address} is {meaning}, and the nodes of this cluster have to reach the newcomer from elsewhere: start it"
            " with --listen, or --advertise, naming an address that the others reach",
        )
    other = next((node for node in nodes if node.address == address), None)
    if other is not None:
        return Refusal(
            Why.ADDRESS_TAKEN,
            "address",
            f"{address} is the address of node {other.name} ({other.id}), which lives: give the newcomer another"
            " --listen or --advertise; if that node has just died, its lease runs out within seconds",
        )
    return None


def is_loopback_host(host: str) -> bool:
    """Of HOST:PORT the host, an IPv6 one with or without its brackets. Other names than localhost are not looked up.

    By text alone, since the core has no library of addresses: 127.0.0.0/8 (RFC 5735), ::1 and its mapped forms.
    """
    bare = _bare(host)
    return bare in ("localhost", "::1", "0:0:0:0:0:0:0:1") or bool(_LOOPBACK.fullmatch(_without_mapping(bare)))


def is_wildcard_host(host: str) -> bool:
    """0.0.0.0 or ::, as `is_loopback_host`."""
    return _without_mapping(_bare(host)) in ("0.0.0.0", "::", "0:0:0:0:0:0:0:0", "*")  # noqa: S104  (compared with)


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]").rstrip(".").lower()


def _without_mapping(host: str) -> str:
    """An IPv4 address mapped into IPv6 (RFC 4291, section 2.5.5.2) as IPv4."""
    return host.removeprefix("::ffff:")


# -- names


def candidates(newcomer: Newcomer) -> Iterator[str]:
    """The names to be tried for it, the best first: its own alone where a person gave it."""
    yield newcomer.name
    if not newcomer.is_name_given:
        yield from (_numbered(newcomer.name, number) for number in range(2, _NUMBERS_MAX))


def _numbered(name: str, number: int) -> str:
    ending = f"-{number}"
    return name[: NAME_MAX_CHARS - len(ending)] + ending


def names_of_others(nodes: Sequence[Node], host_id: str) -> frozenset[str]:
    """Names that living nodes of other hosts have."""
    return frozenset(node.name for node in nodes if node.host_id != host_id)


def may_claim(name: str, claim: NameClaim | None, *, host_id: str, taken: Collection[str], now: float) -> bool:
    """Whether this host may have the name. `taken`: of `names_of_others`; `claim`: the newest on this name.

    A claim from the future (the claimer's clock is ahead) counts as long as one from now, and no longer than twice
    the difference of clocks that is borne.
    """
    if name in taken:
        return False
    if claim is None or claim.host_id == host_id:
        return True
    return not -2 * CLOCK_DIFFERENCE_MAX_S <= now - claim.at < NAME_CLAIM_S


def refusal_of_name(newcomer: Newcomer) -> Refusal:
    """When none of the candidates is free."""
    return Refusal(
        Why.NAME_TAKEN,
        "name",
        f"a living node of another host is called {newcomer.name!r}, or was given that name within the last"
        f" {NAME_CLAIM_S:.0f} s: choose another --name",
    )
