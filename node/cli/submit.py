"""`node submit`."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Unpack

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure, field_words
from node.cli.output import flush, json_line, line, note, progress, told_when_silent
from node.cli.parameters import json_option
from node.cli.source import opened
from node.cli.task_options import COMMAND_SETTINGS, GivenOptions, spec_of, task_options
from node.cli.wait import wait_for
from pilfer.errors import InvalidRequest, TimedOut, Unavailable
from pilfer.ids import new_task_id

if TYPE_CHECKING:
    from node.cli.jsonl import LineError, NumberedTask
    from pilfer.sync import Client

#: Tasks in one call.
BATCH = 1000
#: Wrong lines that are shown.
_SHOWN_MAX = 20
_INDEX = re.compile(r"tasks\[(\d+)\]\.")


@click.command("submit", context_settings=COMMAND_SETTINGS)
@with_client
@click.option("--from", "source", metavar="FILE", help="One task a line, as JSON; - is stdin.")
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for the end: exit 0 when all completed with 0, else 1.")
@json_option
@task_options
def command(
    client: Client,
    *,
    source: str | None,
    is_waiting: bool,
    as_json: bool,
    command: tuple[str, ...],
    **given: Unpack[GivenOptions],
) -> int:
    """Queue a task, or a file of tasks, and print the ids.

    \b
    node submit [options] -- CMD ARG...
    node submit --from FILE.jsonl

    A line of the file holds the fields of a task as in the API: {"command": "gzip", "args": ["-9", "x"],
    "requirements": {"cpu": 0.5}}, and an "id" where you choose it (a UUID). stdin is base64. Nothing of a file with an
    error is submitted. With --json, an object with the id is printed for each; with --wait too, the whole task as it
    ends instead.
    """
    if source is not None:
        if command or any(value not in (None, ()) for value in given.values()):
            raise click.UsageError("With --from, everything about a task stands in the file.")
        return _submit_file(client, source, is_waiting=is_waiting, as_json=as_json)
    spec = spec_of(command, **given)
    # Chosen here, so that it can be named even when no answer comes.
    task_id = given["task_id"] or new_task_id()
    with submitting(task_id, "submit"):
        client.submit(spec, task_id=task_id)
    _print_ids([task_id], as_json=as_json, is_waiting=is_waiting)
    return wait_for(client, [task_id], as_json=as_json) if is_waiting else ExitCode.OK


@contextmanager
def submitting(task_id: str, verb: str) -> Generator[None]:
    """Around the submit of one task: says when no answer comes, and how to do it again without a second task."""
    waits = f"no answer yet whether task {task_id} is stored; still trying"
    try:
        with told_when_silent(waits):
            yield
    except (Unavailable, TimedOut) as error:
        error.add_note(f"To do it again: node {verb} --id {task_id}, and the rest as before; that makes no second task")
        raise


def _submit_file(client: Client, source: str, *, is_waiting: bool, as_json: bool) -> int:
    from node.cli.jsonl import read_tasks

    with opened(source) as file:
        numbered, errors = read_tasks(file)
    if errors:
        raise _refusal(source, errors)
    if not numbered:
        note(f"{source} holds no task; nothing was submitted.")
        return ExitCode.OK
    tasks = [one.task for one in numbered]
    for task in tasks:
        # Before anything is sent: what was stored is then known by its id, even where a later batch fails.
        task.id = task.id or new_task_id()
    ids = [task.id for task in tasks]
    printed = 0

    def on_stored(stored: int) -> None:
        nonlocal printed
        _print_ids(ids[printed:stored], as_json=as_json, is_waiting=is_waiting)
        printed = stored

    try:
        with progress("checked", len(tasks)) as on_progress:
            client.submit_many(tasks, batch=BATCH, on_progress=on_progress, validate_only=True)
        waits = "no answer yet whether more tasks are stored; still trying"
        with progress("submitted", len(tasks)) as on_progress, told_when_silent(waits) as heard:
            client.submit_many(tasks, batch=BATCH, on_progress=_each(on_progress, on_stored, lambda _stored: heard()))
    except KeyboardInterrupt:
        note(f"Interrupted: {printed} of {len(tasks)} tasks are stored; {BATCH} more at most may be, too.")
        raise
    except (Unavailable, TimedOut) as error:
        error.add_note(
            f"Of the others {min(BATCH, len(tasks) - printed)} at most may be stored, too. Lines that have an id may be"
            " submitted again: that makes no second task"
        )
        raise
    except InvalidRequest as error:
        if not error.violations:
            raise
        raise _refusal(source, [_line_error(numbered, v.field, v.description) for v in error.violations]) from None
    if not is_waiting:
        return ExitCode.OK
    with progress("ended", len(ids)) as on_progress:
        return wait_for(client, ids, as_json=as_json, on_ended=on_progress)


def _each(*functions: Callable[[int], None]) -> Callable[[int], None]:
    def call(number: int) -> None:
        for function in functions:
            function(number)

    return call


def _print_ids(ids: list[str], *, as_json: bool, is_waiting: bool) -> None:
    if as_json and is_waiting:
        return  # each is printed in full as it ends
    for task_id in ids:
        if as_json:
            json_line({"id": task_id})
        else:
            line(task_id)
    flush()


def _line_error(numbered: list[NumberedTask], field: str, description: str) -> LineError:
    from node.cli.jsonl import LineError

    match = _INDEX.match(field)
    number = numbered[int(match[1])].number if match else 0
    return LineError(number, f"{field_words(field).partition(' (')[0]}: {description}")


def _refusal(source: str, errors: list[LineError]) -> Failure:
    shown = [f"  line {error.number}: {error.message}" for error in errors[:_SHOWN_MAX]]
    if len(errors) > _SHOWN_MAX:
        shown.append(f"  and {len(errors) - _SHOWN_MAX} or more others")
    return Failure("\n".join([f"{source} has errors; nothing of it was submitted", *shown]), ExitCode.USAGE)
