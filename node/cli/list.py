"""`node list`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import json_line, note
from node.cli.parameters import STATUS, json_option, label_option
from node.cli.render import TASK_COLUMNS, task_json, task_row
from node.cli.tables import table

if TYPE_CHECKING:
    from pilfer.sync import Client

#: Rows of a table where no limit is given.
TABLE_ROWS = 100


@click.command("list")
@with_client
@click.option("--status", type=STATUS, help="Only tasks in this status.")
@label_option("Only tasks with this label; repeated: with all of them.")
@click.option("--name", default="", help="Only tasks of exactly this name.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N only, newest first.")
@json_option
def command(
    client: Client,
    *,
    status: str | None,
    labels: tuple[tuple[str, str], ...],
    name: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """List tasks.

    A table shows the newest 100, newest first. --json streams every match, oldest first.
    """
    if as_json:
        for task in client.list(
            status=status, name=name, labels=dict(labels), newest_first=limit is not None, limit=limit
        ):
            json_line(task_json(task))
        return
    # One more than is shown tells whether there are more.
    shown = limit or TABLE_ROWS
    tasks = [*client.list(status=status, name=name, labels=dict(labels), newest_first=True, limit=shown + 1)]
    now = datetime.now(UTC)
    table(TASK_COLUMNS, (task_row(task, now) for task in tasks[:shown]))
    if len(tasks) > shown:
        note(f"The newest {shown} are shown; there are more: --limit N shows N of them, --json all.")
