"""Writing: JSON lines and ids on stdout, progress where somebody looks, a task's bytes as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from node.cli.render import Json


def line(text: str) -> None:
    """One line on stdout, at once: scripts read ids while we go on."""
    click.echo(text)


def note(text: str) -> None:
    """One line for people, on stderr."""
    click.echo(text, err=True)


def json_line(value: Json) -> None:
    """One JSON object in ASCII, so that no locale can spoil it. Buffered: listings are long."""
    sys.stdout.write(json.dumps(value) + "\n")


def flush() -> None:
    """Lets readers have the JSON lines written so far."""
    sys.stdout.flush()


def write_bytes(data: bytes, *, is_stderr: bool) -> None:
    """A task's output, unaltered, at once."""
    out = sys.stderr.buffer if is_stderr else sys.stdout.buffer
    out.write(data)
    out.flush()


@contextmanager
def progress(what: str, total: int) -> Generator[Callable[[int], None]]:
    """Shows on a terminal's stderr how many of `total` are done; gives the function to tell it."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
