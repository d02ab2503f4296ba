"""The options that make a task, shared by submit and run, and the spec that comes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypedDict, TypeVar, Unpack

import click

from node.cli.parameters import DURATION, MOUNT, PAIR, RATE, SIZE, TASK_ID, label_option
from node.cli.source import opened
from pilfer.types import Mount, Requirements, TaskSpec

P = ParamSpec("P")
R = TypeVar("R")

#: A task is at most 1 MiB, stdin included.
STDIN_MAX_BYTES = 1024 * 1024

#: What follows the first word that is no option belongs to the task, options and all.
COMMAND_SETTINGS = {"allow_interspersed_args": False}


class GivenOptions(TypedDict):
    """What click hands over; an option that was not given is None or empty."""

    cpu: float | None
    memory: int | None
    pids: int | None
    io_read: int | None
    io_write: int | None
    scratch: int | None
    require_limits: bool | None
    timeout: float | None
    grace: float | None
    env: tuple[tuple[str, str], ...]
    cwd: str | None
    stdin: str | None
    mount: tuple[Mount, ...]
    network: str | None
    name: str | None
    labels: tuple[tuple[str, str], ...]
    restart: bool | None
    max_attempts: int | None
    task_id: str | None


_OPTIONS: tuple[Callable[[Callable[..., object]], Callable[..., object]], ...] = (
    click.option("--cpu", type=float, metavar="N", help="CPUs, reserved and enforced; 0.5 is half of one. Default 1."),
    click.option("--memory", type=SIZE, metavar="SIZE", help="Memory, reserved and enforced: 512M, 2G."),
    click.option("--pids", type=int, metavar="N", help="Processes and threads at one time. Default 1024."),
    click.option("--io-read", type=RATE, metavar="RATE", help="Bytes read per second: 10M."),
    click.option("--io-write", type=RATE, metavar="RATE", help="Bytes written per second: 10M."),
    click.option("--scratch", type=SIZE, metavar="SIZE", help="What its scratch directory may hold: 500M, 20G."),
    click.option("--require-limits", is_flag=True, default=None, help="Only where these limits are enforced."),
    click.option("--timeout", type=DURATION, metavar="TIME", help="Wall time of an attempt: 10s, 5m, 500ms."),
    click.option("--grace", type=DURATION, metavar="TIME", help="From SIGTERM to SIGKILL. Default 5s."),
    click.option("--env", type=PAIR, metavar="K=V", multiple=True, help="Environment of the task; repeatable."),
    click.option("--cwd", metavar="DIR", help="Working directory. Default: a scratch directory of the task's own."),
    click.option("--stdin", metavar="FILE", help="What the task reads on stdin; - is this command's own."),
    click.option("--mount", type=MOUNT, metavar="SRC:DST[:ro|rw]", multiple=True, help="A host path that it sees."),
    click.option("--network", metavar="none|host", help="Default none: loopback alone."),
    click.option("--name", metavar="TEXT", help="A name to find it by."),
    label_option("A label to find it by; repeatable."),
    click.option("--restart/--no-restart", default=None, help="Run it again when its node is lost. Default: restart."),
    click.option("--max-attempts", type=int, metavar="N", help="Started attempts at most. Default 5."),
    click.option("--id", "task_id", type=TASK_ID, metavar="UUID", help="The task's id; repeating it makes no second."),
)


def task_options(function: Callable[..., R]) -> Callable[..., R]:
    """Adds the options of a task and the command after them."""
    decorated: Callable[..., object] = click.argument("command", nargs=-1, type=click.UNPROCESSED)(function)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return functools.wraps(function)(decorated)  # type: ignore[return-value]  # click's decorators give it back


def spec_of(command: tuple[str, ...], **given: Unpack[GivenOptions]) -> TaskSpec:
    """The spec of a command line. Checks nothing that the node checks; raises click.UsageError without a command."""
    if not command:
        raise click.UsageError("No command: write it after the options, as in: -- CMD ARG...")
    return TaskSpec(
        command=command[0],
        args=command[1:],
        env=dict(given["env"]),
        cwd=given["cwd"],
        stdin=_read_stdin(given["stdin"]),
        name=given["name"] or "",
        labels=dict(given["labels"]),
        requirements=Requirements(
            cpu=given["cpu"],
            memory_bytes=given["memory"],
            pids=given["pids"],
            io_read_bytes_per_s=given["io_read"],
            io_write_bytes_per_s=given["io_write"],
            scratch_bytes=given["scratch"],
            require_limits=given["require_limits"],
        ),
        timeout_s=given["timeout"],
        grace_s=given["grace"],
        restart_on_node_loss=given["restart"],
        max_attempts=given["max_attempts"],
        network=given["network"],
        mounts=given["mount"],
    )


def _read_stdin(source: str | None) -> bytes:
    if source is None:
        return b""
    with opened(source) as file:
        data = file.read(STDIN_MAX_BYTES + 1)
    if len(data) > STDIN_MAX_BYTES:
        raise click.BadParameter(
            f"{source} is larger than 1 MiB, which is all that a task may have. Give it to the task with --mount",
            param_hint="--stdin",
        )
    return data
