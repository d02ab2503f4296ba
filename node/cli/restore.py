"""`node restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings
from node.cli.output import note, progress
from node.cli.parameters import json_option
from node.cli.render_recovery import busy_words, tell_begun_again, tell_restore_plan

if TYPE_CHECKING:
    from node.config import Settings
    from node.recovery.restore import Plan

_MIB = 1 << 20


@click.command("restore")
@with_settings
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do it; without this only tell what would be done, and exit with 2.")
@json_option
def command(settings: Settings, file: Path, *, yes: bool, as_json: bool) -> int:
    """Begin a cluster again from a backup.

    FILE is what node backup wrote, or one of a node's snapshots. It becomes the data of this host, whose node must be
    stopped: in an empty data directory, or in that of a host of the same cluster that had a vote; what was there is
    kept beside. What happened since the backup is lost; tasks that ran then run again. Everything else of the old
    cluster must be stopped, and stay so. Afterwards start the node as always, without --peers, and let others join.
    """
    from node.app import REFUSALS
    from node.datadir import DataDir, DataDirBusy
    from node.recovery.restore import ASIDE, restore

    try:
        # First: opening a directory fills it, and one for which there is no backup must stay as it is.
        found = _plan(settings, file)
        if not yes:
            tell_restore_plan(found, settings.data_dir, ASIDE, as_json=as_json)
            return ExitCode.USAGE
        with DataDir.open(settings.data_dir) as data:
            done = restore(settings, file.absolute(), data, say=note)
    except DataDirBusy as error:
        raise Failure(busy_words(error), ExitCode.FAILURE) from error
    except REFUSALS as error:
        raise Failure(str(error), ExitCode.FAILURE) from error
    tell_begun_again("restored", done, as_json=as_json)
    if not as_json:
        note("Next: start the node as always, without --peers. node remove the hosts of old, and let new ones join.")
    return ExitCode.OK


def _plan(settings: Settings, file: Path) -> Plan:
    """Raises what `node.recovery.restore.plan` raises."""
    from node.recovery.restore import plan

    with progress("MiB of the backup read", file.stat().st_size // _MIB) as tell:
        return plan(settings.data_dir, file, lambda read: tell(read // _MIB))
