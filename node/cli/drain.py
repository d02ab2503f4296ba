"""`node drain`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.failures import ExitCode, Failure
from node.cli.output import json_line, line, note, progress
from node.cli.parameters import json_option
from node.cli.render import printable
from node.cli.render_nodes import node_json

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import NodeView

#: How often a wait looks: nodes have no stream of news, and each is asked for its own word.
LOOK_EVERY_S = 1.0


@click.command("drain")
@with_client
@click.argument("node", metavar="NODE")
@click.option("--undo", is_flag=True, help="Let it claim tasks again.")
@click.option("--wait", "waits", is_flag=True, help="Let all that runs there finish, and wait for it.")
@json_option
def command(client: Client, node: str, *, undo: bool, waits: bool, as_json: bool) -> int:
    """Let a node claim no more tasks.

    NODE is a name, or the first digits of a node id or host id. The node gives back what it runs, to be run elsewhere;
    tasks that may not be restarted finish. Holds over restarts of the node, until --undo.
    """
    if undo and waits:
        raise click.UsageError("--undo and --wait have no meaning together.")
    view = client.drain(node, undo=undo, let_finish=waits)
    if waits:
        try:
            view = _wait_drained(client, view)
        except KeyboardInterrupt:
            name = printable(view.name)
            note(
                f"\nThe drain of {name} stays: it claims nothing, and what runs there finishes. "
                f"To end it: {_undo(name)}"
            )
            return ExitCode.INTERRUPTED
    if as_json:
        json_line(node_json(view))
    else:
        _say(view, undo=undo)
    return ExitCode.OK


def _wait_drained(client: Client, first: NodeView) -> NodeView:
    """Returns when nothing runs there any more: by the node's own word, or because it is gone."""
    view = first
    with progress(f"{printable(first.name)}: tasks that finish", first.running) as tell:
        while view.state not in ("drained", "gone"):
            if view.state == "ready":
                raise Failure(f"the drain of {printable(view.name)} was undone meanwhile", ExitCode.FAILURE)
            time.sleep(LOOK_EVERY_S)
            found = [node for node in client.nodes() if node.host_id == first.host_id]
            if not found:
                raise Failure(f"{printable(view.name)} was removed meanwhile", ExitCode.FAILURE)
            view = found[0]
            tell(max(0, first.running - view.running))
    return view


def _say(view: NodeView, *, undo: bool) -> None:
    name = printable(view.name)
    if view.state == "gone":
        line(f"{name} is gone; when it comes back it claims {'tasks again' if undo else 'nothing'}")
    elif undo:
        line(f"{name} claims tasks again")
    elif view.running:
        line(f"{name} claims nothing more and gives back what it runs")
        still = "1 task runs" if view.running == 1 else f"{view.running} tasks run"
        note(f"{still} there still; those that may not be restarted finish. node nodes shows how far it is.")
    else:
        line(f"{name} is drained: it claims nothing, and nothing runs there")
    if not undo:
        note(f"To end it: {_undo(name)}")


def _undo(name: str) -> str:
    return f"node drain {name} --undo"
