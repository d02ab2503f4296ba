"""`node recover`: makes a surviving voter the only one, when the majority of the voters is gone for good.

What the lost majority had acknowledged and this voter had not received is lost: that is what a quorum is for. So this
is a person's decision, never the node's own, and the old data stay beside the new.

Order: everything is checked; the data are copied aside, whole and durable, before anything is changed; then etcd
forgets the other members, and the epoch is raised. A crash in between leaves the data as they were, or a cluster of
one whose epoch is raised by the next try: repeating it is harmless.

The other voters may come back one by one: this one tells each that it is a member no more, and it goes on as a client
(`node/cluster/membership.py`). Two of them that start beside each other while neither reaches this one would be the
old quorum: the operator is told.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from node.cluster.founding import WrongCluster
from node.config import Settings
from node.datadir import DataDir, DataDirError
from node.joining.cluster_memory import ClusterMemory
from node.recovery.lone_etcd import BegunAgain, ensure_own_trust, lone_etcd, look, raise_epoch

#: Data of before, beside the new.
ASIDE = "data.before-recover-"
#: Room that must be left on the disk when the copy is made.
RESERVE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Survivor:
    """What is there to recover from."""

    memory: ClusterMemory
    data_dir: Path
    size_bytes: int
    #: Unix seconds of the newest write.
    written_at: float


def survivor(data: DataDir) -> Survivor:
    """Whether this host can be recovered from, and what it has. Raises DataDirError, in words that say what else."""
    memory = ClusterMemory.load(data.path)
    if memory is None:
        raise DataDirError(f"{data.path} belongs to no cluster: there is nothing to recover")
    directory = data.etcd / "data"
    if not (directory / "member" / "wal").is_dir():
        raise DataDirError(
            f"{data.path} holds no copy of the cluster's tasks, since this host had no vote: recover on one that had "
            "(node nodes showed it as voter), or restore a backup (node restore FILE)"
        )
    files = [path for path in directory.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Survivor(memory, directory, size, max(path.stat().st_mtime for path in files))


async def recover(settings: Settings, data: DataDir, *, say: Callable[[str], None]) -> BegunAgain:
    """Does it. Raises DataDirError, TrustError, WrongCluster, EtcdNotFound, EtcdNotReady, StoreError, OSError.

    say: told each step, for people.
    """
    found = survivor(data)
    trust = ensure_own_trust(data, may_found=False)
    aside = data.etcd / f"{ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    say(f"copying the data to {aside}")
    await asyncio.to_thread(copy_aside, found.data_dir, aside, found.size_bytes)
    say("starting etcd alone, without the other members")
    async with lone_etcd(settings, data.etcd, trust, force_new_cluster=True) as etcd:
        contents = await look(etcd)
        if contents.cluster.id != found.memory.cluster_id:
            raise WrongCluster(
                f"these data are of cluster {contents.cluster.id}, and this host belongs to {found.memory.cluster_id}"
            )
        epoch = await raise_epoch(etcd, contents.cluster)
    return BegunAgain(contents, epoch, aside)


def copy_aside(source: Path, target: Path, size_bytes: int) -> None:
    """A whole and durable copy, or none. Raises DataDirError (no room), OSError."""
    free = shutil.disk_usage(source).free
    if free < size_bytes + RESERVE_BYTES:
        raise DataDirError(
            f"the copy of {source} needs {size_bytes + RESERVE_BYTES} bytes, and {free} are free: make room first"
        )
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        shutil.copytree(source, unfinished)
        for path in (*unfinished.rglob("*"), unfinished):
            _sync(path)
        unfinished.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
