"""Clusters to join: peers with the real API, real certificates and tokens on a fake etcd, on loopback.

A peer serves Join and Contacts, behind the node's own server and its check of callers, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509

from etcd import cluster_codec, codec, keys
from etcd.port import Put, Txn
from node.api.join import JoinCalls
from node.api.server import Listen, node_service, serving
from node.core.model import Capacity, JoinToken, Node, Removal
from node.core.newcomer import Newcomer
from node.joining.cluster_memory import ClusterMemory, Contacts
from node.joining.join import join
from node.joining.peer_answers import JoinRefused
from node.joining.rounds import Pace
from node.peer_channels import PeerChannels
from node.trust.authority import LEAF_LIFE_S, ROLE_JOIN, new_key, request_of
from node.trust.join_token import encode, join_secret
from node.trust.material import Trust, ensure_trust, has_joined
from node.trust.signer import Signer
from node.trust.tokens import Tokens
from pilfer.v1 import tasks_pb2, tasks_pb2_grpc
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_store import FakeStore

#: An address at which nobody is: nothing listens on a port that needs a privilege and has no use.
DOWN = "127.0.0.1:1"
ETCD_ENDPOINTS = ("10.9.9.1:7401", "10.9.9.2:7401")
#: In a hurry.
PACE = Pace(first_wait_s=0.01, longest_wait_s=0.05, say_every_s=0.2)


def is_member(data_dir: Path, pki_dir: Path) -> bool:
    """Whether this directory says that it belongs to a cluster."""
    return ClusterMemory.load(data_dir) is not None and has_joined(pki_dir)


@dataclass
class Cluster:
    """What all nodes of one cluster share: the authority, and what is in etcd."""

    directory: Path
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    store: FakeStore = field(default_factory=FakeStore)
    #: Hosts whose certificates are refused, as the nodes know them.
    removed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.trust: Trust = ensure_trust(
            self.directory / "pki",
            cluster_name="test",
            host_id=str(uuid.uuid4()),
            host_names=["10.9.9.1"],
            now=time.time(),
        )

    async def token(self, *, uses: int = 0, ttl_s: float = 3600.0, is_certificate_over: bool = False) -> str:
        """A join token. is_certificate_over: by the clock of the peers, while the record says otherwise."""
        now = time.time()
        token_id, key = str(uuid.uuid4()), new_key()
        await Tokens(FakeEtcd(self.store)).create(JoinToken(token_id, now, now + ttl_s, uses), now)
        signed_at = now - 2 * ttl_s if is_certificate_over else now
        async with self.signer(lambda: signed_at) as signer:
            certificate = await signer.sign(request_of(key), role=ROLE_JOIN, common_name=token_id, life_s=ttl_s)
        secret = join_secret(
            cluster_id=self.id,
            token_id=token_id,
            ca_pem=self.trust.ca_cert.read_bytes(),
            certificate_pem=certificate,
            key=key,
            expires_at=now + ttl_s,
        )
        return encode(secret)

    @contextlib.asynccontextmanager
    async def signer(self, clock: Callable[[], float] = time.time) -> AsyncIterator[Signer]:
        channels = PeerChannels(lambda: None)
        try:
            yield Signer(self.trust.pki_dir, channels, list, clock=clock)
        finally:
            await channels.close()

    async def uses(self) -> list[tuple[str, ...]]:
        """The hosts that used each token, by age of the token."""
        return [token.used_by for token in await Tokens(FakeEtcd(self.store)).list_all()]

    async def put_node(self, node: Node) -> None:
        await FakeEtcd(self.store).txn(Txn(success=(Put(keys.node(node.id), codec.encode_node(node)),)))

    async def remove(self, host_id: str) -> None:
        """As `node remove` does."""
        self.removed.add(host_id)
        value = cluster_codec.encode_removal(Removal("old", time.time()))
        await FakeEtcd(self.store).txn(Txn(success=(Put(keys.removed_key(host_id), value),)))

    @contextlib.asynccontextmanager
    async def peer(
        self,
        *,
        listen: str = "127.0.0.1:0",
        host_id: str | None = None,
        contacts: Contacts | None = None,
        living_node: Callable[[str], str] = lambda _: "",
        clock: Callable[[], float] = time.time,
        change: Callable[[JoinCalls], object] = lambda calls: calls,
        etcd: FakeEtcd | None = None,
        cluster_id: str | None = None,
    ) -> AsyncIterator[str]:
        """Serves while entered; gives its HOST:PORT. `change` puts something else in the place of its calls."""
        async with self.signer(clock) as signer:
            calls = JoinCalls(
                etcd or FakeEtcd(self.store),
                cluster_id=cluster_id or self.id,
                host_id=host_id or str(uuid.uuid4()),
                ca_certificate=self.trust.ca_cert.read_bytes,
                signer=signer,
                tokens=Tokens(etcd or FakeEtcd(self.store)),
                contacts=lambda: contacts or Contacts(ETCD_ENDPOINTS, ("10.9.9.1:7400",)),
                living_node=living_node,
                clock=clock,
                certificate_life_s=LEAF_LIFE_S,
            )
            directory = self.directory / f"peer-{uuid.uuid4().hex[:8]}"
            directory.mkdir()
            async with serving(
                _no_tasks(),
                node_service(change(calls)),
                socket=directory / "node.sock",
                listen=Listen(listen, self.trust),
                is_removed=lambda host_id: host_id in self.removed,
                stop_grace_s=0.0,
            ) as address:
                assert address is not None
                yield address


def _no_tasks() -> tasks_pb2_grpc.TaskServiceServicer:
    methods = tasks_pb2.DESCRIPTOR.services_by_name["TaskService"].methods
    return cast("tasks_pb2_grpc.TaskServiceServicer", SimpleNamespace(**{method.name: None for method in methods}))


def living_node(name: str, *, host_id: str | None = None, address: str = "10.9.9.7:7400") -> Node:
    """A record as a living node has it."""
    return Node(
        id=str(uuid.uuid4()),
        host_id=host_id or str(uuid.uuid4()),
        name=name,
        capacity=Capacity(1.0, 1 << 30),
        version="0.1.0",
        started_at=time.time(),
        address=address,
    )


@dataclass
class Host:
    """A host that wants to join, with its data directory."""

    directory: Path
    newcomer: Newcomer

    @classmethod
    def make(cls, directory: Path, **changes: Any) -> Host:
        directory.mkdir()
        plain = Newcomer(str(uuid.uuid4()), "web", is_name_given=False, address="127.0.0.1:7499", host_names=("web",))
        return cls(directory, replace(plain, **changes))

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    async def join(self, peers: list[str], token: str, *, clock: Callable[[], float] = time.time) -> ClusterMemory:
        async with asyncio.timeout(30):
            return await join(
                peers,
                token,
                self.newcomer,
                data_dir=self.directory,
                pki_dir=self.pki,
                clock=clock,
                random=random.Random(1),
                pace=PACE,
            )

    async def refused(self, peers: list[str], token: str, *, clock: Callable[[], float] = time.time) -> JoinRefused:
        """Why it does not get in; it must not be a member then."""
        with pytest.raises(JoinRefused) as caught:
            await self.join(peers, token, clock=clock)
        assert not is_member(self.directory, self.pki)
        assert len(str(caught.value)) > 30
        return caught.value

    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.pki / "node.crt").read_bytes())
