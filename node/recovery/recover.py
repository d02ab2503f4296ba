"""`node recover`: makes a surviving voter the only one, when the majority of the voters is gone for good.

What the lost majority had acknowledged and this voter had not received is lost: that is what a quorum is for. So this
is a person's decision, never the node's own, and the old data stay beside the new.

Order: everything is checked; the data are copied, and in the copy etcd forgets the other members and begins again
(`begin_again.py`); whole and durable, it takes the place of the data, which are kept beside it. A crash at any moment
leaves either in place, and perhaps the copy: where it is made, which the next try clears, or by the name for what is
kept, which nobody touches.

The other voters may come back one by one: this one tells each that it is a member no more, and it goes on as a client
(`node/cluster/membership.py`). Two of them that start beside each other while neither reaches this one would be the
old quorum: the operator is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.cluster.founding import WrongCluster
from node.config import Settings
from node.datadir import DataDir, DataDirError, check_free
from node.files import sync_tree
from node.joining.cluster_memory import ClusterMemory
from node.recovery.begin_again import BegunAgain, Contents, begin_alone
from node.recovery.lone_etcd import ensure_own_trust
from node.recovery.put_in_place import check_can_change, put_in_place

#: Data of before, beside the new.
ASIDE = "data.before-recover-"
#: Where the copy is made, beside etcd's own directory.
COPY = "recovering"
#: Room that must be left on the disk when the copy is made.
RESERVE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Survivor:
    """What is there to recover from."""

    memory: ClusterMemory
    #: etcd's.
    data_dir: Path
    size_bytes: int
    #: Unix seconds of the newest write.
    written_at: float


def plan(path: Path) -> Survivor:
    """What would be recovered in the data directory `path`, where nothing is made or changed. Raises DataDirBusy,
    DataDirError."""
    path = path.absolute()
    if not check_free(path):
        raise DataDirError(f"there is no {path}: give the data directory that the node here ran with (--data-dir)")
    return survivor(path)


def survivor(path: Path) -> Survivor:
    """Whether this host can be recovered from, and what its data directory has. Raises DataDirError, in words that say
    what else."""
    memory = ClusterMemory.load(path)
    if memory is None:
        raise DataDirError(
            f"{path} belongs to no cluster, so there is nothing to recover: give the data directory that the node here "
            "ran with (--data-dir)"
        )
    directory = path / "etcd" / "data"
    if not (directory / "member" / "wal").is_dir():
        raise DataDirError(
            f"{path} holds no copy of the cluster's tasks, since this host had no vote: recover on one that had "
            "(node nodes showed it as voter), or restore a backup (node restore FILE)"
        )
    check_can_change(directory)
    files = [path for path in directory.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Survivor(memory, directory, size, max(path.stat().st_mtime for path in files))


def recover(settings: Settings, data: DataDir, *, say: Callable[[str], None]) -> BegunAgain:
    """Does it, on a loop of its own. Raises DataDirError, TrustError, WrongCluster, EtcdNotFound, EtcdNotReady,
    StoreError, OSError; then, and where it is interrupted, nothing was changed.

    say: told each step, for people.
    """
    found = survivor(data.path)

    def check(contents: Contents) -> None:
        if contents.cluster.id != found.memory.cluster_id:
            raise WrongCluster(
                f"these data are of cluster {contents.cluster.id}, and this host belongs to {found.memory.cluster_id}: "
                "nothing was changed"
            )

    trust = ensure_own_trust(data, may_found=False)
    place = data.etcd / COPY
    shutil.rmtree(place, ignore_errors=True)
    try:
        say("copying the data")
        copy(found.data_dir, place / "data", found.size_bytes)
        say("starting etcd alone in the copy, without the other members")
        contents, epoch = begin_alone(settings, place, trust, check, force_new_cluster=True, say=say)
        aside = put_in_place(place / "data", found.data_dir, ASIDE)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return BegunAgain(contents, epoch, aside)


def copy(source: Path, target: Path, size_bytes: int) -> None:
    """A durable copy. Raises DataDirError (no room), OSError."""
    free = shutil.disk_usage(source).free
    if free < size_bytes + RESERVE_BYTES:
        raise DataDirError(
            f"the copy of {source} needs {size_bytes + RESERVE_BYTES} bytes, and {free} are free: make room first"
        )
    target.parent.mkdir(mode=0o700)
    shutil.copytree(source, target)
    # Now: etcd's own writes would wait behind all of it.
    sync_tree(target)
