"""`node restore`: a cluster begins again from a backup, on one host, in an empty data directory or in its own.

What happened after the backup was made is lost. Tasks that ran then are queued again after the first start: their
nodes' leases are waited for here (`begin_again.py`). Whatever is left of the old cluster must be stopped before, and
must not be started again with its old data: its nodes would be a second cluster with the same tasks.

Order: the backup is compared with its checksum before anything is made; it is unpacked and looked into beside what is
there; only then does it take its place, and what was there is kept. A crash in between changes nothing, or leaves an
etcd directory without its `cluster.json`, which no start accepts: repeating the restore mends it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.config import Settings
from node.datadir import DataDir, DataDirError, check_can_make, check_free
from node.files import sync_tree
from node.joining.cluster_memory import ClusterMemory
from node.recovery.backup_file import BackupFile, check_backup
from node.recovery.begin_again import BegunAgain, Contents, begin_alone
from node.recovery.lone_etcd import ensure_own_trust
from node.recovery.put_in_place import check_can_change, put_in_place
from node.recovery.unpack import unpack
from node.trust.material import has_joined

ASIDE = "data.before-restore-"
#: Where the backup is unpacked, beside etcd's own directory.
UNPACKED = "restoring"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore would do, as far as that can be told without unpacking the backup."""

    backup: BackupFile
    #: Where the data will be: etcd's directory.
    data_dir: Path
    #: Of the cluster that is here already.
    cluster_id: str | None
    #: Whether there are data that will be kept beside.
    has_data: bool


def plan(path: Path, file: Path, tell: Callable[[int], None] = lambda _read: None) -> Plan:
    """Whether `file` can be restored into the data directory `path`, which need not be there: nothing is made or
    changed. Raises DataDirBusy, DataDirError.

    tell: given the bytes of the file that were read so far, each time.
    """
    path = path.absolute()
    if not check_free(path):
        check_can_make(path)
    memory = check_place(path)
    data_dir = path / "etcd" / "data"
    return Plan(check_backup(file, tell), data_dir, memory.cluster_id if memory else None, data_dir.exists())


def check_place(path: Path) -> ClusterMemory | None:
    """Whether a cluster can begin in this data directory; the memory of the one that is here already. Raises
    DataDirError."""
    check_can_change(path / "etcd" / "data")
    memory = ClusterMemory.load(path)
    pki = path / "pki"
    if memory is not None and has_joined(pki) and not (pki / "ca.key").exists():
        raise DataDirError(
            f"{path} lacks the authority's key (this host had no vote), so no machine could join the restored "
            "cluster: restore on a host that had a vote, or into an empty data directory (--data-dir)"
        )
    return memory


def restore(settings: Settings, file: Path, data: DataDir, *, say: Callable[[str], None]) -> BegunAgain:
    """Does it, on a loop of its own. Raises DataDirError, EtcdNotFound, EtcdNotReady, WrongCluster, StoreError,
    TrustError, OSError; then, and where it is interrupted, nothing was changed. What is wrong with `file` the plan
    tells better.

    say: told each step, for people.
    """
    memory = check_place(data.path)

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
