"""Where nodes are to be found, and what is needed to talk to them. Loads no grpc.

An address is `unix:/path/node.sock` or `HOST:PORT`, or several of these with commas between: any node of a cluster
answers any call, so each is as good as the others. A TCP port is spoken to with mutual TLS; in plain only on loopback,
and only when that is asked for. A path that holds a comma cannot be named among addresses; that of the default data
directory may hold one.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pilfer.errors import InvalidAddress

SOCKET_NAME = "node.sock"
#: What a client shows and checks; the names are those that `node start` writes.
CERTIFICATE_FILES = ("ca.crt", "client.crt", "client.key")
#: In every node's certificate, and in no other: what is checked of a node, whatever address it was reached by.
NODE_DNS_NAME = "node.pilfer.internal"

_TRUE = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class UnixTarget:
    """The local admin's door: the permissions of the socket's directory are the check."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpTarget:
    host: str
    port: int
    #: Directory of CERTIFICATE_FILES; None: plain, on loopback alone.
    certs: Path | None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Target: TypeAlias = UnixTarget | TcpTarget


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """PILFER_DATA_DIR, else /var/lib/pilfer for root, else pilfer in the XDG data directory: as `node start`."""
    if given := environ.get("PILFER_DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/pilfer")
    # The XDG base directory specification: a relative path there is invalid and is to be ignored.
    xdg = environ.get("XDG_DATA_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".local/share") / "pilfer"


def find_targets(
    address: str | None = None,
    *,
    certs: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Target, ...]:
    """Where to connect to, the first choice first: what the argument names, else PILFER_ADDRESS, else the socket in the
    default data directory. Never empty, and nothing twice.

    certs: else PILFER_CERTS, else pki/client in the default data directory. insecure: else PILFER_INSECURE.
    Raises InvalidAddress, which names the part of the address that is wrong.
    """
    text = address or environ.get("PILFER_ADDRESS")
    if not text:
        return (UnixTarget((default_data_dir(environ) / SOCKET_NAME).absolute()),)
    if insecure is None:
        insecure = environ.get("PILFER_INSECURE", "").lower() in _TRUE
    found = Path(certs or environ.get("PILFER_CERTS") or default_data_dir(environ) / "pki" / "client")
    parts = [part.strip() for part in text.split(",")]
    targets: dict[Target, None] = {}
    for number, part in enumerate(parts, start=1):
        where = f" ({_ordinal(number)} of {len(parts)} in {text!r})" if len(parts) > 1 else ""
        if part.startswith("unix:"):
            targets[_unix_target(part, where)] = None
        else:
            targets[_tcp_target(part, where, None if insecure else found)] = None
    return tuple(targets)


def _ordinal(number: int) -> str:
    words = ("first", "second", "third")
    return f"the {words[number - 1]}" if number <= len(words) else f"number {number}"


def _unix_target(text: str, where: str) -> UnixTarget:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")  # unix:///path is the absolute form of gRPC's naming
    if not path:
        raise InvalidAddress(f"address {text!r}{where} has no path; write unix:/path/{SOCKET_NAME}")
    return UnixTarget(Path(path).absolute())


def _tcp_target(text: str, where: str, certs: Path | None) -> TcpTarget:
    """certs None: a plain connection is asked for."""
    host, port = _split(text, where)
    if certs is None:
        if not _is_loopback(host):
            raise InvalidAddress(
                f"{text}{where} is not on this machine: a plain connection is for loopback alone. Leave out --insecure"
                f" (PILFER_INSECURE) and give the certificates' directory with --certs or PILFER_CERTS"
            )
        return TcpTarget(host, port, None)
    missing = [name for name in CERTIFICATE_FILES if not _is_there(certs / name)]
    if missing:
        raise InvalidAddress(
            f"{text} is spoken to with mutual TLS, and {certs} has no {', '.join(missing)} that can be read. Name a"
            f" directory with {', '.join(CERTIFICATE_FILES)} with --certs or PILFER_CERTS (a node keeps one for its"
            f" users in DATA_DIR/pki/client)"
        )
    return TcpTarget(host, port, certs)


def _split(text: str, where: str) -> tuple[str, int]:
    """where: words for an error, which of several addresses this is."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (separator and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or not _is_host(host):
        raise InvalidAddress(f"{text!r}{where} is no address; write unix:/path/{SOCKET_NAME} or HOST:PORT")
    return host, int(port)


def _is_host(text: str) -> bool:
    """Whether it can be a host's name or address; what it leads to is found out later."""
    return not any(c.isspace() or c in ";/@" for c in text)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_there(path: Path) -> bool:
    return os.access(path, os.R_OK)
