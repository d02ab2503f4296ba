"""`node restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings
from node.cli.output import note
from node.cli.parameters import json_option
from node.cli.render_recovery import tell_begun_again

if TYPE_CHECKING:
    from node.config import Settings


@click.command("restore")
@with_settings
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do it; without this only tell what would be done.")
@json_option
def command(settings: Settings, file: Path, *, yes: bool, as_json: bool) -> int:
    """Begin a cluster again from a backup.

    FILE is what node backup wrote, or one of a node's snapshots. It becomes the data of this host, whose node must be
    stopped: in an empty data directory, or in that of a host of the same cluster that had a vote; what was there is
    kept beside. What happened since the backup is lost; tasks that ran then run again. Everything else of the old
    cluster must be stopped, and stay so. Afterwards start the node as always, without --peers, and let others join.
    """
    from node.app import REFUSALS
    from node.datadir import DataDir
    from node.recovery.restore import check_place, restore

    try:
        with DataDir.open(settings.data_dir) as data:
            memory = check_place(data)
            if not yes:
                here = f"which belongs to cluster {memory.cluster_id}" if memory else "which is empty"
                note(f"With --yes: {file} becomes the data of {settings.data_dir}, {here}.")
                note("Make sure first that no other node of the cluster runs, or will be started with its old data.")
                note("Nothing was changed.")
                return ExitCode.USAGE
            done = restore(settings, file.absolute(), data, say=note)
    except REFUSALS as error:
        raise Failure(str(error), ExitCode.FAILURE) from error
    tell_begun_again("restored", done, as_json=as_json)
    if not as_json:
        note("Next: start the node as always, without --peers. node remove the hosts of old, and let new ones join.")
    return ExitCode.OK
