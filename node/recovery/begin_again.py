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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from etcd import keys
from etcd.errors import NoSpace
from etcd.port import Compare, Put, Range, Relation, Target, Txn
from node.cluster.founding import Cluster, WrongCluster, read_cluster
from node.config import Settings
from node.recovery.lone_etcd import lone_etcd
from node.trust.material import Trust

if TYPE_CHECKING:
    from etcd.client import EtcdClient

#: A voter that lagged by more writes than these is a case for a backup rather; raft sends 512 messages ahead.
REVISIONS_PASSED = 10_000
#: Of those writes, at a time.
_IN_FLIGHT = 200
_LOOK_S = 0.25
_SAY_EVERY_S = 15.0
#: For one call: what was copied just now may keep the disk busy.
_CALL_LIMIT_S = 60.0
_MAKE_ROOM_LIMIT_S = 600.0
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


def begin_alone(
    settings: Settings,
    directory: Path,
    trust: Trust,
    check: Callable[[Contents], None],
    *,
    force_new_cluster: bool = False,
    say: Callable[[str], None],
) -> tuple[Contents, int]:
    """Looks into the data in `directory`/data and begins again in them, on a loop of its own; gives what they hold and
    the new epoch. Raises what `lone_etcd`, `look` and `begin_again` raise.

    check: raises where these are not the data that are meant. force_new_cluster: forget the other members. say: told
    each step, for people.
    """

    async def begin() -> tuple[Contents, int]:
        async with lone_etcd(settings, directory, trust, force_new_cluster=force_new_cluster) as etcd:
            contents = await look(etcd)
            check(contents)
            return contents, await begin_again(etcd, contents, lease_ttl_s=settings.lease_ttl_s, say=say)

    return asyncio.run(begin())


async def look(etcd: EtcdClient) -> Contents:
    """Raises WrongCluster where no cluster was founded in it, StoreError."""
    cluster = await read_cluster(etcd, timeout_s=_CALL_LIMIT_S)
    if cluster is None:
        raise WrongCluster("there is no cluster in these data")
    counts = []
    for every in (keys.all_tasks(), keys.queued(), keys.running()):
        counts.append(await etcd.range(Range(every.key, every.range_end, count_only=True), timeout_s=_CALL_LIMIT_S))
    return Contents(cluster, counts[0].revision, *(found.count for found in counts))


async def begin_again(etcd: EtcdClient, contents: Contents, *, lease_ttl_s: float, say: Callable[[str], None]) -> int:
    """Does what the module says; gives the new epoch. Raises StoreError, WrongCluster (somebody else writes to it).

    lease_ttl_s: of this host's nodes. The leases in the copy are waited for however long they are, and those of nodes
    that came after it for so long. say: told each step, for people.
    """
    await _wait_for_leases(etcd, lease_ttl_s, say)
    await _make_room(etcd, contents.revision, say)
    say("raising the epoch, and passing over revisions")
    try:
        epoch = await _raise_epoch(etcd, contents.cluster)
        await _pass_over_revisions(etcd, epoch)
    except NoSpace as error:
        raise NoSpace(f"{error}; nothing was changed. Repeat it with a larger etcd_quota") from error
    return epoch


async def _wait_for_leases(etcd: EtcdClient, lease_ttl_s: float, say: Callable[[str], None]) -> None:
    nodes, now = keys.all_nodes(), asyncio.get_running_loop().time
    until, say_at = now() + lease_ttl_s, now()
    while True:
        found = (await etcd.range(Range(nodes.key, nodes.range_end, keys_only=True), timeout_s=_CALL_LIMIT_S)).kvs
        if strangers := [kv.key.decode(errors="replace") for kv in found if not kv.lease]:
            raise WrongCluster(f"{', '.join(strangers)}: no node wrote these, for they have no lease")
        if not found and now() >= until:
            return
        if found and now() >= say_at:
            say(f"waiting until the leases of {len(found)} nodes have run out")
            say_at = now() + _SAY_EVERY_S
        await asyncio.sleep(_LOOK_S)


async def _make_room(etcd: EtcdClient, revision: int, say: Callable[[str], None]) -> None:
    """A full etcd takes no write until the alarm is over."""
    alarms = [alarm for alarm in await etcd.alarms(timeout_s=_CALL_LIMIT_S) if alarm.kind == "NOSPACE"]
    if not alarms:
        return
    say("etcd is full: compacting and defragmenting it")
    await etcd.compact(revision, physical=True, timeout_s=_MAKE_ROOM_LIMIT_S)
    await etcd.defragment(timeout_s=_MAKE_ROOM_LIMIT_S)
    for alarm in alarms:
        await etcd.disarm(alarm, timeout_s=_CALL_LIMIT_S)


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
        ),
        timeout_s=_CALL_LIMIT_S,
    )
    if not raised.succeeded:
        raise WrongCluster("somebody else writes to these data: stop whatever it is, and begin again")
    return epoch


async def _pass_over_revisions(etcd: EtcdClient, epoch: int) -> None:
    """Each transaction is a revision: the epoch is written again and again."""
    again = Txn(success=(Put(keys.cluster_epoch(), str(epoch).encode()),))
    revision = 0
    for _ in range(0, REVISIONS_PASSED, _IN_FLIGHT):
        written = await asyncio.gather(*(etcd.txn(again, timeout_s=_CALL_LIMIT_S) for _ in range(_IN_FLIGHT)))
        revision = max(result.revision for result in written)
    await etcd.compact(revision, timeout_s=_CALL_LIMIT_S)
