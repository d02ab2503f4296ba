"""Who is where, as this node knows it: the answers that need no question to etcd.

Fed by the incarnation of the moment (living nodes) and by the membership (etcd's voters); what is worth knowing after a
restart is kept in `cluster.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from etcd.port import Etcd
from node.cluster.membership import Membership
from node.core.model import Node
from node.joining.cluster_memory import ClusterMemory, ClusterMemoryError, Contacts
from node.joining.place import Place

log = logging.getLogger(__name__)


class Whereabouts:
    """Of one run of the node process."""

    def __init__(self, memory: ClusterMemory, place: Place, host_id: str, membership: Membership) -> None:
        self._memory = memory
        self._place = place
        self._host_id = host_id
        self._membership = membership
        self._nodes: Mapping[str, Node] = {}

    def set_nodes(self, nodes: Mapping[str, Node]) -> None:
        """The living nodes, by id."""
        self._nodes = nodes
        self.remember(node_addresses=[node.address for node in nodes.values() if node.address])

    def remember(self, *, etcd_endpoints: list[str] | None = None, node_addresses: list[str] | None = None) -> None:
        """For the next start; also where the disk does not take it now."""
        try:
            self._memory.update(etcd_endpoints=etcd_endpoints, node_addresses=node_addresses)
        except ClusterMemoryError as error:
            log.warning("where the cluster is could not be remembered: %s", error)

    def contacts(self) -> Contacts:
        """For other nodes, this one included."""
        own = (self._place.address,) if self._place.address else ()
        return Contacts(
            tuple(self._membership.contacts or self._memory.etcd_endpoints),
            tuple(dict.fromkeys((*own, *self._memory.node_addresses))),
        )

    def addresses(self) -> list[str]:
        """HOST:PORT of living nodes, this one first: for people."""
        own = [self._place.address] if self._place.address else []
        return list(dict.fromkeys(own + sorted(node.address for node in self._nodes.values() if node.address)))

    def living_node(self, host_id: str) -> str:
        """Id of the living node of a host, as it was last told; empty: none."""
        return next((node.id for node in self._nodes.values() if node.host_id == host_id), "")

    def of_signers(self) -> list[str]:
        """HOST:PORT of the other nodes, those of etcd's voters first: they have the authority's key."""
        voters = {member.name for member in self._membership.members if not member.is_learner}
        others = [node for node in self._nodes.values() if node.address and node.host_id != self._host_id]
        known = [node.address for node in sorted(others, key=lambda node: (node.host_id not in voters, node.id))]
        return known or [address for address in self._memory.node_addresses if address != self._place.address]

    async def may_have_authority(self, etcd: Etcd, host_id: str) -> bool:
        """Whether this host is a member of etcd, or was added as one and has not started yet. Raises StoreError."""
        urls = {node.etcd_peer_url for node in self._nodes.values() if node.host_id == host_id}
        return any(
            member.name == host_id or (not member.name and not urls.isdisjoint(member.peer_urls))
            for member in await etcd.members()
        )
