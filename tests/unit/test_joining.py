"""Joining over real connections: who is admitted, and that nothing counts twice, whatever breaks in between."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from etcd import keys
from etcd.port import Delete, Txn
from node.api.join import JoinCalls
from node.core.newcomer import Why
from node.joining.cluster_memory import ClusterMemory, Contacts
from node.joining.peer_answers import JoinRefused
from node.trust.authority import ROLE_NODE, covers, is_issued_by, subject_of
from node.trust.material import ensure_trust
from pilfer.v1 import nodes_pb2
from tests.support.fake_etcd import LOST_BEFORE, FakeEtcd
from tests.support.joining import DOWN, ETCD_ENDPOINTS, Cluster, Host, is_member, living_node
from tests.support.wait import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host.make(tmp_path / "host")


# -- admitted


async def test_a_newcomer_becomes_a_member(cluster: Cluster, host: Host) -> None:
    async with cluster.peer() as peer:
        memory = await host.join([peer], await cluster.token())
    assert (memory.cluster_id, memory.name, memory.is_founder) == (cluster.id, "web", False)
    assert memory.contacts == Contacts(ETCD_ENDPOINTS, tuple(sorted([peer, "10.9.9.1:7400"])))
    loaded = ClusterMemory.load(host.directory)
    assert loaded is not None
    assert (loaded.cluster_id, loaded.contacts) == (memory.cluster_id, memory.contacts)
    assert is_member(host.directory, host.pki)
    certificate = host.certificate()
    assert is_issued_by(certificate, x509.load_pem_x509_certificate(cluster.trust.ca_cert.read_bytes()))
    assert (subject_of(certificate).role, subject_of(certificate).name) == (ROLE_NODE, host.newcomer.host_id)
    assert covers(certificate, ["web", "localhost"])
    # And the next start uses it.
    ensure_trust(
        host.pki,
        cluster_name="test",
        host_id=host.newcomer.host_id,
        host_names=["web"],
        now=time.time(),
        may_found=False,
    )
    assert await cluster.uses() == [(host.newcomer.host_id,)]


async def test_any_peer_that_answers_will_do(cluster: Cluster, host: Host) -> None:
    async with cluster.peer() as peer:
        assert (await host.join([DOWN, host.newcomer.address, peer], await cluster.token())).name == "web"


async def test_it_waits_for_its_peers_and_says_so(
    cluster: Cluster, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    token = await cluster.token()
    async with cluster.peer() as peer:
        pass
    with caplog.at_level(logging.WARNING):
        joining = asyncio.create_task(host.join([peer], token))
        await wait_until(lambda: "Connection refused" in caplog.text, what="the log says why")
    assert peer in caplog.text
    assert not joining.done()
    assert not is_member(host.directory, host.pki)
    async with cluster.peer(listen=peer):
        assert (await joining).cluster_id == cluster.id
    secret = token.removeprefix("pilfer-join:")
    assert secret not in caplog.text


async def test_a_made_up_name_that_is_taken_gets_a_number(cluster: Cluster, host: Host) -> None:
    await cluster.put_node(living_node("web"))
    async with cluster.peer() as peer:
        assert (await host.join([peer], await cluster.token())).name == "web-2"


async def test_two_with_one_name_at_once(cluster: Cluster, tmp_path: Path) -> None:
    hosts = [Host.make(tmp_path / f"host-{n}", address=f"127.0.0.1:{7490 + n}") for n in range(4)]
    token = await cluster.token()
    async with cluster.peer() as one, cluster.peer() as two:
        memories = await asyncio.gather(
            *(h.join([one, two] if n % 2 else [two, one], token) for n, h in enumerate(hosts))
        )
    names = {memory.name for memory in memories}
    assert len(names) == len(hosts)
    assert "web" in names
    assert set((await cluster.uses())[0]) == {h.newcomer.host_id for h in hosts}


async def test_two_with_one_given_name_at_once(cluster: Cluster, tmp_path: Path) -> None:
    hosts = [Host.make(tmp_path / f"host-{n}", address=f"127.0.0.1:{7490 + n}", is_name_given=True) for n in range(2)]
    token = await cluster.token()
    async with cluster.peer() as one, cluster.peer() as two:
        answers = await asyncio.gather(
            *(h.join([peer], token) for h, peer in zip(hosts, (one, two), strict=True)), return_exceptions=True
        )
    refusals = [answer for answer in answers if isinstance(answer, JoinRefused)]
    assert [refusal.why for refusal in refusals] == [Why.NAME_TAKEN]
    # Who was refused for its name used nothing up.
    assert [len(used) for used in await cluster.uses()] == [1]


async def test_a_token_for_one_that_two_want(cluster: Cluster, tmp_path: Path) -> None:
    hosts = [Host.make(tmp_path / f"host-{n}", address=f"127.0.0.1:{7490 + n}") for n in range(2)]
    token = await cluster.token(uses=1)
    async with cluster.peer() as one, cluster.peer() as two:
        answers = await asyncio.gather(
            *(h.join([peer], token) for h, peer in zip(hosts, (one, two), strict=True)), return_exceptions=True
        )
    refusals = [answer for answer in answers if isinstance(answer, JoinRefused)]
    assert [refusal.why for refusal in refusals] == [Why.TOKEN_USED_UP]
    assert [is_member(h.directory, h.pki) for h in hosts].count(True) == 1
    assert [len(used) for used in await cluster.uses()] == [1]


# -- interrupted


class _Breaks:
    """A peer whose answers to Join are lost after its work was done, the first so many times."""

    def __init__(self, calls: JoinCalls, times: int) -> None:
        self._calls = calls
        self.left = times
        self.keys: list[bytes] = []

    async def Join(self, request: nodes_pb2.JoinRequest, context: Any) -> nodes_pb2.JoinResponse:  # noqa: N802  (gRPC's name)
        answer = await self._calls.Join(request, context)
        request_key = x509.load_pem_x509_csr(request.certificate_request).public_key()
        self.keys.append(str(request_key.public_numbers()).encode())  # type: ignore[union-attr]  # an EC key
        if self.left > 0:
            self.left -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer


async def test_an_answer_lost_after_signing_costs_nothing(cluster: Cluster, host: Host) -> None:
    breaking: list[_Breaks] = []

    def breaks(calls: JoinCalls) -> _Breaks:
        breaking.append(_Breaks(calls, times=3))
        return breaking[0]

    async with cluster.peer(change=breaks) as peer:
        memory = await host.join([peer], await cluster.token(uses=1))
    assert memory.name == "web"
    assert len(breaking[0].keys) == 4
    # The same key each time: whoever saw the first answer has nothing that the last one does not say.
    assert len(set(breaking[0].keys)) == 1
    assert await cluster.uses() == [(host.newcomer.host_id,)]


async def test_a_newcomer_that_dies_in_the_middle_joins_again_as_the_same(cluster: Cluster, host: Host) -> None:
    token = await cluster.token(uses=1)
    breaking: list[_Breaks] = []

    def breaks(calls: JoinCalls) -> _Breaks:
        breaking.append(_Breaks(calls, times=10**6))
        return breaking[0]

    async with cluster.peer(change=breaks) as peer:
        joining = asyncio.create_task(host.join([peer], token))
        await wait_until(lambda: bool(breaking[0].keys), what="signed once")
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
    assert not is_member(host.directory, host.pki)
    async with cluster.peer() as peer:
        memory = await host.join([peer], token)
    assert memory.name == "web"
    assert await cluster.uses() == [(host.newcomer.host_id,)]


@pytest.mark.parametrize("lost", ["pki/node.crt", "cluster.json"])
async def test_half_a_member_joins_again_and_keeps_its_name(cluster: Cluster, host: Host, lost: str) -> None:
    token = await cluster.token(uses=1)
    await cluster.put_node(living_node("web", address="10.9.9.8:7400"))
    async with cluster.peer() as peer:
        assert (await host.join([peer], token)).name == "web-2"
        (host.directory / lost).unlink()
        assert not is_member(host.directory, host.pki)
        assert (await host.join([peer], token)).name == "web-2"
    assert is_member(host.directory, host.pki)


async def test_a_member_that_needs_a_new_certificate_keeps_its_name(cluster: Cluster, host: Host) -> None:
    """Its certificate ended while it was away; meanwhile the name that it once wished for is free."""
    other = living_node("web", address="10.9.9.8:7400")
    await cluster.put_node(other)
    async with cluster.peer() as peer:
        await host.join([peer], await cluster.token())
        await FakeEtcd(cluster.store).txn(Txn(success=(Delete(keys.node(other.id)),)))
        (host.pki / "node.crt").unlink()
        assert (await host.join([peer], await cluster.token())).name == "web-2"
        # But for what a person says now.
        (host.pki / "node.crt").unlink()
        host.newcomer = replace(host.newcomer, name="db", is_name_given=True)
        assert (await host.join([peer], await cluster.token())).name == "db"


async def test_a_peer_that_dies_in_the_middle(cluster: Cluster, host: Host) -> None:
    token = await cluster.token(uses=1)
    etcd = FakeEtcd(cluster.store)
    etcd.is_cut = True
    async with cluster.peer() as other:
        async with cluster.peer(etcd=etcd) as dying:
            joining = asyncio.create_task(host.join([dying, other], token))
            await wait_until(lambda: bool(etcd.calls), what="the peer asks etcd, which does not answer")
        assert (await joining).cluster_id == cluster.id
    assert await cluster.uses() == [(host.newcomer.host_id,)]


async def test_a_peer_without_etcd_says_so_and_is_asked_again(
    cluster: Cluster, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    etcd = FakeEtcd(cluster.store)
    token = await cluster.token()
    is_down = True

    etcd.faults = lambda _method, _argument: LOST_BEFORE if is_down else None
    async with cluster.peer(etcd=etcd) as peer:
        joining = asyncio.create_task(host.join([peer], token))
        await wait_until(lambda: "etcd" in caplog.text, what="the log says why")
        is_down = False
        await joining


async def test_nobody_can_sign_now(cluster: Cluster, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    token = await cluster.token(uses=1)
    away = cluster.directory / "away"
    async with cluster.peer() as peer:
        cluster.trust.ca_key.rename(away)
        joining = asyncio.create_task(host.join([peer], token))
        await wait_until(lambda: "nobody signs now" in caplog.text, what="the log says why")
        away.rename(cluster.trust.ca_key)
        await joining
    assert await cluster.uses() == [(host.newcomer.host_id,)]
