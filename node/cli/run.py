"""`node run`: a task in the foreground, as if it ran here.

What Ctrl-C does: at a terminal, the first one asks whether to cancel the task or to leave it running; a second one
cancels. Without a terminal, SIGINT cancels at once, and so does SIGTERM everywhere: who stops `node run` expects the
command to stop, as with a command that runs here. A hangup (SIGHUP) ends `node run` alone; the task goes on.

All that happens is put into one queue, and the main thread takes it out: a thread of its own copies the task's output,
another one reads the answer, and signal handlers only put (SimpleQueue may be used in them). No step is broken off in
its middle by a KeyboardInterrupt that way.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum, auto
from queue import SimpleQueue
from typing import TYPE_CHECKING, Unpack

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode
from node.cli.log import write_chunks
from node.cli.output import note
from node.cli.parameters import raw_option
from node.cli.render import exit_status, how
from node.cli.submit import submitting
from node.cli.task_options import COMMAND_SETTINGS, GivenOptions, spec_of, task_options
from pilfer.errors import NotFound, PilferError, PreconditionFailed, Unavailable
from pilfer.ids import new_task_id

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import Task

#: Not in ExitCode: what a shell makes of a death by SIGTERM.
_TERMINATED = 128 + signal.SIGTERM


class _Event(Enum):
    #: The task has ended and all of its output was written; or its follower failed.
    ENDED = auto()
    INTERRUPT = auto()
    TERMINATE = auto()
    ANSWER_CANCEL = auto()
    ANSWER_DETACH = auto()


@click.command("run", context_settings=COMMAND_SETTINGS)
@with_client
@raw_option
@task_options
def command(client: Client, *, is_raw: bool, command: tuple[str, ...], **given: Unpack[GivenOptions]) -> int:
    """Run a command as a task and exit as it does.

    \b
    node run [options] -- CMD ARG...

    Its stdout and stderr come out here, on a terminal as node log shows them. Exits with its exit code; 128 + N when
    signal N killed it, 124 when it timed out, 137 when it ran out of memory, 130 when it was canceled, 125 when Pilfer
    could not run it, 126 when the command cannot be executed, 127 when there is no such command.

    Ctrl-C at a terminal asks whether to cancel the task or to leave it running; a second Ctrl-C cancels it. Without a
    terminal, SIGINT cancels at once, as SIGTERM does everywhere. When the terminal goes away, the task goes on.
    """
    spec = spec_of(command, **given)
    # Chosen here, so that it can be named even when the submit is broken off.
    task_id = given["task_id"] or new_task_id()
    try:
        with submitting(task_id, "run"):
            client.submit(spec, task_id=task_id)
    except KeyboardInterrupt:
        note(f"Task {task_id} may have been submitted. {_way_back(task_id)}")
        raise
    try:
        return _Foreground(client, task_id, is_raw=is_raw).run()
    except PilferError as error:
        error.add_note(f"Task {task_id} may still run. {_way_back(task_id)}")
        raise


def _way_back(task_id: str) -> str:
    return f"To come back: node log -f {task_id}; to wait: node wait {task_id}; to end it: node cancel {task_id}"


class _Foreground:
    """Follows one task to its end."""

    def __init__(self, client: Client, task_id: str, *, is_raw: bool) -> None:
        self._client = client
        self._task_id = task_id
        self._is_raw = is_raw
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._task: Task | None = None
        self._error: Exception | None = None

    def run(self) -> int:
        with _signals_put(self._events):
            # Daemons: a stream or a terminal that says nothing must not hold up the exit.
            threading.Thread(target=self._follow, name="follow", daemon=True).start()
            return self._handle_events()

    def _follow(self) -> None:
        """In its own thread: the output, then how it ended."""
        try:
            try:
                write_chunks(self._client.log(self._task_id, follow=True), is_raw=self._is_raw)
            except (NotFound, PreconditionFailed, Unavailable) as error:
                # The output may lie where this node cannot reach it; how the task ends can still be told.
                note(f"node: the output of task {self._task_id} cannot be followed: {error.message}")
            self._task = self._client.wait(self._task_id)
        except Exception as error:  # the top of a thread: the main one raises it
            self._error = error
        finally:
            self._events.put(_Event.ENDED)

    def _handle_events(self) -> int:
        is_asked = is_canceled = False
        while True:
            event = self._events.get()
            if event is _Event.ENDED:
                code = self._result()
                return ExitCode.INTERRUPTED if is_canceled else code
            if event is _Event.TERMINATE:
                self._client.cancel(self._task_id)
                return _TERMINATED
            if event is _Event.ANSWER_DETACH:
                note(f"Task {self._task_id} goes on. {_way_back(self._task_id)}")
                return ExitCode.INTERRUPTED
            if event is _Event.INTERRUPT and is_canceled:
                note(f"Task {self._task_id} has been told to end. {_way_back(self._task_id)}")
                return ExitCode.INTERRUPTED
            if event is _Event.INTERRUPT and not is_asked and _is_terminal():
                is_asked = True
                threading.Thread(target=self._ask, name="ask", daemon=True).start()
                continue
            # A first Ctrl-C without a terminal, a second one, or the answer: cancel, and follow to the end.
            self._client.cancel(self._task_id)
            is_canceled = True

    def _ask(self) -> None:
        """In its own thread: asks once. Any other answer is to go on following."""
        note(f"\nTask {self._task_id} is running. {_way_back(self._task_id)}")
        sys.stderr.write("[c]ancel it, [d]etach and leave it running, or Enter to go on following? ")
        sys.stderr.flush()
        # Not sys.stdin: its lock, held by this thread at the exit of the program, would be a fatal error.
        answer = os.read(sys.stdin.fileno(), 1024).strip().lower()[:1]
        if answer == b"c":
            self._events.put(_Event.ANSWER_CANCEL)
        elif answer == b"d":
            self._events.put(_Event.ANSWER_DETACH)

    def _result(self) -> int:
        """The exit code of the ended task; raises what stopped the follower."""
        if self._error is not None:
            raise self._error
        if self._task is None:
            raise RuntimeError("the follower ended without a task")
        code = exit_status(self._task)
        if code != self._task.exit_code:
            note(f"node: task {self._task_id} {self._task.status}: {how(self._task)}")
        return code


@contextmanager
def _signals_put(events: SimpleQueue[_Event]) -> Generator[None]:
    """SIGINT and SIGTERM become events while entered; one that is ignored (a job in the background) stays so."""
    wanted = {signal.SIGINT: _Event.INTERRUPT, signal.SIGTERM: _Event.TERMINATE}

    def put(number: int, _frame: object) -> None:
        events.put(wanted[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, put)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
