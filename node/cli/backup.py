"""`node backup`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure
from node.cli.output import json_line, line, progress
from node.cli.parameters import json_option
from node.files import sync_directory
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
        raise _is_there(file)
    if not file.parent.is_dir():
        # Before anything is asked for; what opens the file would name one that nobody knows.
        raise Failure(f"{file}: there is no directory {file.parent}", ExitCode.FAILURE)
    size, digest = _save(client, file, force=force)
    if as_json:
        json_line({"file": str(file), "size_bytes": size, "sha256": digest})
    else:
        line(f"{file}: {format_size(size)}")
    return ExitCode.OK


def _save(client: Client, file: Path, *, force: bool) -> tuple[int, str]:
    """Size and SHA-256 of FILE, which is durable under its name when it returns. Where it does not, nothing is left
    beside FILE."""
    # A name of this run's own, made with O_EXCL: another backup to the same FILE at the same time must neither write
    # into it nor remove it.
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(4)}.unfinished")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size, digest = _write(client, descriptor)
        _put_in_place(unfinished, file, force=force)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_directory(file.parent)
    return size, digest


def _put_in_place(unfinished: Path, file: Path, *, force: bool) -> None:
    if not force:
        # What came meanwhile is not replaced unasked: a link is made only where nothing has that name (link(2)).
        try:
            file.hardlink_to(unfinished)
        except FileExistsError:
            raise _is_there(file) from None
        except OSError:
            # A file system without hard links: there a moment is left in which FILE may come.
            if file.exists():
                raise _is_there(file) from None
        else:
            return
    unfinished.replace(file)


def _is_there(file: Path) -> Failure:
    return Failure(f"{file} is there already: name another file, or say --force", ExitCode.USAGE)


def _write(client: Client, descriptor: int) -> tuple[int, str]:
    """Size and SHA-256 of what is durable in the file when it returns. Closes the descriptor."""
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
