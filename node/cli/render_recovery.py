"""What `node recover` and `node restore` say: what they would do, why they cannot, and of the cluster that goes on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from node.cli.output import json_line, line, note
from node.cli.render import rfc3339
from node.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from node.datadir import DataDirBusy
    from node.recovery.begin_again import BegunAgain
    from node.recovery.recover import Survivor
    from node.recovery.restore import Plan


def tell_recover_plan(found: Survivor, aside: str, *, as_json: bool) -> None:
    """aside: how the name begins by which the data of before are kept."""
    written = datetime.fromtimestamp(found.written_at, UTC)
    before = found.data_dir.with_name(f"{aside}*")
    if as_json:
        json_line(
            {
                "cluster_id": found.memory.cluster_id,
                "data": str(found.data_dir),
                "size_bytes": found.size_bytes,
                "written_at": rfc3339(written),
                "voters": list(found.memory.etcd_endpoints),
                "before": str(before),
            }
        )
    else:
        line(f"cluster   {found.memory.cluster_id}")
        line(f"data      {_file_words(found.data_dir, found.size_bytes, written)}; kept as {before.name}")
        line(
            f"voters    {', '.join(found.memory.etcd_endpoints) or 'not known'} (their client ports), as last seen here"
        )
    note("With --yes: the data are copied, and with the copy this host becomes the only voter of its cluster. It takes")
    note("some seconds longer than the leases of the nodes, which are waited for.")
    note("What the other voters had acknowledged and this one had not received is lost.")
    note("Make sure first that the other voters stay down: two of them would be the old cluster beside this one.")
    note("Nothing was changed.")


def tell_restore_plan(plan: Plan, data_dir: Path, aside: str, *, as_json: bool) -> None:
    """data_dir: the node's. aside: as above."""
    written = datetime.fromtimestamp(plan.backup.written_at, UTC)
    before = plan.data_dir.with_name(f"{aside}*") if plan.has_data else None
    if as_json:
        json_line(
            {
                "cluster_id": plan.cluster_id,
                "file": str(plan.backup.path),
                "size_bytes": plan.backup.size_bytes,
                "written_at": rfc3339(written),
                "data": str(plan.data_dir),
                "before": str(before) if before else None,
            }
        )
    else:
        line(f"cluster   {plan.cluster_id or 'that of the backup'}")
        line(f"backup    {_file_words(plan.backup.path, plan.backup.size_bytes, written)}; it fits its checksum")
        line(f"data      {plan.data_dir}, {f'there are some: kept as {before.name}' if before else 'there are none'}")
    here = f"belongs to cluster {plan.cluster_id}" if plan.cluster_id else "belongs to no cluster yet"
    note(f"With --yes: {plan.backup.path} becomes the data of {data_dir}, which {here}.")
    note("Make sure first that no other node of the cluster runs, or will be started with its old data.")
    note("Nothing was changed.")


def _file_words(path: Path, size_bytes: int, written: datetime) -> str:
    return f"{path}, {format_size(size_bytes)}, last written {written:%Y-%m-%d %H:%M:%S} UTC"


def busy_words(error: DataDirBusy) -> str:
    """What to do where a node runs in the directory; there is no other to take."""
    pid = error.pid if error.pid is not None else "PID"
    return (
        f"{error.reason}: stop that first (systemctl stop, where systemd runs it; Ctrl-C; or kill {pid}), then repeat"
    )


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
