"""`node invite`: a certificate for a command line on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure
from node.cli.output import line, note
from node.cli.parameters import DURATION
from node.files import write_atomic
from pilfer.address import CERTIFICATE_FILES

if TYPE_CHECKING:
    from pilfer.sync import Client


@click.command("invite")
@with_client
@click.argument("name")
@click.option("--ttl", "ttl_s", type=DURATION, metavar="TIME", help="How long it is good for. [default: 30d]")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Directory to make and write to. [default: pilfer-NAME]",
)
def command(client: Client, name: str, ttl_s: float | None, output: Path | None) -> None:
    """Make a certificate for a command line on another machine.

    NAME says who it is for. Writes ca.crt, client.crt and client.key, and prints the directory. The key is secret:
    whoever has it may do all that a person may: submit and cancel, make join tokens, drain and remove nodes. It cannot
    be taken back before its time is over.
    """
    directory = output or Path(f"pilfer-{_file_name(name)}")
    # Looked at first: a certificate that cannot be written would be good for nothing, and good for a month.
    there = [file for file in CERTIFICATE_FILES if (directory / file).exists()]
    if there:
        raise Failure(
            f"{directory} holds {', '.join(there)} already, which may be somebody's: nothing was made. Name another "
            "directory with --output",
            ExitCode.FAILURE,
        )
    invitation = client.invite(name, ttl_s=ttl_s)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    contents = (invitation.ca_certificate, invitation.certificate, invitation.key)
    for file, content in zip(CERTIFICATE_FILES, contents, strict=True):
        write_atomic(directory / file, content, mode=0o600)
    line(str(directory))
    address = ",".join(invitation.addresses) or "HOST:PORT"
    note(
        f"Copy it to the other machine, and there: export PILFER_ADDRESS={address} PILFER_CERTS=/path/{directory.name}"
    )
    if not invitation.addresses:
        note("No node can be reached from other machines yet: start one with --listen HOST:PORT.")


def _file_name(name: str) -> str:
    """The name as a part of a path, without what leads elsewhere."""
    return "".join(c if c.isalnum() or c in "-_.@" else "-" for c in name).lstrip(".") or "client"
