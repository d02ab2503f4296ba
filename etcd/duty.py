"""A duty: work of the whole cluster that one node does, as long as it lives (`/cluster/duty/NAME` holds its node id).

Theory: a duty keeps many nodes from doing the same work at the same time; it **excludes nobody**. A holder that hangs,
or that is cut off and does not know it yet, may act beside its successor. So every step of a duty must be guarded in
etcd or harmless when done twice. A duty is free when nobody holds it or when its holder's node key is gone; it follows
the lease of the node and needs none of its own.

Interleavings that the guards are there for:

* Two nodes see the dead holder: both compare the duty key's mod_revision with the one that they read; one wins.
* The holder of the moment came back between look and take (a node key that is there at the take): refused.
* A fenced node takes a duty with its last breath: its own node key must have its create_revision.
* The answer to a take is lost: the next call reads the key and finds its own node id there.

Nothing here knows what the duties do.
"""

from __future__ import annotations

import asyncio
import logging

from etcd import keys
from etcd.errors import OutcomeUnknown, RecordCorrupt
from etcd.identity import Identity
from etcd.port import Compare, Delete, Etcd, KeyValue, Put, Range, RangeResult, Relation, Target, Txn

log = logging.getLogger(__name__)

#: Between two tries to settle an unknown outcome.
RETRY_S = 0.1


class Duty:
    """One node's hand on one duty. Of one incarnation: a new one has a new `Duty`."""

    def __init__(self, etcd: Etcd, name: str, identity: Identity) -> None:
        self._etcd = etcd
        self._name = name
        self._key = keys.duty_key(name)
        self._node_key = keys.node(identity.node_id)
        self._identity = identity

    async def hold(self, *, timeout_s: float = 5.0) -> bool:
        """Takes the duty where it is free, and says whether it is this node's now.

        False where another living node holds it, where another was faster, or where this incarnation is over. Raises
        StoreUnavailable, or OutcomeUnknown when etcd did not tell within timeout_s: ask again at the next turn.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            try:
                return await self._hold_once(deadline)
            except OutcomeUnknown:
                # It may be applied, now or later. Looking again tells what is so, and another take is guarded by what
                # that look saw.
                if loop.time() + RETRY_S >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    async def release(self, *, timeout_s: float = 3.0) -> None:
        """Gives the duty up where it is this node's, so that another takes it without waiting for the lease. Raises
        StoreUnavailable and OutcomeUnknown; not to be repeated: the lease ends it too."""
        mine = self._identity.node_id.encode()
        compare = Compare(self._key, Target.VALUE, Relation.EQUAL, mine)
        await self._etcd.txn(Txn((compare,), (Delete(self._key),)), timeout_s=timeout_s)

    async def _hold_once(self, deadline: float) -> bool:
        held, is_mine_alive = await self._look(deadline)
        if not is_mine_alive:
            return False
        holder = _holder(held)
        if holder == self._identity.node_id:
            return True
        if holder is not None and await self._is_there(holder, deadline):
            return False
        return await self._take(held, holder, deadline)

    async def _look(self, deadline: float) -> tuple[KeyValue | None, bool]:
        """The duty's key, and whether the own node key is that of this incarnation, at one revision."""
        answer = await self._etcd.txn(Txn(success=(Range(self._key), Range(self._node_key))), timeout_s=_left(deadline))
        held, own = (_only(result) for result in answer.results if isinstance(result, RangeResult))
        return held, own is not None and own.create_revision == self._identity.node_key_revision

    async def _is_there(self, node_id: str, deadline: float) -> bool:
        found = await self._etcd.range(Range(keys.node(node_id), count_only=True), timeout_s=_left(deadline))
        return found.count > 0

    async def _take(self, held: KeyValue | None, holder: str | None, deadline: float) -> bool:
        compares = [
            Compare(self._key, Target.MOD, Relation.EQUAL, held.mod_revision if held else 0),
            Compare(self._node_key, Target.CREATE, Relation.EQUAL, self._identity.node_key_revision),
        ]
        if holder is not None:
            compares.append(Compare(keys.node(holder), Target.VERSION, Relation.EQUAL, 0))
        mine = self._identity.node_id.encode()
        answer = await self._etcd.txn(Txn(tuple(compares), (Put(self._key, mine),)), timeout_s=_left(deadline))
        if answer.succeeded:
            log.info("duty=%s taken over from %s", self._name, holder or "nobody")
        return answer.succeeded


def _holder(held: KeyValue | None) -> str | None:
    """The node id that the key names; None where there is no key, or it names no node (then it is free too)."""
    if held is None:
        return None
    try:
        holder = held.value.decode()
        keys.node(holder)
    except (UnicodeDecodeError, RecordCorrupt, ValueError):
        return None
    return holder


def _only(result: RangeResult) -> KeyValue | None:
    return result.kvs[0] if result.kvs else None


def _left(deadline: float) -> float:
    return max(deadline - asyncio.get_running_loop().time(), 0.01)
