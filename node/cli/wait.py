"""`node wait`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure
from node.cli.output import flush, json_line, note
from node.cli.parameters import DURATION, json_option
from node.cli.render import how, task_json
from node.units import format_duration
from pilfer.errors import TimedOut

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import Task

#: Failed tasks that are named one by one.
_NAMED_MAX = 10


@click.command("wait")
@with_client
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Exit with 124 after this time. Default: no limit.")
@json_option
def command(client: Client, ids: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait for tasks to end.

    Exits 0 when all completed with exit code 0, 1 otherwise, 124 when the time is up. The tasks go on in any case.
    --json prints each as it ends.
    """
    return wait_for(client, ids, timeout_s=timeout, as_json=as_json)


def wait_for(
    client: Client,
    ids: Sequence[str],
    *,
    timeout_s: float | None = None,
    as_json: bool = False,
    on_ended: Callable[[int], None] = lambda _count: None,
) -> int:
    """Waits, says which tasks failed and gives the exit code. on_ended gets the number of tasks that have ended."""
    failed: list[Task] = []
    ended = 0
    try:
        for task in client.as_ended(ids, timeout_s=timeout_s):
            ended += 1
            on_ended(ended)
            if as_json:
                json_line(task_json(task))
                flush()
            if not task.succeeded:
                failed.append(task)
    except TimedOut:
        limit = format_duration(timeout_s or 0.0)
        raise Failure(
            f"{len({*ids}) - ended} of {len({*ids})} tasks have not ended within {limit}; they go on",
            ExitCode.TIMED_OUT,
        ) from None
    for task in failed[:_NAMED_MAX]:
        note(f"{task.id}  {task.status}: {how(task)}")
    if len(failed) > _NAMED_MAX:
        note(f"and {len(failed) - _NAMED_MAX} more")
    return ExitCode.FAILURE if failed else ExitCode.OK
