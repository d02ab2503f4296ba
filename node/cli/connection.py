"""How the verbs reach a node: the options for it, and the client they get."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from pilfer.address import CERTIFICATE_FILES, TcpTarget, UnixTarget
from pilfer.errors import NotAllowed, Unavailable

if TYPE_CHECKING:
    from pilfer.sync import Client

P = ParamSpec("P")
R = TypeVar("R")

#: How long a verb tries while no node answers: a node that restarts is back within 3 s.
PATIENCE_S = 5.0
#: One call, all its tries together.
CALL_S = 60.0


def with_client(function: Callable[Concatenate[Client, P], R]) -> Callable[..., R]:
    """Adds --address, --certs and --insecure, and gives the verb a client that is closed when it returns."""

    @click.option(
        "--address",
        metavar="ADDR[,ADDR...]",
        help="unix:/path/node.sock or HOST:PORT; of several, the first that answers. [env: PILFER_ADDRESS]",
    )
    @click.option(
        "--certs",
        type=click.Path(file_okay=False),
        help="Directory of ca.crt, client.crt and client.key, for HOST:PORT. [env: PILFER_CERTS]",
    )
    @click.option("--insecure", is_flag=True, default=None, help="Plain TCP, on loopback alone. [env: PILFER_INSECURE]")
    @functools.wraps(function)
    def wrapped(address: str | None, certs: str | None, insecure: bool | None, *args: P.args, **kwargs: P.kwargs) -> R:
        # grpc's own remarks on stderr (a handshake that failed) say nothing that the error does not.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from pilfer.sync import Client

        with Client(address, certs=certs, insecure=insecure, timeout_s=CALL_S, patience_s=PATIENCE_S) as client:
            first, *others = client.targets
            if isinstance(first, UnixTarget) and not others:
                _check_door(first)
            try:
                return function(client, *args, **kwargs)
            except Unavailable as error:
                # Of several TCP addresses, one says it all: they share the certificate.
                tcp = next((target for target in client.targets if isinstance(target, TcpTarget)), None)
                if tcp is not None and (why := _why_not_heard(tcp)):
                    error.add_note(why)
                raise

    return wrapped


def _check_door(target: UnixTarget) -> None:
    """A door that is not ours, which grpc would report as unavailable. One that is not there may come yet."""
    try:
        target.path.stat()
    except PermissionError:
        raise NotAllowed(_not_ours(target)) from None
    except (FileNotFoundError, NotADirectoryError):
        return
    if not os.access(target.path, os.W_OK):
        raise NotAllowed(_not_ours(target))


def _why_not_heard(target: TcpTarget) -> str | None:
    """Where our certificate is over: a node ends the handshake then, which looks like no node at all."""
    if target.certs is None:
        return None
    from cryptography import x509

    path = target.certs / CERTIFICATE_FILES[1]
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return f"{path} holds no certificate that can be read: ask for another (node invite NAME, on any node)"
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if start <= datetime.now(UTC) < end:
        return None
    return (
        f"The certificate {path} is good from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, which is not now: ask"
        " for another (node invite NAME, on any node), or set this machine's clock"
    )


def _not_ours(target: UnixTarget) -> str:
    return (
        f"{target.path} may not be opened by this user: it is the door of the user that the node runs as. Use that"
        f" user, or the node's TCP port with certificates (--address HOST:PORT --certs DIR)"
    )
