"""Where this node is served, and by which address the others reach it.

`--listen` says where to listen; what others dial is that host, unless it is a wildcard (then the address that this
host uses towards its peers, or its first one that means something elsewhere) or `--advertise` says otherwise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from node.config_values import Listen
from node.listening import address_of, free_port

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """Settled once, at the start: other nodes and certificates are told of it."""

    #: With a real port; None: the unix socket alone.
    listen: Listen | None
    #: By which others reach this host: an address or a name.
    host: str

    @classmethod
    def of(cls, listen: Listen | None, advertise: str | None, peers: Sequence[Listen]) -> Place:
        """From the settings. A port that was left open is chosen now. Raises AddressInUse where the host to listen on
        is none of this machine's."""
        if listen is not None and listen.port == 0:
            listen = replace(listen, port=free_port(listen))
        return cls(listen, advertised_host(listen, advertise, peers))

    @property
    def address(self) -> str:
        """HOST:PORT for other nodes; empty without a TCP port."""
        return str(Listen(self.host, self.listen.port)) if self.listen is not None else ""

    @property
    def bind_hosts(self) -> tuple[str, ...]:
        """Addresses (etcd binds no names) on which etcd serves clients, loopback first; a wildcard stands alone. Raises
        AddressInUse for a name that nobody knows."""
        if self.listen is None:
            return (LOOPBACK,)
        if is_wildcard(self.listen.host):
            return (self.listen.host,)
        return tuple(dict.fromkeys((LOOPBACK, address_of(self.listen))))

    @property
    def names(self) -> tuple[str, ...]:
        """What the node's certificate has to cover, besides the host's name and loopback."""
        return tuple(dict.fromkeys((self.host, self.listen.host))) if self.listen is not None else ()


def advertised_host(listen: Listen | None, advertise: str | None, peers: Sequence[Listen]) -> str:
    """The host part alone. Without a TCP port nobody else reaches this node: loopback."""
    if listen is None:
        return LOOPBACK
    if advertise is not None:
        return advertise
    if not is_wildcard(listen.host):
        return listen.host
    for peer in peers:
        with contextlib.suppress(OSError):
            return source_address(peer)
    return first_address() or LOOPBACK


def is_wildcard(host: str) -> bool:
    """0.0.0.0 or ::"""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def source_address(peer: Listen) -> str:
    """The address of this host that packets to the peer come from. Raises OSError where there is no way to it."""
    family, kind, protocol, _, target = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # Of a datagram socket this sends nothing: it only looks up the way.
        probe.connect(target)
        return str(probe.getsockname()[0])


def first_address() -> str | None:
    """The first address of this host that means something on another one; IPv4 before IPv6."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for family in (socket.AF_INET, socket.AF_INET6)
        for address in addresses
        if address.family == family
    ]
    usable = [text for text in found if "%" not in text and _means_something_elsewhere(text)]
    return next(iter(sorted(usable, key=lambda text: ":" in text)), None)


def _means_something_elsewhere(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)
