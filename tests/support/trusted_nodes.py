"""Nodes of one cluster as far as trust goes: real certificates on real grpc servers, their etcd the fake one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc

import pilfer
from node.api.server import Listen, node_service, serving
from node.api.trust import TrustCalls
from node.peer_channels import PeerChannels
from node.trust.authority import LEAF_LIFE_S, ROLE_NODE
from node.trust.material import Trust, ensure_trust, install, make_request
from node.trust.signer import Signer
from node.trust.tokens import Tokens
from pilfer.v1 import tasks_pb2_grpc
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_store import FakeStore

VOTER = "22222222-2222-4222-8222-222222222222"
JOINED = "33333333-3333-4333-8333-333333333333"
REMOVED = "44444444-4444-4444-8444-444444444444"
#: An address of this machine that no certificate names.
LISTEN_ON = "127.0.0.77"
CLUSTER = "55555555-5555-4555-8555-555555555555"


class Lab:
    """A voter, which founded the cluster, and whatever nodes join it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.etcd = FakeStore()
        self.addresses: list[str] = []
        #: Hosts that may have the authority's key.
        self.voters = {VOTER}

    def founder(self) -> Trust:
        return ensure_trust(
            self.directory / "founder", cluster_name="lab", host_id=VOTER, host_names=(), now=time.time()
        )

    def newcomer(self, founder: Trust, host_id: str = JOINED) -> Trust:
        """A node that has joined, and has no key of the authority."""
        pki_dir = self.directory / host_id
        signer = Signer(founder.pki_dir, NO_PEERS, list)
        certificate = signer.sign_here(
            make_request(pki_dir), role=ROLE_NODE, common_name=host_id, host_names=(), life_s=LEAF_LIFE_S
        )
        assert certificate is not None
        install(pki_dir, host_id=host_id, ca_pem=founder.ca_cert.read_bytes(), cert_pem=certificate)
        return ensure_trust(pki_dir, cluster_name="lab", host_id=host_id, host_names=(), now=time.time())

    async def _may_have_authority(self, host_id: str) -> bool:
        return host_id in self.voters

    @contextlib.asynccontextmanager
    async def serving(self, trust: Trust) -> AsyncIterator[Node]:
        """A node whose addresses to ask for signatures are those in `addresses`."""
        peers = PeerChannels(lambda: credentials(trust))
        async with FakeEtcd(self.etcd) as etcd, closing(peers):
            signer = Signer(trust.pki_dir, peers, lambda: self.addresses)
            calls = TrustCalls(
                Tokens(etcd),
                signer,
                trust,
                cluster_id=CLUSTER,
                addresses=lambda: self.addresses,
                may_have_authority=self._may_have_authority,
                is_removed=lambda host: host == REMOVED,
            )
            path = trust.pki_dir / "node.sock"
            listen = Listen(f"{LISTEN_ON}:0", trust)
            async with serving(NO_TASKS, node_service(calls), socket=path, listen=listen) as address:
                assert address is not None
                yield Node(trust, address, path, peers, signer)


@contextlib.asynccontextmanager
async def closing(peers: PeerChannels) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await peers.close()


@dataclass
class Node:
    trust: Trust
    address: str
    socket: Path
    peers: PeerChannels
    signer: Signer

    def client(self) -> pilfer.AsyncClient:
        return pilfer.AsyncClient(f"unix:{self.socket}", timeout_s=30)


NO_PEERS: Any = None
NO_TASKS = cast(
    "tasks_pb2_grpc.TaskServiceServicer",
    SimpleNamespace(**dict.fromkeys(("Submit", "Cancel", "Status", "List", "Watch", "Log"))),
)


def credentials(trust: Trust) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        trust.ca_cert.read_bytes(), trust.node_key.read_bytes(), trust.node_cert.read_bytes()
    )
