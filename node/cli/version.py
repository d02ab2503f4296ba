"""`node version`."""

from __future__ import annotations

import click

from node.cli.output import json_line, line
from node.cli.parameters import json_option
from pilfer.version import VERSION


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        json_line({"version": VERSION})
    else:
        line(VERSION)
