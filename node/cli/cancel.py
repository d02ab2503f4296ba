"""`node cancel`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode
from node.cli.output import json_line, line, note
from node.cli.parameters import json_option, label_option
from node.cli.render import cancel_json
from pilfer.types import CancelStep

if TYPE_CHECKING:
    from pilfer.sync import Client

_WORDS = {
    CancelStep.CANCELED: "canceled: it was queued and will never run",
    CancelStep.REQUESTED: "requested: its node has been told to end it",
    CancelStep.ALREADY_ENDED: "already ended: nothing was changed",
    CancelStep.NOT_FOUND: "not found",
}


@click.command("cancel")
@with_client
@click.argument("ids", nargs=-1, metavar="[ID...]")
@label_option("All queued and running tasks with this label; repeated: with all of them.")
@json_option
def command(client: Client, ids: tuple[str, ...], labels: tuple[tuple[str, str], ...], as_json: bool) -> int:
    """Cancel tasks, queued or running.

    A running task gets SIGTERM and, after its grace period, SIGKILL; node wait tells when it is gone. Prints for each
    how far the cancel came. Exit code 3 when an ID is not found.
    """
    if bool(ids) == bool(labels):
        raise click.UsageError("Name either tasks by their ids, or --label K=V.")
    if labels:
        ids = tuple(_live_ids(client, dict(labels)))
        if not ids:
            note("No queued or running task has these labels.")
            return ExitCode.OK
    results = client.cancel(ids)
    for result in results:
        if as_json:
            json_line(cancel_json(result))
        else:
            line(f"{result.id}  {_WORDS[result.step]}")
    return ExitCode.NOT_FOUND if any(result.step is CancelStep.NOT_FOUND for result in results) else ExitCode.OK


def _live_ids(client: Client, labels: dict[str, str]) -> Iterator[str]:
    # Queued first: what is claimed between the two listings is then in the second one. A set keeps it from being
    # asked for twice.
    seen: set[str] = set()
    for status in ("queued", "running"):
        for task in client.list(status=status, labels=labels):
            if task.id not in seen:
                seen.add(task.id)
                yield task.id
