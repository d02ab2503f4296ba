"""`node list`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

from node.cli.connection import with_client
from node.cli.node_names import ask_names
from node.cli.output import json_line, note
from node.cli.parameters import STATUS, json_option, label_option
from node.cli.render import NODE_COLUMN, TASK_COLUMNS, task_json, task_row
from node.cli.tables import table

if TYPE_CHECKING:
    from pilfer.sync import Client

T = TypeVar("T")

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

    A table shows the newest 100, newest first; in a cluster of several nodes, with the one that runs each or ran it
    last. --json streams every match, oldest first.
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
    is_all = len(tasks) <= shown
    tasks = tasks[:shown]
    names = ask_names(client, tasks)
    now = datetime.now(UTC)
    rows = [task_row(task, now, names) for task in tasks]
    if names.tells_apart(tasks):
        table(TASK_COLUMNS, rows)
    else:
        table(_without_node(TASK_COLUMNS), map(_without_node, rows))
    if not is_all:
        note(f"The newest {shown} are shown; there are more: --limit N shows N of them, --json all.")


def _without_node(cells: Sequence[T]) -> list[T]:
    return [*cells[:NODE_COLUMN], *cells[NODE_COLUMN + 1 :]]
