"""The node's gRPC services, put together from their calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Container

from node.api.backup import BackupCall
from node.api.drain import DrainCalls
from node.api.join import JoinCalls
from node.api.log import LogCall
from node.api.log_forward import RemoteLogs
from node.api.node_views import NodeViews
from node.api.nodes import Condition, NodeCalls, OwnView
from node.api.server import node_service, task_service
from node.api.shared_watch import SharedWatch
from node.api.tasks import TaskCalls
from node.api.trust import TrustCalls
from node.api.watch import WatchCall
from node.api.why import WhyCall
from node.cluster.drains import Drains
from node.cluster.whereabouts import Whereabouts
from node.config import Settings
from node.engines import Engines
from node.joining.foothold import Foothold
from node.running.admission import Admission
from node.running.logs import LogStore
from node.trust.signer import Signer
from node.trust.tokens import Tokens

#: States of a node whose lease lives.
_HAS_LEASE = frozenset({"ready", "draining"})


class Services:
    """`tasks` and `nodes` are what `node.api.server.serving` takes."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        foothold: Foothold,
        whereabouts: Whereabouts,
        *,
        host_id: str,
        admission: Admission,
        logs: LogStore,
        drains: Drains,
        removed: Container[str],
        condition: Callable[[], Condition],
        refusal: Callable[[], str | None],
    ) -> None:
        """removed: ids of hosts that were removed. condition: how this node is doing. refusal: why no submit is taken
        now, or None."""
        etcd, trust = engines.etcd, foothold.trust
        self.signer = Signer(trust.pki_dir, engines.peers, whereabouts.of_signers)
        #: To be run for as long as the services are served.
        self.watch = SharedWatch(etcd)
        calls = TaskCalls(engines.store, admission, retention_age_s=settings.retention_age_s, refusal=refusal)
        remote = RemoteLogs(etcd, engines.peers.tasks)
        own = OwnView(condition, drains, admission)
        views = NodeViews(etcd, engines.peers, own)
        tokens = Tokens(etcd)
        join = JoinCalls(
            etcd,
            cluster_id=foothold.memory.cluster_id,
            host_id=host_id,
            ca_certificate=trust.ca_cert.read_bytes,
            signer=self.signer,
            tokens=tokens,
            contacts=whereabouts.contacts,
            # Without a lease what it knows is old: nobody must wait for a node that only it believes to live.
            living_node=lambda host: whereabouts.living_node(host) if condition().state in _HAS_LEASE else "",
            clock=time.time,
        )
        trusting = TrustCalls(
            tokens,
            self.signer,
            trust,
            cluster_id=foothold.memory.cluster_id,
            addresses=whereabouts.addresses,
            may_have_authority=lambda host: whereabouts.may_have_authority(etcd, host),
            is_removed=lambda host: host in removed,
        )
        self.tasks = task_service(calls, WatchCall(etcd, self.watch), LogCall(etcd, calls, logs, host_id, remote))
        self.nodes = node_service(
            NodeCalls(own, views),
            DrainCalls(etcd, views),
            WhyCall(calls, engines.store, views),
            BackupCall(etcd, settings.data_dir),
            trusting,
            join,
        )
