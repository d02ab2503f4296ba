"""etcd of a stopped node, by itself on loopback, for as long as an operator's command needs it.

Nobody else may talk to it: it listens on loopback alone, and admits the certificates of nodes alone. Its data
directory is the node's own, whose lock the command holds, so that no node runs beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from etcd.binary import find_etcd
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.server import EtcdServer
from etcd.server_flags import EtcdConfig
from node.config import Settings
from node.datadir import DataDir
from node.joining.foothold import CLUSTER_NAME
from node.trust.material import Trust, ensure_trust, names_of_this_host
from pilfer.address import NODE_DNS_NAME

#: A lone voter elects itself within some 2 s; a large database is read first, from a slow disk perhaps.
READY_LIMIT_S = 900.0


@contextlib.asynccontextmanager
async def lone_etcd(
    settings: Settings, directory: Path, trust: Trust, *, force_new_cluster: bool = False
) -> AsyncIterator[EtcdClient]:
    """A client of etcd over the data in `directory`/data; both end with the block. Raises EtcdNotFound,
    EtcdNotReady, OSError.

    force_new_cluster: forget the other members.
    """
    tls = ClientTls(ca=trust.ca_cert, cert=trust.node_cert, key=trust.node_key, server_name=NODE_DNS_NAME)
    config = EtcdConfig(
        binary=find_etcd(str(settings.etcd_binary) if settings.etcd_binary else None),
        name=trust.host_id,
        directory=directory,
        tls=tls,
        allowed_hostname=NODE_DNS_NAME,
        force_new_cluster=force_new_cluster,
        quota_bytes=settings.etcd_quota_bytes,
    )
    server = EtcdServer(config)
    try:
        await server.start()
        await server.wait_ready(READY_LIMIT_S)
        async with EtcdClient([server.client_address], tls) as client:
            yield client
    finally:
        await server.stop()


def ensure_own_trust(data: DataDir, *, may_found: bool) -> Trust:
    """The certificates that etcd needs to run alone here. Raises TrustError, JoinNeeded."""
    return ensure_trust(
        data.pki,
        cluster_name=CLUSTER_NAME,
        host_id=data.host_id,
        host_names=names_of_this_host(),
        now=time.time(),
        may_found=may_found,
    )
