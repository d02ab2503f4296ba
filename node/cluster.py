"""What the cluster knows about itself: its id and its epoch, written once when it is founded."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from etcd import keys
from etcd.errors import OutcomeUnknown
from etcd.port import Compare, Etcd, Put, Range, RangeResult, Relation, Target, Txn


@dataclass(frozen=True, slots=True)
class Cluster:
    id: str
    #: Raised by a restore from a backup; the high part of every fence token.
    epoch: int


async def ensure_cluster(etcd: Etcd, *, timeout_s: float = 10.0, tries: int = 5) -> Cluster:
    """Founds the cluster where etcd is empty, else reads what is there. Safe to repeat and to race."""
    id_key, epoch_key = keys.cluster_id(), keys.cluster_epoch()
    read = (Range(id_key), Range(epoch_key))
    found = Txn(
        compares=(Compare(id_key, Target.VERSION, Relation.EQUAL, 0),),
        success=(Put(id_key, str(uuid.uuid4()).encode()), Put(epoch_key, b"1")),
        failure=read,
    )
    for last in range(tries, 0, -1):
        try:
            result = await etcd.txn(found, timeout_s=timeout_s)
            if result.succeeded:
                result = await etcd.txn(Txn(success=read), timeout_s=timeout_s)
            break
        except OutcomeUnknown:
            if last == 1:
                raise
    values = [r.kvs[0].value for r in result.results if isinstance(r, RangeResult)]
    return Cluster(id=values[0].decode(), epoch=int(values[1]))
