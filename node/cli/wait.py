"""`node wait`.

A wait follows one stream, on which nothing comes while nothing happens; so silence on it does not tell tasks that go on
from a cluster that cannot be read. Where the time is up, the tasks that are left are therefore asked for once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure
from node.cli.output import flush, json_line, note
from node.cli.parameters import DURATION, json_option
from node.cli.render import how, task_json
from node.units import format_duration
from pilfer.errors import TimedOut, Unavailable

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import Task

#: Failed tasks that are named one by one.
_NAMED_MAX = 10
#: How long the last question may take: a node without a quorum says so after 3 s.
LAST_LOOK_S = 4.0
#: Tasks that it is asked about. An answer comes with their stdin, and that there is one is what counts: then the stream
#: stands, or was begun again, and would have told the ends of the others.
_LOOKED_AT_MAX = 100
_UUID_LENGTH = 36


@click.command("wait")
@with_client
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Exit with 124 after this time. Default: no limit.")
@json_option
def command(client: Client, ids: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait for tasks to end.

    Exits 0 when all completed with exit code 0, 1 otherwise, 124 when the time is up and they have not ended, 5 when
    the cluster does not answer (where the time is up, it is given 4 s more). The tasks go on in any case. --json prints
    each as it ends.
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
    """Waits, says which tasks failed and gives the exit code. on_ended gets the number of tasks that have ended.

    Where the time is up, what is said of the tasks that are left was read after that. So a cluster that was silent in
    the middle and answers again costs nothing: what ended meanwhile counts as ended, and the rest as not ended in time.
    One that does not answer at the end is told as such, though states were read before: they may be old. Raises
    Failure (not ended in time), Unavailable and TimedOut (not known), NotFound.
    """
    failed: list[Task] = []
    ended: set[str] = set()

    def take(task: Task) -> None:
        ended.add(task.id)
        on_ended(len(ended))
        if as_json:
            json_line(task_json(task))
            flush()
        if not task.succeeded:
            failed.append(task)

    try:
        for task in client.as_ended(ids, timeout_s=timeout_s):
            take(task)
    except Unavailable as error:
        given = dict.fromkeys(ids)
        error.add_note(f"Whether {len(_left(given, ended))} of {len(given)} tasks have ended is not known")
        raise
    except TimedOut:
        if timeout_s is None:
            raise  # not the user's limit: a call of ours went unanswered
        limit = format_duration(timeout_s)
        given = dict.fromkeys(ids)
        for task in _last_look(client, _left(given, ended), len(given), limit):
            if task.status.is_terminal and task.id not in ended:
                take(task)
        if left := len(_left(given, ended)):
            raise Failure(
                f"{left} of {len(given)} tasks have not ended within {limit}; they go on", ExitCode.TIMED_OUT
            ) from None
    for task in failed[:_NAMED_MAX]:
        note(f"{task.id}  {task.status}: {how(task)}")
    if len(failed) > _NAMED_MAX:
        note(f"and {len(failed) - _NAMED_MAX} more")
    return ExitCode.FAILURE if failed else ExitCode.OK


def _left(given: Iterable[str], ended: set[str]) -> list[str]:
    """Those that have not ended, of ids and of prefixes of ids, which may be in capitals."""
    return [
        one
        for one in given
        if one.lower() not in ended
        and (len(one) == _UUID_LENGTH or not any(task_id.startswith(one.lower()) for task_id in ended))
    ]


def _last_look(client: Client, left: Sequence[str], total: int, limit: str) -> list[Task]:
    """What the cluster says of them now. Raises Unavailable and TimedOut, in words for whoever waits."""
    try:
        return client.status(left[:_LOOKED_AT_MAX], timeout_s=LAST_LOOK_S)
    except (Unavailable, TimedOut) as error:
        error.message = (
            f"the time of {limit} is up and the cluster does not answer, so it is not known whether {len(left)} of"
            f" {total} tasks have ended: {error.message}"
        )
        raise
