"""`node nodes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import json_line, note
from node.cli.parameters import json_option
from node.cli.render import NODE_COLUMNS, node_json, node_row, printable
from node.cli.tables import table

if TYPE_CHECKING:
    from pilfer.sync import Client


@click.command("nodes")
@with_client
@json_option
def command(client: Client, as_json: bool) -> None:
    """Show the nodes of the cluster."""
    nodes = client.nodes()
    if as_json:
        for node in nodes:
            json_line(node_json(node))
        return
    table(NODE_COLUMNS, (node_row(node) for node in nodes))
    for node in nodes:
        for lack in node.not_enforced:
            note(f"{printable(node.name)} does not enforce: {printable(lack)}")
