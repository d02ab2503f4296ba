"""What lets a cluster go on from a copy of its data: nothing that came after the copy may be taken for a part of it.

Nodes may live through this (`recover` is done on one host, while hosts without a vote go on), with what they knew of
the history that is lost. Before anybody can talk to the copy:

* **No node has a lease in it.** etcd starts every lease anew when it starts, so all of them run out here within their
  time, and for longer than that no node has had an answer: all have ended what they ran. Otherwise one whose lease is
  in the copy would go on with tasks that are queued there, or were given to others, and no guard would stop it.
* **The epoch is raised**, so that fence tokens are larger than all that were handed out.
* **Revisions are passed over, and compacted.** A watch that had seen more than the copy has would go on at a revision
  that is yet to come, and never be told of those before it. So it finds its revision compacted, and lists again.

Repeating it is harmless.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from etcd import keys
from etcd.port import Compare, Put, Range, Relation, Target, Txn
from node.cluster.founding import Cluster, WrongCluster, read_cluster
from node.files import sync_directory

if TYPE_CHECKING:
    from etcd.client import EtcdClient

#: A voter that lagged by more writes than these is a case for a backup rather; raft sends 512 messages ahead.
REVISIONS_PASSED = 10_000
#: Of those writes, at a time.
_IN_FLIGHT = 200
#: The longest lease that is waited for.
LEASES_LIMIT_S = 300.0
_LOOK_S = 0.25
_WRITE_LIMIT_S = 30.0
_EPOCH_DAYS_BEGIN = date(2025, 1, 1)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy of the cluster's data holds."""

    cluster: Cluster
    revision: int
    tasks: int
    queued: int
    running: int


@dataclass(frozen=True, slots=True)
class BegunAgain:
    """A cluster that goes on from a copy of its data."""

    contents: Contents
    #: Of the cluster from now on.
    epoch: int
    #: What was there before; None: nothing.
    aside: Path | None


async def look(etcd: EtcdClient) -> Contents:
    """Raises WrongCluster where no cluster was founded in it, StoreError."""
    cluster = await read_cluster(etcd)
    if cluster is None:
        raise WrongCluster("there is no cluster in these data")
    counts = []
    for every in (keys.all_tasks(), keys.queued(), keys.running()):
        counts.append(await etcd.range(Range(every.key, every.range_end, count_only=True)))
    return Contents(cluster, counts[0].revision, *(found.count for found in counts))


async def begin_again(etcd: EtcdClient, cluster: Cluster, *, say: Callable[[str], None]) -> int:
    """Does what the module says; gives the new epoch. Raises StoreError, WrongCluster (somebody else writes to it, or a
    node's key stays).

    say: told each step, for people.
    """
    await _wait_for_leases(etcd, say)
    say("raising the epoch, and passing over revisions")
    epoch = await _raise_epoch(etcd, cluster)
    await _pass_over_revisions(etcd, epoch)
    return epoch


async def _wait_for_leases(etcd: EtcdClient, say: Callable[[str], None]) -> None:
    nodes = keys.all_nodes()
    limit_at = asyncio.get_running_loop().time() + LEASES_LIMIT_S
    is_told = False
    while count := (await etcd.range(Range(nodes.key, nodes.range_end, count_only=True))).count:
        if not is_told:
            say(f"waiting until the leases of {count} nodes have run out")
            is_told = True
        if asyncio.get_running_loop().time() > limit_at:
            raise WrongCluster(
                f"{count} keys below {nodes.key.decode()} are still there after {LEASES_LIMIT_S:g} s: nodes' keys have "
                "leases of some seconds. Nothing was changed. Whoever wrote them must delete them"
            )
        await asyncio.sleep(_LOOK_S)


async def _raise_epoch(etcd: EtcdClient, cluster: Cluster) -> int:
    """At least the days since 2025: then it is larger, too, than that of another recovery since the backup was made,
    unless both are of one day, or this host's clock is far back."""
    days = (datetime.now(UTC).date() - _EPOCH_DAYS_BEGIN).days
    epoch = max(cluster.epoch + 1, days)
    key = keys.cluster_epoch()
    raised = await etcd.txn(
        Txn(
            compares=(Compare(key, Target.VALUE, Relation.EQUAL, str(cluster.epoch).encode()),),
            success=(Put(key, str(epoch).encode()),),
        )
    )
    if not raised.succeeded:
        raise WrongCluster("somebody else writes to these data: stop whatever it is, and begin again")
    return epoch


async def _pass_over_revisions(etcd: EtcdClient, epoch: int) -> None:
    """Each transaction is a revision: the epoch is written again and again."""
    again = Txn(success=(Put(keys.cluster_epoch(), str(epoch).encode()),))
    revision = 0
    for _ in range(0, REVISIONS_PASSED, _IN_FLIGHT):
        written = await asyncio.gather(*(etcd.txn(again, timeout_s=_WRITE_LIMIT_S) for _ in range(_IN_FLIGHT)))
        revision = max(result.revision for result in written)
    await etcd.compact(revision)


def put_in_place(made: Path, there: Path, aside: str) -> Path | None:
    """`made`, durable, becomes etcd's data directory `there`; what was there before is kept beside it, by a name that
    begins with `aside` and tells the time: that is given. A crash in between leaves nothing in place. Blocks while it
    syncs. Raises OSError."""
    for path in (*made.rglob("*"), made):
        _sync(path)
    kept = None
    if there.exists():
        kept = there.with_name(f"{aside}{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        there.rename(kept)
    made.rename(there)
    sync_directory(there.parent)
    return kept


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
