"""The table of verbs, and a click group that loads a verb when it is called."""

from __future__ import annotations

import importlib
from typing import Final, cast

import click

from node.cli.failures import ReaderGone

#: Verb -> what it does, for `node --help`; the verb's own module is `node.cli.VERB`, its command `command`.
VERBS: Final[dict[str, str]] = {
    "start": "Start a node on this machine, in the foreground.",
    "submit": "Queue a task, or a file of tasks, and print the ids.",
    "run": "Run a command as a task and exit as it does.",
    "status": "Show tasks in full.",
    "list": "List tasks.",
    "log": "Print what a task wrote.",
    "wait": "Wait for tasks to end.",
    "cancel": "Cancel tasks, queued or running.",
    "why": "Tell why a task does not start, node by node.",
    "nodes": "Show the nodes of the cluster.",
    "drain": "Let a node claim no more tasks.",
    "remove": "Forget a node that is gone, and bar its return.",
    "token": "Make, list and revoke join tokens for new machines.",
    "invite": "Make a certificate for a command line on another machine.",
    "backup": "Write the cluster's data into a file.",
    "restore": "Begin a cluster again from a backup.",
    "recover": "Make a surviving voter a cluster of its own, when quorum is lost for good.",
    "env": "Print the settings that etcdctl needs to look into this node's etcd.",
    "config": "Show a node's settings and where each comes from.",
    "version": "Print the version.",
}

_EPILOG = """\b
Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 not allowed,
5 no node answers or no quorum, 124 timed out, 130 interrupted.
"""


class LazyGroup(click.Group):
    """Knows its verbs by name; loads one when asked for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        return cast(click.Command, importlib.import_module(f"node.cli.{cmd_name}").command)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # click would exit with 1 for an OSError of this kind, before `failures.run` sees it.
            raise ReaderGone from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table, without loading anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
def root() -> None:
    """Pilfer: run commands on all your machines, without a head node.

    `node start` makes a cluster of one, with --peers it joins one; `node run -- CMD ARG...` runs a command there.
    """
