"""`node token`: what a new machine needs to join the cluster.

The token goes to stdout alone, so that `node token create > FILE` makes the file that `--token-file` takes; all that
is said about it goes to stderr, and never the token itself.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from node.cli.connection import with_client
from node.cli.output import json_line, line, note
from node.cli.parameters import DURATION, json_option
from node.cli.render import Json, age, rfc3339
from node.cli.tables import Column, table
from node.units import format_duration

if TYPE_CHECKING:
    from pilfer.sync import Client
    from pilfer.types import TokenView

_COLUMNS = (Column("id"), Column("state"), Column("used"), Column("age", dispensable=1), Column("expires in"))


@click.group("token")
def command() -> None:
    """Make, list and revoke join tokens for new machines."""


@command.command("create")
@with_client
@click.option("--ttl", "ttl_s", type=DURATION, metavar="TIME", help="How long it may be used. [default: 1h]")
@click.option(
    "--uses", type=click.IntRange(min=1), metavar="N", help="How many machines may join with it. [default: any number]"
)
def create(client: Client, ttl_s: float | None, uses: int | None) -> None:
    """Print a new join token, alone on stdout. It is secret, and shown this once."""
    token = client.create_token(ttl_s=ttl_s, uses=uses or 0)
    line(token.text)
    view = token.view
    for_whom = f"{view.uses} machine{'s' if view.uses > 1 else ''}" if view.uses else "any number of machines"
    lasts = format_duration(round((view.expires_at - view.created_at).total_seconds()))
    note(f"Token {view.id} is good for {lasts}, for {for_whom}. It is secret: whoever has it may join.")
    if token.addresses:
        note(
            f"On each new machine: node start --listen HOST:PORT --peers {','.join(token.addresses)} --token-file FILE"
        )
    else:
        note("No node can be reached from other machines yet: start this one with --listen HOST:PORT first.")


@command.command("list")
@with_client
@json_option
def list_(client: Client, as_json: bool) -> None:
    """Show the join tokens that are known, the oldest first. Those that expired a day ago are forgotten."""
    now = datetime.now(UTC)
    tokens = client.list_tokens()
    if as_json:
        for token in tokens:
            json_line(_json(token, now))
        return
    table(_COLUMNS, (_row(token, now) for token in tokens))


@command.command("revoke")
@with_client
@click.argument("token_id", metavar="ID")
def revoke(client: Client, token_id: str) -> None:
    """Take a join token back: nobody joins with it any more. Machines that have joined stay.

    An ID may be cut short as long as it is unique.
    """
    token = client.revoke_token(token_id)
    line(token.id)
    note(f"Revoked. {token.used} machine{'' if token.used == 1 else 's'} had joined with it: node nodes shows them.")


def _row(token: TokenView, now: datetime) -> tuple[str, ...]:
    left_s = (token.expires_at - now).total_seconds()
    return (
        token.id,
        token.state(now).replace("_", " "),
        f"{token.used} of {token.uses}" if token.uses else str(token.used),
        age(token.created_at, now),
        format_duration(float(round(left_s))) if left_s > 0 else "",
    )


def _json(token: TokenView, now: datetime) -> Json:
    return {
        "id": token.id,
        "state": token.state(now),
        "created_at": rfc3339(token.created_at),
        "expires_at": rfc3339(token.expires_at),
        "uses": token.uses or None,
        "used": token.used,
    }
