"""`node restore`: a cluster begins again from a backup, on one host, in an empty data directory or in its own.

What happened after the backup was made is lost. Tasks that ran then are queued again after the first start: their
nodes' leases are waited for here (`begin_again.py`). Whatever is left of the old cluster must be stopped before, and
must not be started again with its old data: its nodes would be a second cluster with the same tasks.

Order: the backup is unpacked and looked into beside what is there; only then does it take its place, and what was there
is kept. A crash in between changes nothing, or leaves an etcd directory without its `cluster.json`, which no start
accepts: repeating the restore mends it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from node.config import Settings
from node.datadir import DataDir, DataDirError
from node.files import sync_tree
from node.joining.cluster_memory import ClusterMemory
from node.recovery.begin_again import BegunAgain, Contents, begin_alone, check_can_change, put_in_place
from node.recovery.lone_etcd import ensure_own_trust
from node.recovery.unpack import unpack
from node.trust.material import has_joined

ASIDE = "data.before-restore-"
#: Where the backup is unpacked, beside etcd's own directory.
UNPACKED = "restoring"


def check_place(data: DataDir) -> ClusterMemory | None:
    """Whether a cluster can begin here; the memory of the one that is here already. Raises DataDirError."""
    check_can_change(data.etcd / "data")
    memory = ClusterMemory.load(data.path)
    if memory is not None and has_joined(data.pki) and not (data.pki / "ca.key").exists():
        raise DataDirError(
            f"{data.path} lacks the authority's key (this host had no vote), so no machine could join the restored "
            "cluster: restore on a host that had a vote, or into an empty data directory (--data-dir)"
        )
    return memory


def restore(settings: Settings, file: Path, data: DataDir, *, say: Callable[[str], None]) -> BegunAgain:
    """Does it, on a loop of its own. Raises DataDirError, EtcdNotFound, EtcdNotReady, WrongCluster, StoreError,
    TrustError, OSError; then, and where it is interrupted, nothing was changed.

    say: told each step, for people.
    """
    memory = check_place(data)

    def check(contents: Contents) -> None:
        if memory is not None and contents.cluster.id != memory.cluster_id:
            raise DataDirError(
                f"{file} is of cluster {contents.cluster.id}, and {data.path} belongs to {memory.cluster_id}: "
                "restore it into another, empty data directory (--data-dir)"
            )

    place = data.etcd / UNPACKED
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700, parents=True)
    try:
        say(f"unpacking {file}")
        unpack(settings, file, place / "data", data.host_id)
        sync_tree(place / "data")
        trust = ensure_own_trust(data, may_found=True)
        say("looking into it")
        contents, epoch = begin_alone(settings, place, trust, check, say=say)
        aside = put_in_place(place / "data", data.etcd / "data", ASIDE)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found = memory or ClusterMemory(data.path, cluster_id=contents.cluster.id, name=settings.name, is_founder=True)
    found.save()
    return BegunAgain(contents, epoch, aside)
