"""By which address the other nodes reach this one.

`--listen` says where to listen; what others dial is that host, unless it is a wildcard (then the address that this
host uses towards its peers, or its first one that means something elsewhere) or `--advertise` says otherwise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence

import psutil

from node.config_values import Listen

LOOPBACK = "127.0.0.1"


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
