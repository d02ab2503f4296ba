"""`node config`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from node.cli.node_options import with_settings
from node.cli.output import json_line
from node.cli.parameters import json_option
from node.cli.tables import Column, table

if TYPE_CHECKING:
    from node.config import Settings


@click.command("config")
@with_settings
@json_option
def command(settings: Settings, as_json: bool) -> None:
    """Show a node's settings and where each comes from.

    A flag counts before PILFER_* in the environment, that before a TOML file, that before the default. Values are
    written as they can be given; an empty one is found out at start.
    """
    from node.config import describe

    if as_json:
        for key, value, origin in describe(settings):
            json_line({"setting": key, "value": value, "origin": origin})
    else:
        table((Column("setting"), Column("value", is_flexible=True), Column("origin")), describe(settings))
