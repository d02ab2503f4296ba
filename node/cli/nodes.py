"""`node nodes`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import json_line, note
from node.cli.parameters import json_option
from node.cli.render_nodes import NODE_COLUMNS, node_json, node_remarks, node_row
from node.cli.tables import table

if TYPE_CHECKING:
    from pilfer.sync import Client


@click.command("nodes")
@with_client
@json_option
def command(client: Client, as_json: bool) -> None:
    """Show the nodes of the cluster.

    Those that live, and hosts that are known and gone. What an operator should know of them follows on stderr.
    """
    nodes = client.nodes()
    if as_json:
        for node in nodes:
            json_line(node_json(node))
        return
    now = datetime.now(UTC)
    table(NODE_COLUMNS, (node_row(node, now) for node in nodes))
    for node in nodes:
        for remark in node_remarks(node):
            note(remark)
