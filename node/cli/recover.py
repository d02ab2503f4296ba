"""`node recover`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from node.cli.failures import ExitCode, Failure
from node.cli.node_options import with_settings
from node.cli.output import note
from node.cli.parameters import json_option
from node.cli.render_recovery import busy_words, tell_begun_again, tell_recover_plan

if TYPE_CHECKING:
    from node.config import Settings


@click.command("recover")
@with_settings
@click.option("--yes", is_flag=True, help="Do it; without this only tell what would be done, and exit with 2.")
@json_option
def command(settings: Settings, *, yes: bool, as_json: bool) -> int:
    """Make a surviving voter a cluster of its own, when quorum is lost for good.

    Only where the majority of the voters will not come back: what they had acknowledged and this one had not received
    is lost. This host's node must be stopped. The data of before are kept beside the new ones. Afterwards start the
    node as always; hosts that live come back to it by themselves.
    """
    from node.app import REFUSALS
    from node.datadir import DataDir, DataDirBusy
    from node.recovery.recover import ASIDE, plan, recover

    try:
        # First: opening a directory makes what is missing of it, and a wrong --data-dir must stay as it is.
        found = plan(settings.data_dir)
        if not yes:
            tell_recover_plan(found, ASIDE, as_json=as_json)
            return ExitCode.USAGE
        with DataDir.open(settings.data_dir) as data:
            done = recover(settings, data, say=note)
    except DataDirBusy as error:
        why_not = "A cluster whose quorum is there needs no recovery: node nodes says whether it is"
        raise Failure(f"{busy_words(error)}. {why_not}", ExitCode.FAILURE) from error
    except REFUSALS as error:
        raise Failure(str(error), ExitCode.FAILURE) from error
    tell_begun_again("recovered", done, as_json=as_json)
    if not as_json:
        note("Next: start the node as always. node remove each host that will not come back; join new ones.")
    return ExitCode.OK
