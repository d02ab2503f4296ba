"""Names of nodes, claimed in etcd: of two newcomers that ask at once for one name, one gets it.

What a claim means and how long it counts is `node/core/newcomer.py`'s. A claim is written over what was there by a
transaction that compares its mod_revision, and the living nodes were read before that at no older a revision than the
claim: who reads "nobody" and writes is the only one to do so.
"""

from __future__ import annotations

from collections.abc import Collection

from etcd import keys
from etcd.cluster_codec import decode_name_claim, encode_name_claim
from etcd.errors import OutcomeUnknown, RecordCorrupt
from etcd.port import Compare, Etcd, KeyValue, Put, Range, RangeResult, Relation, Target, Txn
from node.core.newcomer import NameClaim, Newcomer, candidates, may_claim

#: A transaction that is not answered is sent again; each has a deadline of its own.
_TRIES = 5


async def claim_name(
    etcd: Etcd, newcomer: Newcomer, *, taken: Collection[str], now: float, removed: Collection[str] = ()
) -> str | None:
    """The name that this newcomer has from now on; None where the one that it insists on is taken. removed: hosts that
    may not come back, whose claims hold nothing any more.

    Again for the same host: the same name, unless a better one is free now. Raises StoreUnavailable, OutcomeUnknown.
    """
    for name in candidates(newcomer):
        if name not in taken and await _claim(etcd, name, newcomer.host_id, now, removed):
            return name
    return None


async def _claim(etcd: Etcd, name: str, host_id: str, now: float, removed: Collection[str]) -> bool:
    key = keys.name_key(name)
    value = encode_name_claim(NameClaim(host_id, now))
    found = (await etcd.range(Range(key))).kvs
    for last in range(_TRIES, 0, -1):
        claim, revision = _read(found)
        if claim is not None and claim.host_id in removed:
            claim = None
        if not may_claim(name, claim, host_id=host_id, taken=(), now=now):
            return False
        guarded = Txn(
            compares=(Compare(key, Target.MOD, Relation.EQUAL, revision),),
            success=(Put(key, value),),
            failure=(Range(key),),
        )
        try:
            result = await etcd.txn(guarded)
        except OutcomeUnknown:
            if last == 1:
                raise
            # Sent again: if it was applied, the guard fails, and our own claim is what is read.
            continue
        if result.succeeded:
            return True
        found = next(r.kvs for r in result.results if isinstance(r, RangeResult))
    return False


def _read(found: tuple[KeyValue, ...]) -> tuple[NameClaim | None, int]:
    if not found:
        return None, 0
    try:
        return decode_name_claim(found[0].key, found[0].value), found[0].mod_revision
    except RecordCorrupt:
        # A claim that nobody can read holds nothing; it is written over, guarded like any other.
        return None, found[0].mod_revision
