"""`node run`: a task in the foreground, as if it ran here.

Two threads: one copies the task's output, the main one waits for its end and for signals (Python runs signal handlers
in the main thread, and a call of grpc that is broken off in the middle could not go on where it was).

What Ctrl-C does: at a terminal, the first one asks whether to cancel the task or to leave it running; a second one
cancels. Without a terminal, SIGINT cancels at once, and so does SIGTERM everywhere: who stops `node run` expects the
command to stop, as with a command that runs here. A hangup (SIGHUP) ends `node run` alone; the task goes on.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, NoReturn, Unpack

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode
from node.cli.log import write_chunks
from node.cli.output import note
from node.cli.render import exit_status, how
from node.cli.task_options import COMMAND_SETTINGS, GivenOptions, spec_of, task_options
from pilfer.errors import PilferError

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import Task

#: Not in ExitCode: what a shell makes of a death by SIGTERM.
_TERMINATED = 128 + signal.SIGTERM


class _Terminated(Exception):  # noqa: N818  (a signal, not an error)
    """SIGTERM came."""


class _Choice(Enum):
    CANCEL = auto()
    DETACH = auto()
    GO_ON = auto()


@click.command("run", context_settings=COMMAND_SETTINGS)
@with_client
@task_options
def command(client: Client, *, command: tuple[str, ...], **given: Unpack[GivenOptions]) -> int:
    """Run a command as a task and exit as it does.

    \b
    node run [options] -- CMD ARG...

    Its stdout and stderr come out here. Exits with its exit code; 128 + N when signal N killed it, 124 when it timed
    out, 137 when it ran out of memory, 130 when it was canceled, 125 when Pilfer could not run it, 126 when the
    command cannot be executed, 127 when there is no such command.

    Ctrl-C at a terminal asks whether to cancel the task or to leave it running; a second Ctrl-C cancels it. Without a
    terminal, SIGINT cancels at once, as SIGTERM does everywhere. When the terminal goes away, the task goes on.
    """
    spec = spec_of(command, **given)
    task_id = client.submit(spec, task_id=given["task_id"])
    try:
        return _Foreground(client, task_id).run()
    except PilferError as error:
        error.add_note(f"Task {task_id} may still run. {_way_back(task_id)}")
        raise


def _way_back(task_id: str) -> str:
    return f"To come back: node log -f {task_id}; to wait: node wait {task_id}; to end it: node cancel {task_id}"


class _Foreground:
    """Follows one task to its end."""

    def __init__(self, client: Client, task_id: str) -> None:
        self._client = client
        self._task_id = task_id
        self._follower = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._ended = threading.Event()
        self._task: Task | None = None
        self._error: Exception | None = None

    def run(self) -> int:
        with _sigterm_raises():
            self._follower.start()
            try:
                return self._wait()
            except _Terminated:
                self._client.cancel(self._task_id)
                return _TERMINATED

    def _follow(self) -> None:
        """In its own thread: the output, then how it ended."""
        try:
            write_chunks(self._client.log(self._task_id, follow=True))
            self._task = self._client.wait(self._task_id)
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()

    def _wait(self) -> int:
        is_asked = False
        while True:
            try:
                self._ended.wait()
                return self._result()
            except KeyboardInterrupt:
                choice = _Choice.CANCEL if is_asked or not _is_terminal() else _ask(self._task_id, self._ended)
                is_asked = True
            if choice is _Choice.DETACH:
                note(f"Task {self._task_id} goes on. {_way_back(self._task_id)}")
                return ExitCode.INTERRUPTED
            if choice is _Choice.CANCEL:
                return self._cancel()

    def _cancel(self) -> int:
        """Cancels and follows to the end, unless Ctrl-C comes once more."""
        self._client.cancel(self._task_id)
        try:
            self._ended.wait()
            self._result()
        except KeyboardInterrupt:
            note(f"Task {self._task_id} has been told to end. {_way_back(self._task_id)}")
        return ExitCode.INTERRUPTED

    def _result(self) -> int:
        """The exit code of the ended task; raises what stopped the follower."""
        if self._error is not None:
            raise self._error
        if self._task is None:
            raise RuntimeError("the follower ended without a task")
        code = exit_status(self._task)
        if self._task.exit_code is None or code != self._task.exit_code:
            note(f"node: task {self._task_id} {self._task.status}: {how(self._task)}")
        return code


@contextmanager
def _sigterm_raises() -> Generator[None]:
    def raise_it(_number: int, _frame: object) -> NoReturn:
        raise _Terminated

    before: Callable[..., object] | int | None = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(task_id: str, ended: threading.Event) -> _Choice:
    """Asks once. A second Ctrl-C, or the end of the input, cancels."""
    if ended.is_set():
        return _Choice.GO_ON
    note(f"\nTask {task_id} is running. {_way_back(task_id)}")
    sys.stderr.write("[c]ancel it, [d]etach and leave it running, or Enter to go on following? ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        return _Choice.CANCEL
    if not answer:
        return _Choice.CANCEL
    return {"c": _Choice.CANCEL, "d": _Choice.DETACH}.get(answer.strip().lower()[:1], _Choice.GO_ON)
