"""What `node recover` and `node restore` say of the cluster that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.cli.output import json_line, line, note

if TYPE_CHECKING:
    from node.recovery.begin_again import BegunAgain


def tell_begun_again(how: str, done: BegunAgain, *, as_json: bool) -> None:
    """how: the first word of the line."""
    has = done.contents
    if as_json:
        json_line(
            {
                "cluster_id": has.cluster.id,
                "epoch": done.epoch,
                "revision": has.revision,
                "tasks": has.tasks,
                "queued": has.queued,
                "running": has.running,
                "before": str(done.aside) if done.aside else None,
            }
        )
        return
    line(f"{how}: {has.tasks} tasks; {has.queued} of them are queued, and {has.running} ran and will be queued again")
    if done.aside:
        note(f"The data of before are in {done.aside}: delete them when all is well.")
