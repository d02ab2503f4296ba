"""`node drain`."""

from __future__ import annotations

import sys
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
#: So many looks in a row at a node that does not answer are not worth a word: one that died is gone by then.
SILENT_LOOKS = 15

#: Why a node cannot have said yet how it stands to its drain, by its state.
_NOT_SAID = {
    "joining": "it has no lease yet (joining), and hears of it when it has one",
    "at_risk": "it gets no answer from etcd (at_risk), and hears of it when it does",
    "unreachable": "what runs there it cannot be asked (unreachable)",
}


@click.command("drain")
@with_client
@click.argument("node", metavar="NODE")
@click.option("--undo", is_flag=True, help="Let it claim tasks again.")
@click.option("--wait", "waits", is_flag=True, help="Let all that runs there finish, and wait for it.")
@json_option
def command(client: Client, node: str, *, undo: bool, waits: bool, as_json: bool) -> int:
    """Let a node claim no more tasks.

    NODE is a whole name, or the first digits, four or more, of a node id or host id. The node gives back what it runs,
    to be run elsewhere; tasks that may not be restarted finish. Holds over restarts of the node, until --undo.
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
    view, silent, is_silence_told = first, 0, False
    with progress(f"{printable(first.name)}: tasks that finish", first.running) as tell:
        while view.state not in ("drained", "gone"):
            silent = silent + 1 if view.state == "unreachable" else 0
            # One without an address answers nobody but its own machine.
            if not is_silence_told and silent >= (SILENT_LOOKS if view.address else 1):
                _say_silent(view)
                is_silence_told = True
            if view.state == "ready":
                raise Failure(f"the drain of {printable(view.name)} was undone meanwhile", ExitCode.FAILURE)
            time.sleep(LOOK_EVERY_S)
            found = [node for node in client.nodes() if node.host_id == first.host_id]
            if not found:
                raise Failure(f"{printable(view.name)} was removed meanwhile", ExitCode.FAILURE)
            view = found[0]
            tell(max(0, first.running - view.running))
    return view


def _say_silent(view: NodeView) -> None:
    below_bar = "\n" if sys.stderr.isatty() else ""
    note(
        f"{below_bar}{printable(view.name)} does not answer (unreachable), and it alone can say that nothing runs "
        f"there: this may wait in vain. {_ask_there(view)} Ctrl-C ends the waiting alone."
    )


def _say(view: NodeView, *, undo: bool) -> None:
    name = printable(view.name)
    if view.state == "gone":
        line(f"{name} is gone; when it comes back it claims {'tasks again' if undo else 'nothing'}")
    elif undo:
        line(f"{name} claims tasks again")
    elif view.state == "drained":
        line(f"{name} is drained: it claims nothing, and nothing runs there")
    elif view.state in _NOT_SAID:
        line(f"{name} has been told to claim nothing more; {_NOT_SAID[view.state]}")
        note(_ask_there(view) if view.state == "unreachable" else "node nodes shows how far it is.")
    elif view.running:
        line(f"{name} claims nothing more and gives back what it runs")
        still = "1 task runs" if view.running == 1 else f"{view.running} tasks run"
        note(f"{still} there still; those that may not be restarted finish. node nodes shows how far it is.")
    else:
        # It is not known to run anything, and has not said that it does not: a claim may be under way.
        line(f"{name} has been told to claim nothing more, and has not said yet that nothing runs there")
        note("node nodes shows when it is drained.")
    if not undo:
        note(f"To end it: {_undo(name)}")


def _ask_there(view: NodeView) -> str:
    """What to do about a node that does not answer."""
    why = f"Is the way to {view.address} shut?" if view.address else "It serves its unix socket alone (no --listen)."
    return f"{why} On its own machine node nodes shows how far it is."


def _undo(name: str) -> str:
    return f"node drain {name} --undo"
