"""Which ports etcd listens on: chosen once, remembered in a file, used again.

The client port may change freely between starts. The peer port is part of the cluster's membership: whoever changes
it must tell the cluster (`EtcdServer` does, for a cluster of one; among several, whoever watches over the
membership).

A port is tried by binding it, as etcd will; between that and etcd's own bind somebody else may take it, which shows
as an etcd that dies at its start, and the next start chooses anew.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ports:
    client: int
    peer: int


def choose_ports(
    file: Path, *, api_port: int | None, client_hosts: Sequence[str], peer_host: str, peer_port: int | None = None
) -> Ports:
    """The remembered ports where they are free, else API port + 1 and + 2 where these are free, else any free ones.

    The client port is one that is free on all of client_hosts. The choice is written to the file before it is
    returned. A remembered peer port that somebody else holds is replaced too; compare with `remembered()` to see it.
    peer_port: taken as it is, since the cluster was told so.
    """
    before = remembered(file)
    client = _first_free(
        client_hosts,
        (before.client if before else None, api_port + 1 if api_port else None),
        not_this=peer_port,
    )
    peer = peer_port or _first_free(
        (peer_host,), (before.peer if before else None, api_port + 2 if api_port else None), not_this=client
    )
    ports = Ports(client, peer)
    if ports != before:
        _write(file, ports)
    return ports


def remembered(file: Path) -> Ports | None:
    """What the file says; None where there is none, or none that can be read (then ports are chosen anew)."""
    try:
        found = json.loads(file.read_text())
        return Ports(int(found["client"]), int(found["peer"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_free(host: str, port: int) -> bool:
    """Whether a listener could be opened there now. Raises OSError for an address that is not ours at all."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def _first_free(hosts: Sequence[str], wanted: tuple[int | None, ...], *, not_this: int | None = None) -> int:
    for port in wanted:
        if port and port <= 65_535 and port != not_this and all(is_free(host, port) for host in hosts):
            return port
    while True:
        with socket.socket(socket.AF_INET6 if ":" in hosts[0] else socket.AF_INET) as probe:
            probe.bind((hosts[0], 0))
            port = int(probe.getsockname()[1])
        if port != not_this and all(is_free(host, port) for host in hosts[1:]):
            return port


def _write(file: Path, ports: Ports) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    with new.open("w") as out:
        json.dump(asdict(ports), out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
