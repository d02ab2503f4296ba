"""Writing: JSON lines and ids on stdout, progress where somebody looks, a task's bytes as they are, on a terminal so
that they do no harm there (`visible.py`)."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from node.cli.render import Json
from node.cli.visible import VisibleStream, visible


def line(text: str) -> None:
    """One line on stdout, at once: scripts read ids while we go on."""
    click.echo(visible(text))


def note(text: str) -> None:
    """One line for people, on stderr."""
    click.echo(visible(text), err=True)


def json_line(value: Json) -> None:
    """One JSON object in ASCII, so that no locale can spoil it. Buffered: listings are long."""
    sys.stdout.write(json.dumps(value) + "\n")


def flush() -> None:
    """Lets readers have the JSON lines written so far."""
    sys.stdout.flush()


class TaskOutput:
    """Where a task's output goes, at once: byte for byte, but visible on a terminal unless it is to be raw.

    Ended by `end`, so that colours of the task do not stay.
    """

    def __init__(self, *, is_raw: bool) -> None:
        # Each for itself: one of the two may be a terminal and the other a file.
        self._filters = [
            VisibleStream() if stream.isatty() and not is_raw else None for stream in (sys.stdout, sys.stderr)
        ]

    def write(self, data: bytes, *, is_stderr: bool) -> None:
        found = self._filters[is_stderr]
        self._put(data if found is None else found.feed(data), is_stderr=is_stderr)

    def end(self) -> None:
        for is_stderr, found in zip((False, True), self._filters, strict=True):
            if found is not None:
                self._put(found.end(), is_stderr=is_stderr)

    def _put(self, data: bytes | str, *, is_stderr: bool) -> None:
        stream = sys.stderr if is_stderr else sys.stdout
        if isinstance(data, str):
            # What the terminal's encoding does not have is escaped too.
            data = data.encode(stream.encoding, "backslashreplace")
        stream.buffer.write(data)
        stream.buffer.flush()


#: Where all is well an answer takes milliseconds; a node that restarts is back within 3 s.
SILENCE_S = 10.0


@contextmanager
def told_when_silent(text: str) -> Generator[Callable[[], None]]:
    """Says this once on stderr when nothing is heard for SILENCE_S; gives the function to call when something is.

    For calls that go on trying for long: who waits must not take that for a hang, and may end it.
    """
    is_over = threading.Event()
    heard = threading.Event()

    def watch() -> None:
        while heard.wait(SILENCE_S):
            # In this order: an end that comes between the two is seen by the next wait at the latest.
            heard.clear()
            if is_over.is_set():
                return
        note(text)

    watcher = threading.Thread(target=watch, name="silence", daemon=True)
    watcher.start()
    try:
        yield heard.set
    finally:
        is_over.set()
        heard.set()
        # No line may come after what the caller says of the end.
        watcher.join()


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
