"""From errors to exit codes and words on stderr: the one place. No operating error ends in a traceback.

A message says what happened, what it means and what to do. What is none of the errors below is a defect of Pilfer,
and is shown as one.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import click

from node.cli.visible import visible
from pilfer.errors import (
    InvalidAddress,
    InvalidRequest,
    NoQuorum,
    NotAllowed,
    NotFound,
    PilferError,
    TimedOut,
    Unavailable,
)


class ExitCode(IntEnum):
    """The contract with scripts."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    NO_NODE = 5
    TIMED_OUT = 124
    INTERRUPTED = 130
    #: As a program that dies of SIGPIPE: `node list | head` is no error, and no success either.
    BROKEN_PIPE = 141


class Failure(Exception):  # noqa: N818  (not always an error: a time limit is one's own)
    """Ends the program with a message and an exit code of the contract."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ReaderGone(Exception):  # noqa: N818  (no error of ours)
    """Whoever read our stdout has gone away."""


_CODES: tuple[tuple[type[PilferError], ExitCode], ...] = (
    (InvalidRequest, ExitCode.USAGE),
    (InvalidAddress, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (NotAllowed, ExitCode.NOT_ALLOWED),
    (Unavailable, ExitCode.NO_NODE),
    # A call's own deadline; what the user limited by --timeout ends with 124 in its verb.
    (TimedOut, ExitCode.NO_NODE),
    (PilferError, ExitCode.FAILURE),
)

#: Field of a spec -> the option that sets it.
_OPTIONS_OF_FIELDS = {
    "id": "--id",
    "command": "CMD",
    "args": "ARG",
    "env": "--env",
    "cwd": "--cwd",
    "stdin": "--stdin",
    "name": "--name",
    "labels": "--label",
    "requirements.cpu": "--cpu",
    "requirements.memory_bytes": "--memory",
    "requirements.pids": "--pids",
    "requirements.io_read_bytes_per_s": "--io-read",
    "requirements.io_write_bytes_per_s": "--io-write",
    "requirements.scratch_bytes": "--scratch",
    "requirements.require_limits": "--require-limits",
    "timeout_s": "--timeout",
    "grace_s": "--grace",
    "restart_on_node_loss": "--restart",
    "max_attempts": "--max-attempts",
    "network": "--network",
    "mounts": "--mount",
    "from_revision": "",
}


def run(arguments: Sequence[str]) -> int:
    """Runs the program with these arguments and gives its exit code."""
    from node.cli.group import root

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not have is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    name = Path(sys.argv[0]).name
    program = name if name in ("node", "pilfer") else "node"
    try:
        result = root.main(args=list(arguments), prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except (ReaderGone, BrokenPipeError):
        return _broken_pipe()
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except (click.ClickException, Failure, PilferError, OSError) as error:
        return _report(program, error)
    # Verbs give their exit code; --help and the like give 0.
    return result if isinstance(result, int) else ExitCode.OK


def _report(program: str, error: click.ClickException | Failure | PilferError | OSError) -> int:
    """Says on stderr what went wrong, and gives the exit code for it."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, Failure):
        _print(f"{program}: {error}")
        return error.exit_code
    if isinstance(error, PilferError):
        _say(program, error)
        return next(code for kind, code in _CODES if isinstance(error, kind))
    # A file that cannot be read, a full disk behind stdout.
    where = f"{error.filename}: " if error.filename else ""
    _print(f"{program}: {where}{error.strerror or error}")
    return ExitCode.FAILURE


def _broken_pipe() -> int:
    """The reader of stdout is gone, which is how `| head` ends a program: quietly."""
    # Python flushes stdout once more at exit; what is left in its buffer must have a place to go.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return ExitCode.BROKEN_PIPE


def _say(program: str, error: PilferError) -> None:
    if isinstance(error, InvalidRequest) and error.violations:
        _print(f"{program}: the request is not valid; nothing was done")
        for violation in error.violations:
            _print(f"  {field_words(violation.field)}: {violation.description}")
    else:
        _print(f"{program}: {error.message}")
    if hint := _hint(error):
        _print(f"  {hint}")
    for note in getattr(error, "__notes__", ()):
        _print(f"  {note}")


def _hint(error: PilferError) -> str:
    """What to do, by who it was that failed: a node told so in its answer's details, or no connection to one stood."""
    if isinstance(error, NoQuorum):
        return (
            "A node answered, and it cannot reach a majority of etcd's voters. Start the voters that are down (node"
            " nodes shows which nodes do not answer); where they are gone for good, see node recover."
        )
    if isinstance(error, Unavailable) and not error.is_from_node:
        return "No node answered. Is one running (node start)? Another is named with --address or PILFER_ADDRESS."
    if isinstance(error, TimedOut):
        return (
            "The node does not answer, or its etcd does not (no quorum): node nodes shows which nodes do not answer."
            " Another node is named with --address or PILFER_ADDRESS."
        )
    return ""


def field_words(field: str) -> str:
    """A path such as tasks[0].spec.requirements.cpu, in the words of the command line: `requirements.cpu (--cpu)`."""
    inner = field.partition("].")[2] if field.startswith("tasks[") else field
    inner = inner.removeprefix("spec.") or field
    option = _OPTIONS_OF_FIELDS.get(inner) or _OPTIONS_OF_FIELDS.get(inner.partition("[")[0])
    return f"{inner} ({option})" if option else inner


def _print(line: str) -> None:
    # What a node or a file name holds may not be encodable here, or may act on a terminal: a message must do neither.
    click.echo(visible(line), err=True)
