"""Whether this host can listen where it is told to.

Tried by a first start before it founds or joins anything (`node/joining/foothold.py`), and said in the same words where
the port is lost between that and the bind itself (`node/api/server.py`).
"""

from __future__ import annotations

import socket
from typing import Any

from node.config_values import Listen


class AddressInUse(Exception):  # noqa: N818  (named like the other refusals at start)
    """The address to listen on cannot be had."""


def cannot_listen(address: str, why: str = "") -> str:
    """why: what the system says."""
    return (
        f"cannot listen on {address}{f' ({why})' if why else ''}: another program has that address, or this host has "
        "not; choose another --listen. Beside another node on this machine leave room: its etcd has the two ports "
        "above its own"
    )


def address_of(listen: Listen) -> str:
    """The first address of the host. Raises AddressInUse for a name that nobody knows."""
    return str(_addresses(listen)[0][1][0])


def free_port(listen: Listen) -> int:
    """One that is free there now; whoever takes it before it is bound shows as an address in use. Raises
    AddressInUse."""
    return _bound(listen)


def try_listen(listen: Listen) -> None:
    """Binds the address and lets it go again. Raises AddressInUse.

    Takes whatever grpc would: one address of a name is enough.
    """
    _bound(listen)


def _bound(listen: Listen) -> int:
    why = ""
    for family, address in _addresses(listen):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if listen.port:
                    # As grpc does: what a dead node's connections leave in TIME_WAIT does not count.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return int(probe.getsockname()[1])
        except OSError as error:
            why = error.strerror or str(error)
    raise AddressInUse(cannot_listen(str(listen), why))


def _addresses(listen: Listen) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise AddressInUse(
            f"cannot listen on {listen}: the host {listen.host} has no address ({why}); give --listen an address of "
            "this machine, a name of it that it can look up, or 0.0.0.0 for all that it has"
        ) from None
    return [(family, address) for family, _, _, _, address in found]
