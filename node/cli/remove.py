"""`node remove`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import json_line, line
from node.cli.parameters import json_option
from node.cli.render import printable

if TYPE_CHECKING:
    from pilfer.sync import Client


@click.command("remove")
@with_client
@click.argument("node", metavar="NODE")
@json_option
def command(client: Client, node: str, as_json: bool) -> None:
    """Forget a node that is gone, and bar its return.

    NODE is a whole name, or the first digits, four or more, of a node id or host id. A node that lives is refused:
    drain and stop it first. The machine may join again later, with an empty data directory and a new token.
    """
    removed = client.remove(node)
    if as_json:
        json_line({"host_id": removed.host_id, "name": removed.name})
    else:
        line(f"{printable(removed.name)} (host {removed.host_id}) is removed and may not come back")
