"""`node why`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import json_line, line
from node.cli.parameters import json_option
from node.cli.render import printable
from node.cli.render_nodes import WHY_COLUMNS, why_json, why_row
from node.cli.tables import table

if TYPE_CHECKING:
    from pilfer.sync import Client


@click.command("why")
@with_client
@click.argument("task_id", metavar="ID")
@json_option
def command(client: Client, task_id: str, as_json: bool) -> None:
    """Tell why a task does not start, node by node.

    Of a task that runs or has ended, where and how. An ID may be cut short as long as it is unique.
    """
    why = client.why(task_id)
    if as_json:
        json_line(why_json(why))
        return
    line(f"task {why.task.id} {printable(why.summary)}")
    if why.nodes:
        line("")
        table(WHY_COLUMNS, map(why_row, why.nodes))
