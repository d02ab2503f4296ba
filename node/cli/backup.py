"""`node backup`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure
from node.cli.output import json_line, line, progress
from node.cli.parameters import json_option
from node.units import format_size

if TYPE_CHECKING:
    from pilfer.sync import Client

_MIB = 1 << 20


@click.command("backup")
@with_client
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE where it is there.")
@json_option
def command(client: Client, file: Path, *, force: bool, as_json: bool) -> int:
    """Write the cluster's data into a file.

    That is every task, queued, running and ended, as they are at one moment. FILE holds what tasks were given, their
    environment and stdin too, and only its owner may read it. Output of tasks is not in it, nor are keys. It is an etcd
    snapshot, and goes back with node restore.
    """
    if file.exists() and not force:
        raise Failure(f"{file} is there already: name another file, or say --force", ExitCode.USAGE)
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        size, digest = _write(client, unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    if as_json:
        json_line({"file": str(file), "size_bytes": size, "sha256": digest})
    else:
        line(f"{file}: {format_size(size)}")
    return ExitCode.OK


def _write(client: Client, path: Path) -> tuple[int, str]:
    """Size and SHA-256 of what is durable in the file when it returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    written, digest = 0, hashlib.sha256()
    with os.fdopen(descriptor, "wb") as out, contextlib.closing(client.backup()) as parts:
        data, whole = next(parts, (b"", 0))
        with progress("MiB of the backup", whole // _MIB) as tell:
            while data:
                out.write(data)
                digest.update(data)
                written += len(data)
                tell(written // _MIB)
                data, whole = next(parts, (b"", whole))
        out.flush()
        os.fsync(descriptor)
    if not written or written != whole:
        raise Failure(f"the backup ended after {written} of {whole} bytes: try again", ExitCode.FAILURE)
    return written, digest.hexdigest()
