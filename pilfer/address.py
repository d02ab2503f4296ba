"""Where a node is to be found, and what is needed to talk to it. Loads no grpc.

An address is `unix:/path/node.sock` or `HOST:PORT`. A TCP port is spoken to with mutual TLS; in plain only on
loopback, and only when that is asked for.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """PILFER_DATA_DIR, else /var/lib/pilfer for root, else pilfer in the XDG data directory: as `node start`."""
    if given := environ.get("PILFER_DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/pilfer")
    # The XDG base directory specification: a relative path there is invalid and is to be ignored.
    xdg = environ.get("XDG_DATA_HOME", "")
    return (Path(xdg) if xdg.startswith("/") else Path.home() / ".local/share") / "pilfer"


def find_target(
    address: str | None = None,
    *,
    certs: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    environ: Mapping[str, str] = os.environ,
) -> UnixTarget | TcpTarget:
    """Where to connect to: the argument, else PILFER_ADDRESS, else the socket in the default data directory.

    certs: else PILFER_CERTS, else pki/client in the default data directory. insecure: else PILFER_INSECURE.
    Raises InvalidAddress.
    """
    text = address or environ.get("PILFER_ADDRESS") or f"unix:{default_data_dir(environ) / SOCKET_NAME}"
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            path = "/" + path.lstrip("/")  # unix:///path is the absolute form of gRPC's naming
        if not path:
            raise InvalidAddress(f"address {text!r} has no path; write unix:/path/{SOCKET_NAME}")
        return UnixTarget(Path(path).absolute())
    host, port = _split(text)
    if insecure is None:
        insecure = environ.get("PILFER_INSECURE", "").lower() in _TRUE
    if insecure:
        if not _is_loopback(host):
            raise InvalidAddress(
                f"{text} is not on this machine: a plain connection is for loopback alone. Leave out --insecure"
                f" (PILFER_INSECURE) and give the certificates' directory with --certs or PILFER_CERTS"
            )
        return TcpTarget(host, port, None)
    found = Path(certs or environ.get("PILFER_CERTS") or default_data_dir(environ) / "pki" / "client")
    missing = [name for name in CERTIFICATE_FILES if not _is_there(found / name)]
    if missing:
        raise InvalidAddress(
            f"{text} is spoken to with mutual TLS, and {found} has no {', '.join(missing)} that can be read. Name a"
            f" directory with {', '.join(CERTIFICATE_FILES)} with --certs or PILFER_CERTS (a node keeps one for its"
            f" users in DATA_DIR/pki/client)"
        )
    return TcpTarget(host, port, found)


def _split(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (separator and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
        raise InvalidAddress(f"{text!r} is no address; write unix:/path/{SOCKET_NAME} or HOST:PORT")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_there(path: Path) -> bool:
    return os.access(path, os.R_OK)
