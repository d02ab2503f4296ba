"""NodeService, Drain and Remove: what an operator does to a node, as guarded writes in etcd.

Theory: any node answers, because both are records of the cluster and no commands to a node. A drain is a key by host
id that the drained node and its peers follow (`node/cluster/drains.py`); it holds over restarts until it is undone. A
removal bars a host for good: a session begins with a transaction that is refused while that key is there, and
certificates of the host are refused. So it must never hit a node that lives: its guards are the absence of the host's
last node key and a host record that has not changed, which a new session's first write would have done.

Nor must it take the quorum away from those that stay: a removed host's vote counts until the voters duty has taken it
away. So a voter is removed only while living voters are a quorum without it. Two removals beside each other keep to
that without a guard in etcd: a removal that is written was of a host that had no node from its look until then (its
record still names the node that was gone), and has none from there on. So whichever looks last counts neither of the
two. Counted are nodes that live, which is not quite the same as votes that answer: a voter whose etcd lost its disk is
counted as long as its node lives.

Both may be repeated. What was not answered is sent again: a second try of the same finds its work done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from etcd import cluster_codec, keys
from etcd.errors import OutcomeUnknown, RecordCorrupt, StoreUnavailable
from etcd.port import Compare, Delete, Etcd, Put, Range, RangeResult, Relation, Target, Txn
from node.api.errors import ApiError, answers, invalid, node_not_found, precondition
from node.api.node_views import NodeViews, read_hosts
from node.core.find_node import PREFIX_MIN, KnownNode, find_nodes, is_too_short, naming
from node.core.model import Drain, Removal
from node.core.validate import Violation
from node.core.voters import quorum, votes_missing
from pilfer.v1 import nodes_pb2

#: A write that was lost to another one, or not answered, is tried so often.
TRIES = 3
#: Candidates named where a prefix is ambiguous or too short.
NAMED_MAX = 10

NODE_IS = f"a whole name, or the first digits, {PREFIX_MIN} or more, of a node id or host id"


class DrainCalls:
    """Drain and Remove."""

    def __init__(self, etcd: Etcd, views: NodeViews, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._etcd = etcd
        self._views = views
        self._wall_clock = wall_clock

    @answers
    async def Drain(  # noqa: N802  (gRPC's name)
        self, request: nodes_pb2.DrainRequest, _context: Any
    ) -> nodes_pb2.DrainResponse:
        if request.undo and request.let_finish:
            raise invalid([Violation("let_finish", "has no meaning together with undo")])
        host_id = _one_of(find_nodes(request.node, await self._known()), request.node).host_id
        if request.undo:
            await self._undo(host_id)
        else:
            await self._drain(host_id, request.node, let_finish=request.let_finish)
        view = await self._views.of_host(host_id)
        if view is None:
            raise node_not_found(request.node)  # it was removed this moment
        return nodes_pb2.DrainResponse(node=view)

    async def _drain(self, host_id: str, given: str, *, let_finish: bool) -> None:
        key, removed = keys.drained_key(host_id), keys.removed_key(host_id)
        for _ in range(TRIES):
            there = (await self._etcd.range(Range(key))).kvs
            since = self._wall_clock()
            if there:
                drain = cluster_codec.decode_drain(key, there[0].value)
                if drain.let_finish == let_finish:
                    return
                since = drain.since
            seen = there[0].mod_revision if there else 0
            write = Txn(
                compares=(
                    Compare(key, Target.MOD, Relation.EQUAL, seen),
                    Compare(removed, Target.VERSION, Relation.EQUAL, 0),
                ),
                success=(Put(key, cluster_codec.encode_drain(Drain(since, let_finish))),),
                failure=(Range(removed, keys_only=True),),
            )
            try:
                result = await self._etcd.txn(write)
            except OutcomeUnknown:
                continue
            if result.succeeded:
                return
            if any(isinstance(read, RangeResult) and read.kvs for read in result.results):
                raise node_not_found(given)
        raise OutcomeUnknown(f"the drain of {given} was not answered")

    async def _undo(self, host_id: str) -> None:
        for _ in range(TRIES):
            try:
                await self._etcd.txn(Txn(success=(Delete(keys.drained_key(host_id)),)))
            except OutcomeUnknown:
                continue
            return
        raise OutcomeUnknown("the end of the drain was not answered")

    @answers
    async def Remove(  # noqa: N802
        self, request: nodes_pb2.RemoveRequest, _context: Any
    ) -> nodes_pb2.RemoveResponse:
        for _ in range(TRIES):
            removed = await self._remove(request.node)
            if removed is not None:
                return nodes_pb2.RemoveResponse(host_id=removed.host_id, name=removed.name)
        raise OutcomeUnknown(f"the removal of {request.node} was not answered, or the node comes and goes: try again")

    async def _remove(self, given: str) -> KnownNode | None:
        """One try; None: look again."""
        known = await self._known()
        matches = find_nodes(given, known)
        if not any(node.name == given for node in matches):
            # Perhaps it was removed before, by an earlier try of this call: its name goes before another's id still.
            removed = find_nodes(given, await self._removed())
            if not matches or any(node.name == given for node in removed):
                return _one_of(removed, given)
        node = _one_of(matches, given)
        if node.is_living:
            raise precondition("NODE_ALIVE", node.host_id, _alive(node))
        await self._check_votes(node, [one.host_id for one in known if one.is_living])
        host_key = keys.host_key(node.host_id)
        there = (await self._etcd.range(Range(host_key))).kvs
        if not there:
            return None
        host = cluster_codec.decode_host(host_key, there[0].value)
        if host.node_id != node.node_id:
            return None  # it has come back since the look, and perhaps gone again: the votes were counted before that
        remove = Txn(
            compares=(
                Compare(host_key, Target.MOD, Relation.EQUAL, there[0].mod_revision),
                Compare(keys.node(host.node_id), Target.VERSION, Relation.EQUAL, 0),
            ),
            success=(
                Put(keys.removed_key(host.id), cluster_codec.encode_removal(Removal(host.name, at=self._wall_clock()))),
                Delete(host_key),
                Delete(keys.drained_key(host.id)),
            ),
        )
        try:
            result = await self._etcd.txn(remove)
        except OutcomeUnknown:
            return None
        return node if result.succeeded else None

    async def _check_votes(self, node: KnownNode, living: list[str]) -> None:
        voters = [member.name for member in await self._etcd.members() if not member.is_learner]
        missing = votes_missing(node.host_id, voters, living)
        if missing:
            raise precondition("VOTES_MISSING", node.host_id, _votes(node, voters, missing))

    async def _known(self) -> list[KnownNode]:
        """Raises StoreUnavailable where there is no quorum: nothing could be written either."""
        known = await read_hosts(self._etcd)
        if known.is_stale:
            raise StoreUnavailable("one of its members answers, and it has no quorum")
        return known.known()

    async def _removed(self) -> list[KnownNode]:
        every = keys.all_removed()
        found = []
        for kv in (await self._etcd.range(Range(every.key, every.range_end))).kvs:
            # A stranger's key must not keep anybody from being told what became of a node.
            with contextlib.suppress(RecordCorrupt):
                removal = cluster_codec.decode_removal(kv.key, kv.value)
                found.append(KnownNode(keys.parse_cluster_id(kv.key), "", removal.name, is_living=False))
        return found


def _one_of(matches: list[KnownNode], given: str) -> KnownNode:
    """The one that is meant. Raises ApiError: none, several, or too little to tell."""
    if not given:
        raise invalid([Violation("node", f"is empty: {NODE_IS}")])
    if not matches:
        raise node_not_found(given)
    if is_too_short(given, matches):
        raise _refused(f"{given} is no node's name; give {NODE_IS}. With {given} begin the ids of", matches)
    if len(matches) > 1:
        raise _refused(f"{given} is ambiguous, give more digits of a host id:", matches)
    return matches[0]


def _refused(why: str, matches: list[KnownNode]) -> ApiError:
    named = "; ".join(map(naming, matches[:NAMED_MAX]))
    more = f"; and {len(matches) - NAMED_MAX} more" if len(matches) > NAMED_MAX else ""
    return invalid([Violation("node", f"{why} {named}{more}")])


def _alive(node: KnownNode) -> str:
    return (
        f"{naming(node)} cannot be removed while its node lives, which may run tasks: drain it (node drain "
        f"{node.name or node.host_id} --wait), stop it, and remove it then"
    )


def _votes(node: KnownNode, voters: list[str], missing: int) -> str:
    needed = quorum(len(voters))
    return (
        f"{naming(node)} cannot be removed now: it has one of {len(voters)} votes in etcd, which the others can take "
        f"away only while the nodes of {needed} live: {needed - missing} do. Start the others that have a vote (node "
        "nodes lists them), wait until they are ready, and try again; if they are gone for good, see node recover"
    )
