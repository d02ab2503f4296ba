"""`node recover`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings
from node.cli.output import line, note
from node.cli.parameters import json_option
from node.cli.render_recovery import tell_begun_again
from node.units import format_size

if TYPE_CHECKING:
    from node.config import Settings
    from node.recovery.recover import Survivor


@click.command("recover")
@with_settings
@click.option("--yes", is_flag=True, help="Do it; without this only tell what would be done.")
@json_option
def command(settings: Settings, *, yes: bool, as_json: bool) -> int:
    """Make a surviving voter a cluster of its own, when quorum is lost for good.

    Only where the majority of the voters will not come back: what they had acknowledged and this one had not received
    is lost. This host's node must be stopped. The data of before are kept beside the new ones. Afterwards start the
    node as always; hosts that live come back to it by themselves.
    """
    from node.app import REFUSALS
    from node.datadir import DataDir
    from node.recovery.recover import recover, survivor

    try:
        with DataDir.open(settings.data_dir) as data:
            found = survivor(data)
            if not yes:
                _tell_plan(found)
                return ExitCode.USAGE
            done = recover(settings, data, say=note)
    except REFUSALS as error:
        raise Failure(str(error), ExitCode.FAILURE) from error
    tell_begun_again("recovered", done, as_json=as_json)
    if not as_json:
        note("Next: start the node as always. node remove each host that will not come back; join new ones.")
    return ExitCode.OK


def _tell_plan(found: Survivor) -> None:
    written = datetime.fromtimestamp(found.written_at, UTC)
    line(f"cluster   {found.memory.cluster_id}")
    line(f"data      {found.data_dir}, {format_size(found.size_bytes)}, last written {written:%Y-%m-%d %H:%M:%S} UTC")
    line(f"voters    {', '.join(found.memory.etcd_endpoints) or 'not known'} (their client ports), as last seen here")
    note("With --yes: the data are copied, and with the copy this host becomes the only voter of its cluster. It takes")
    note("some seconds longer than the leases of the nodes, which are waited for.")
    note("What the other voters had acknowledged and this one had not received is lost.")
    note("Make sure first that the other voters stay down: two of them would be the old cluster beside this one.")
    note("Nothing was changed.")
