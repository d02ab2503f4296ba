"""Which host has the log of an attempt, whether a node of it lives, and what to tell people when none does.

A log lies on the disk of the host where the attempt ran, and is found by the host's id: the node that wrote it may
have been restarted since. Host records outlive their nodes (design, section 2).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from etcd import cluster_codec, codec, keys
from etcd.port import Etcd, Range
from node.core.model import Node


@dataclass(frozen=True, slots=True)
class LogHost:
    """A host, as the cluster knows it now."""

    id: str
    #: Empty where the cluster does not know the host (any more).
    name: str
    #: Its living node.
    node: Node | None
    #: Unix seconds; None where it is not known.
    last_seen: float | None

    def __str__(self) -> str:
        return f"host {self.name} ({self.id})" if self.name else f"host {self.id}"

    @property
    def trouble(self) -> str | None:
        """Why no node of it can be asked, in words; None: one may be."""
        if self.node is None and self.last_seen is None:
            return "which the cluster does not know any more (it was removed)"
        if self.node is None and self.last_seen is not None:
            since = datetime.datetime.fromtimestamp(self.last_seen, tz=datetime.UTC)
            return f"which has had no node since {since:%Y-%m-%dT%H:%M:%SZ}; the log is there again when its node is"
        if self.node is not None and not self.node.address:
            return "whose node listens on no address that others reach (--listen)"
        return None


async def find_log_host(etcd: Etcd, host_id: str) -> LogHost:
    """Looks it up. Raises what the store raises."""
    found = await etcd.range(Range(keys.host_key(host_id)))
    if not found.kvs:
        return LogHost(host_id, "", await _find_node_by_host(etcd, host_id), None)
    host = cluster_codec.decode_host(found.kvs[0].key, found.kvs[0].value)
    # There is one node per host, and the host's record says which.
    living = await etcd.range(Range(keys.node(host.node_id)))
    node = codec.decode_node(living.kvs[0].key, living.kvs[0].value) if living.kvs else None
    return LogHost(host_id, host.name, node, host.last_seen)


async def _find_node_by_host(etcd: Etcd, host_id: str) -> Node | None:
    """A node that began before there were records of hosts."""
    nodes = keys.all_nodes()
    for kv in (await etcd.range(Range(nodes.key, nodes.range_end))).kvs:
        node = codec.decode_node(kv.key, kv.value)
        if node.host_id == host_id:
            return node
    return None
