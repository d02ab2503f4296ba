"""What the cluster knows about itself: its id and its epoch, written once when it is founded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from etcd import keys
from etcd.errors import OutcomeUnknown, StoreUnavailable
from etcd.port import Compare, Etcd, Put, Range, RangeResult, Relation, Target, Txn

log = logging.getLogger(__name__)

#: Before etcd is waited for again.
RETRY_S = 0.5


class WrongCluster(Exception):  # noqa: N818  (named as the conventions name errors)
    """etcd holds another cluster than the one that this data directory belongs to, or none."""


@dataclass(frozen=True, slots=True)
class Cluster:
    id: str
    #: Raised by a restore from a backup; the high part of every fence token.
    epoch: int


_READ = (Range(keys.cluster_id()), Range(keys.cluster_epoch()))


async def found_cluster(etcd: Etcd, cluster_id: str, *, timeout_s: float = 10.0, tries: int = 5) -> Cluster:
    """Writes this id where etcd is empty, and gives what is there then. Safe to repeat. Raises StoreError."""
    founding = Txn(
        compares=(Compare(keys.cluster_id(), Target.VERSION, Relation.EQUAL, 0),),
        success=(Put(keys.cluster_id(), cluster_id.encode()), Put(keys.cluster_epoch(), b"1")),
    )
    for last in range(tries, 0, -1):
        try:
            await etcd.txn(founding, timeout_s=timeout_s)
            break
        except OutcomeUnknown:
            if last == 1:
                raise
    found = await read_cluster(etcd, timeout_s=timeout_s)
    if found is None:
        raise WrongCluster("etcd has lost what was just written to it: its data directory is damaged")
    return found


async def read_cluster(etcd: Etcd, *, timeout_s: float = 10.0) -> Cluster | None:
    """None where nothing was founded. Raises StoreError."""
    result = await etcd.txn(Txn(success=_READ), timeout_s=timeout_s)
    values = [found.kvs[0].value for found in result.results if isinstance(found, RangeResult) and found.kvs]
    return Cluster(id=values[0].decode(), epoch=int(values[1])) if len(values) == len(_READ) else None


async def read_when_ready(etcd: Etcd, wait_ready: Callable[[], Awaitable[None]]) -> Cluster | None:
    """As `read_cluster`, once wait_ready returns. A quorum may be lost again in between (a cluster comes up, its first
    leader dies): that is waited through, and does not end a start. Raises what wait_ready raises, too."""
    while True:
        await wait_ready()
        try:
            return await read_cluster(etcd)
        except (StoreUnavailable, OutcomeUnknown) as error:
            log.warning("etcd answered and does so no more, waiting again: %s", error)
            await asyncio.sleep(RETRY_S)
