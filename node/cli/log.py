"""`node log`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import TaskOutput, note
from node.cli.parameters import raw_option
from pilfer.types import Stream

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import LogChunk


@click.command("log")
@with_client
@click.argument("task_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on as output comes, until the task has ended.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="This stream alone, on stdout.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Of this attempt. Default: the newest.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="The last N lines only.")
@raw_option
def command(
    client: Client,
    *,
    task_id: str,
    follow: bool,
    stream: str | None,
    attempt: int | None,
    tail: int | None,
    is_raw: bool,
) -> None:
    """Print what a task wrote.

    Its stdout goes to stdout, its stderr to stderr, byte for byte. On a terminal, what would act on it (escape
    sequences other than colours, control characters, bytes that are no UTF-8) is shown instead, as cat -v does.
    """
    chunks = client.log(task_id, stream=stream, follow=follow, tail_lines=tail, attempt=attempt)
    write_chunks(chunks, all_on_stdout=stream is not None, is_raw=is_raw)


def write_chunks(chunks: Iterable[LogChunk], *, all_on_stdout: bool = False, is_raw: bool = False) -> None:
    """Writes each where it belongs. What happened to the stream itself (another attempt begins, something of one cannot
    be had) is a line on stderr: whoever reads the bytes must know that they begin anew."""
    output = TaskOutput(is_raw=is_raw)
    try:
        _write_chunks(chunks, output, all_on_stdout=all_on_stdout)
    finally:
        output.end()


def _write_chunks(chunks: Iterable[LogChunk], output: TaskOutput, *, all_on_stdout: bool) -> None:
    newest = 0
    for chunk in chunks:
        if chunk.notice:
            note(f"node: {chunk.notice}")
        elif newest and chunk.attempt > newest:
            note(f"node: attempt {chunk.attempt} begins")
        newest = chunk.attempt
        output.write(chunk.data, is_stderr=chunk.stream is Stream.STDERR and not all_on_stdout)
