"""`node start`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from node.cli.node_options import with_settings

if TYPE_CHECKING:
    from node.config import Settings


@click.command("start")
@with_settings
def command(settings: Settings) -> int:
    """Start a node on this machine, in the foreground.

    Prints one line on stdout when it serves, and logs to stderr. SIGTERM and SIGINT end it in order: its tasks are
    given back. Every flag may also be set as PILFER_NAME in the environment, or in a TOML file: see node config.
    """
    from node.app import main

    return main(settings)
