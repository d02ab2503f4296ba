"""The record of this host, `/cluster/hosts/HOST_ID`: one node per host, and none of a host that was removed.

It outlives the node (it finds a host and its logs) and is written in the same transaction as the node's leased key,
so that at every revision at most one living node of a host is there:

    guards   node key absent; no removal of this host; the host's record as it was read; the node it names is gone
    writes   node key (leased), host record

What the guards are for: a copied data directory (two nodes with one host id would read each other's logs as their
own and end each other's cgroups); a host that was removed while it was away. Until somebody notes its end, the
record's mod_revision is the create_revision of its node's key: whoever compares that writes `last_seen` once, blindly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from etcd import cluster_codec, keys
from etcd.errors import RecordCorrupt
from etcd.port import Compare, Etcd, KeyValue, Put, Range, RangeResult, Relation, Target, Txn, TxnResult
from node.core.model import Host, Node


class HostRefused(Exception):  # noqa: N818  (named for what is the case, as the errors of the store)
    """The cluster takes no node of this host; trying again does not help. Ends the node."""


class NodeRemoved(HostRefused):
    """An operator has removed this host."""

    def __init__(self, host_id: str) -> None:
        super().__init__(
            f"this host ({host_id}) was removed from the cluster and may not come back as what it was. To let it in "
            "again, move its data directory away and join with a new token"
        )


class HostInUse(HostRefused):
    """Another living node has this host's id."""

    def __init__(self, host: Host) -> None:
        where = f" at {host.address}" if host.address else ""
        super().__init__(
            f"another living node ({host.name}{where}, node id {host.node_id}) has this host's id ({host.id}): was "
            "the data directory copied? Two hosts must not share one: give this one an empty data directory and join "
            "with a token. If it is this host's own last run, end it, or wait until its lease has run out"
        )


def host_of(node: Node, *, last_seen: float) -> Host:
    """The host's record while this is its newest node. last_seen: Unix seconds."""
    return Host(
        id=node.host_id,
        name=node.name,
        address=node.address,
        node_id=node.id,
        version=node.version,
        capacity=node.capacity,
        last_seen=last_seen,
    )


@dataclass(frozen=True, slots=True)
class SeenHost:
    """What the store says of a host."""

    #: None: it was never here, or its record cannot be read (then it is written anew).
    record: Host | None
    #: Of the record; 0: there is none.
    mod_revision: int
    is_removed: bool
    #: The node that the record names lives.
    is_in_use: bool


async def look(etcd: Etcd, host_id: str, *, timeout_s: float) -> SeenHost:
    """Reads it. What changes before the registration is caught by the registration's guards. Raises StoreError."""
    ops = (Range(keys.host_key(host_id)), Range(keys.removed_key(host_id), count_only=True))
    result = await etcd.txn(Txn(success=ops), timeout_s=timeout_s)
    found, removed = (one for one in result.results if isinstance(one, RangeResult))
    kv = found.kvs[0] if found.kvs else None
    record = _read(kv) if kv else None
    is_in_use = False
    if record is not None:
        node = await etcd.range(Range(keys.node(record.node_id), count_only=True), timeout_s=timeout_s)
        is_in_use = node.count > 0
    return SeenHost(record, kv.mod_revision if kv else 0, removed.count > 0, is_in_use)


def registration(host: Host, seen: SeenHost, node_key: Put) -> Txn:
    """Puts the node's key (with its lease) and the host's record; reads the node's key where a guard fails."""
    compares = [
        Compare(node_key.key, Target.CREATE, Relation.EQUAL, 0),
        Compare(keys.removed_key(host.id), Target.VERSION, Relation.EQUAL, 0),
        Compare(keys.host_key(host.id), Target.MOD, Relation.EQUAL, seen.mod_revision),
    ]
    if seen.record is not None:
        compares.append(Compare(keys.node(seen.record.node_id), Target.VERSION, Relation.EQUAL, 0))
    put_host = Put(keys.host_key(host.id), cluster_codec.encode_host(host))
    return Txn(tuple(compares), (node_key, put_host), (Range(node_key.key),))


def key_of_lost(result: TxnResult) -> KeyValue | None:
    """The node's key, as a registration that was refused has found it."""
    found = result.results[0]
    return found.kvs[0] if isinstance(found, RangeResult) and found.kvs else None


def end_noted(host: Host, node_key_revision: int, *, last_seen: float) -> Txn:
    """Writes when the host's node was last seen (Unix seconds), unless somebody did, or it has another node by now.
    May be sent by several and again: one is applied."""
    unchanged = Compare(keys.host_key(host.id), Target.MOD, Relation.EQUAL, node_key_revision)
    record = cluster_codec.encode_host(replace(host, last_seen=last_seen))
    return Txn((unchanged,), (Put(keys.host_key(host.id), record),))


def _read(kv: KeyValue) -> Host | None:
    try:
        record = cluster_codec.decode_host(kv.key, kv.value)
        keys.node(record.node_id)
    except (RecordCorrupt, ValueError):
        return None  # a stranger wrote it; what it says of a node is worth nothing
    return record
