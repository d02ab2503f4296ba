"""`node status`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode
from node.cli.node_names import NodeNames, ask_names
from node.cli.output import json_line, line, note
from node.cli.parameters import json_option
from node.cli.render import task_json, task_lines
from pilfer.errors import NotFound

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import Task


@click.command("status")
@with_client
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_option
def command(client: Client, ids: tuple[str, ...], as_json: bool) -> int:
    """Show tasks in full.

    An ID may be cut short as long as it is unique. Exit code 3 when one is not found; the others are shown.
    """
    tasks, missing = find_tasks(client, ids)
    names = NodeNames() if as_json else ask_names(client, tasks)
    now = datetime.now(UTC)
    for index, task in enumerate(tasks):
        if as_json:
            json_line(task_json(task))
        else:
            for text in ([""] if index else []) + task_lines(task, now, names):
                line(text)
    for error in missing:
        note(f"node: {error.message}")
    return ExitCode.NOT_FOUND if missing else ExitCode.OK


def find_tasks(client: Client, ids: tuple[str, ...]) -> tuple[list[Task], list[NotFound]]:
    """The tasks that are there, in order, and an error for each that is not."""
    try:
        return client.status(ids), []
    except NotFound as error:
        if len(ids) == 1:
            return [], [error]
    # One that is missing fails the whole call: ask one by one.
    tasks: list[Task] = []
    missing: list[NotFound] = []
    for task_id in ids:
        try:
            tasks.append(client.status(task_id))
        except NotFound as error:
            missing.append(error)
    return tasks, missing
