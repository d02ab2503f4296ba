"""`node start`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings

if TYPE_CHECKING:
    from node.config import Settings

TOKEN_VARIABLE = "PILFER_JOIN_TOKEN"  # noqa: S105  (the name of a variable, no secret)


@click.command("start")
@with_settings
@click.option("--token", metavar="TOKEN", help="The join token itself; better in --token-file or PILFER_JOIN_TOKEN.")
def command(settings: Settings, token: str | None) -> int:
    """Start a node on this machine, in the foreground.

    Alone it is a cluster of one. With --peers it joins theirs, by a token (node token create); in a data directory
    that has joined before it comes back and needs none.

    Prints one line on stdout when it serves, and logs to stderr. SIGTERM and SIGINT end it in order: its tasks are
    given back. Every flag may also be set as PILFER_NAME in the environment, or in a TOML file: see node config.
    """
    # grpc's own lines about a peer's handshake say nothing that the node's do not; whoever wants them asks for them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from node.app import main

    return main(settings, _join_token(settings.token_file, token))


def _join_token(file: Path | None, flag: str | None) -> str | None:
    """From the flag, the environment or the file; neither this process's arguments nor its children keep it."""
    from_environment = os.environ.pop(TOKEN_VARIABLE, None)
    given = flag if flag is not None else from_environment or None
    if given is not None:
        from node.process_title import wipe

        wipe(given)
        return given
    if file is None:
        return None
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"token_file {file} cannot be read: {error}", ExitCode.USAGE) from None
