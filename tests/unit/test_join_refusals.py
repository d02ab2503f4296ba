"""Joining over real connections: each refusal is told by its reason and by what to do, and costs nothing."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from etcd import keys
from etcd.port import Delete, Put, Txn
from node.api.join import is_from_elsewhere
from node.core.newcomer import Why
from node.joining import join as joining
from node.joining.handshake import Papers
from node.joining.peer_answers import JoinRefused, Refused, ask
from node.joining.place import first_address
from node.peer_channels import PeerChannels
from node.trust.authority import TrustError
from node.trust.join_token import decode
from node.trust.tokens import Tokens
from pilfer.v1 import nodes_pb2
from pilfer.version import PROTOCOL
from tests.support.fake_etcd import FakeEtcd
from tests.support.joining import DOWN, Cluster, Host, is_member, living_node
from tests.support.wait import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host.make(tmp_path / "host")


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("hello", "no join token"), ("pilfer-join:AAAA", "cut off|version")]
)
async def test_a_token_that_cannot_be_read(host: Host, text: str, words: str) -> None:
    refused = await host.refused([DOWN], text)
    assert refused.why is Why.TOKEN_UNREADABLE
    assert re.search(words, str(refused))


async def test_an_expired_token_is_known_without_asking(cluster: Cluster, host: Host) -> None:
    token = await cluster.token(ttl_s=60.0)
    refused = await host.refused([DOWN], token, clock=lambda: time.time() + 61)
    assert refused.why is Why.TOKEN_EXPIRED
    assert "node token create" in str(refused)


async def test_a_token_that_expires_while_it_waits(cluster: Cluster, host: Host) -> None:
    token = await cluster.token(ttl_s=60.0)
    start = time.monotonic()
    assert (
        await host.refused([DOWN], token, clock=lambda: time.time() + 59.5 + (time.monotonic() - start))
    ).why is Why.TOKEN_EXPIRED


async def test_revoked_and_unknown(cluster: Cluster, host: Host) -> None:
    token = await cluster.token()
    tokens = Tokens(FakeEtcd(cluster.store))
    await tokens.revoke((await tokens.list_all())[0].id)
    async with cluster.peer() as peer:
        assert (await host.refused([peer], token)).why is Why.TOKEN_REVOKED
    cluster.store = type(cluster.store)()
    async with cluster.peer() as peer:
        assert (await host.refused([peer], token)).why is Why.TOKEN_UNKNOWN


async def test_a_token_whose_certificate_is_over_by_the_peers_clock(
    cluster: Cluster, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer ends such a connection without a word; the newcomer has to say it."""
    monkeypatch.setattr(joining, "CERTIFICATE_PATIENCE_S", 0.2)
    token = await cluster.token(is_certificate_over=True)
    async with cluster.peer() as peer:
        refused = await host.refused([peer], token)
    assert refused.why is Why.CERTIFICATE_REFUSED
    assert peer in str(refused)


async def test_another_clusters_peer(cluster: Cluster, host: Host, tmp_path: Path) -> None:
    token = await cluster.token()
    other = Cluster(tmp_path / "other")
    async with other.peer() as peer:
        refused = await host.refused([peer], token)
    assert refused.why is Why.WRONG_CLUSTER
    assert str(refused).count(peer) == 1
    assert "node token create" in str(refused)
    assert await cluster.uses() == [()]


async def test_one_authority_and_two_cluster_ids(cluster: Cluster, host: Host) -> None:
    """After a restore to a new cluster, say."""
    token = await cluster.token()
    async with cluster.peer(cluster_id=str(uuid.uuid4())) as peer:
        refused = await host.refused([peer], token)
    assert refused.why is Why.WRONG_CLUSTER
    assert cluster.id in str(refused)


async def test_a_peer_of_another_cluster_among_the_right_ones(cluster: Cluster, host: Host, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    async with other.peer() as wrong, cluster.peer() as right:
        assert (await host.join([wrong, right], await cluster.token())).cluster_id == cluster.id


async def test_a_directory_that_belongs_to_another_cluster(cluster: Cluster, host: Host, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    async with other.peer() as peer:
        await host.join([peer], await other.token())
    before = {path: path.read_bytes() for path in host.directory.rglob("*") if path.is_file()}
    async with cluster.peer() as peer:
        with pytest.raises(JoinRefused, match=f"belongs to cluster {other.id}.*--data-dir") as caught:
            await host.join([peer], await cluster.token())
        assert caught.value.why is Why.WRONG_CLUSTER
    assert {path: path.read_bytes() for path in host.directory.rglob("*") if path.is_file()} == before
    # The same, where only the certificates tell.
    (host.directory / "cluster.json").unlink()
    async with cluster.peer() as peer:
        with pytest.raises(TrustError, match="another cluster"):
            await host.join([peer], await cluster.token())
    assert not is_member(host.directory, host.pki)


async def test_no_node_at_all(cluster: Cluster, host: Host) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        refused = await host.refused([f"127.0.0.1:{port}"], await cluster.token())
    finally:
        await server.stop(0)
    assert refused.why is Why.NOT_A_NODE


async def test_a_peer_that_is_too_old_to_know_of_joining(cluster: Cluster, host: Host) -> None:
    async with cluster.peer(change=lambda _calls: object()) as peer:
        refused = await host.refused([peer], await cluster.token())
    assert refused.why is Why.NOT_A_NODE
    assert "older version" in str(refused)


async def test_another_protocol(cluster: Cluster, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PROTOCOL", 2)
    async with cluster.peer() as peer:
        assert (await host.refused([peer], await cluster.token())).why is Why.PROTOCOL


@pytest.mark.parametrize("off_by_s", [-45.0, 45.0])
async def test_a_clock_that_is_off(cluster: Cluster, host: Host, off_by_s: float) -> None:
    async with cluster.peer() as peer:
        refused = await host.refused([peer], await cluster.token(), clock=lambda: time.time() + off_by_s)
    assert refused.why is Why.CLOCK
    assert "there it is 20" in str(refused)
    assert await cluster.uses() == [()]


async def test_a_clock_of_another_year(cluster: Cluster, host: Host) -> None:
    """The certificates do not fit such a clock; grpc would only say that the handshake failed."""
    async with cluster.peer() as peer:
        refused = await host.refused([peer], await cluster.token(), clock=lambda: time.time() - 3e8)
    assert refused.why is Why.CLOCK
    assert "the clock here says" in str(refused)


async def test_a_removed_host(cluster: Cluster, host: Host) -> None:
    await cluster.remove(host.newcomer.host_id)
    async with cluster.peer() as peer:
        refused = await host.refused([peer], await cluster.token())
    assert refused.why is Why.REMOVED
    assert "--data-dir" in str(refused)


async def test_a_given_name_that_is_taken(cluster: Cluster, host: Host) -> None:
    await cluster.put_node(living_node("web"))
    host.newcomer = replace(host.newcomer, is_name_given=True)
    async with cluster.peer() as peer:
        refused = await host.refused([peer], await cluster.token(uses=1))
    assert refused.why is Why.NAME_TAKEN
    assert "choose another --name" in str(refused)
    assert await cluster.uses() == [()]


async def test_itself(cluster: Cluster, host: Host) -> None:
    token = await cluster.token()
    assert (await host.refused([host.newcomer.address], token)).why is Why.SELF
    async with cluster.peer(host_id=host.newcomer.host_id) as peer:
        assert (await host.refused([peer], token)).why is Why.SELF


async def test_an_address_that_others_do_not_reach(cluster: Cluster, host: Host) -> None:
    address = first_address()
    if address is None:
        pytest.skip("this machine has no address besides loopback")
    token = await cluster.token()
    async with cluster.peer(listen=f"[{address}]:0" if ":" in address else f"{address}:0") as peer:
        refused = await host.refused([peer], token)
        assert refused.why is Why.ADDRESS_UNREACHABLE
        assert "--advertise" in str(refused)
        host.newcomer = replace(host.newcomer, address="10.9.9.3:7400")
        await host.join([peer], token)


@pytest.mark.parametrize("why", [Why.HOST_ALIVE, Why.ADDRESS_TAKEN])
async def test_a_node_that_seems_to_live_is_waited_for_and_then_told(
    cluster: Cluster, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: Why
) -> None:
    """Its lease may be running out: this machine was wiped and set up again, say."""
    same = {"host_id": host.newcomer.host_id} if why is Why.HOST_ALIVE else {"address": host.newcomer.address}
    node = living_node("old", **same)
    await cluster.put_node(node)
    token = await cluster.token()
    async with cluster.peer() as peer:
        with monkeypatch.context() as patch:
            patch.setattr(joining, "LEASE_PATIENCE_S", 0.2)
            assert (await host.refused([peer], token)).why is why
        caplog.clear()
        waiting = asyncio.create_task(host.join([peer], token))
        await wait_until(lambda: "which lives" in caplog.text or "lives already" in caplog.text, what="the log says it")
        await FakeEtcd(cluster.store).txn(Txn(success=(Delete(keys.node(node.id)),)))
        assert (await waiting).name == "web"


async def test_a_token_cannot_hide_behind_another(cluster: Cluster, host: Host) -> None:
    own, other = decode(await cluster.token()), decode(await cluster.token())
    papers = Papers(own.ca_pem, own.certificate_pem, own.key_pem)
    request = nodes_pb2.JoinRequest(protocol=PROTOCOL, token_id=other.token_id, cluster_id=cluster.id)
    request.now.GetCurrentTime()
    async with cluster.peer() as peer:
        result = await ask(peer, papers, lambda stub: stub.Join(request, timeout=5.0), now=time.time())
    assert isinstance(result, Refused)
    assert result.why is Why.CERTIFICATE_REFUSED
    assert await cluster.uses() == [(), ()]


async def test_what_a_stranger_left_in_etcd_keeps_nobody_out(cluster: Cluster, host: Host) -> None:
    strange = (b"/node/x", b"/node/" + b"f" * 36, keys.node(str(uuid.uuid4())), b"/cluster/removed/x")
    await FakeEtcd(cluster.store).txn(Txn(success=tuple(Put(key, b"\xff") for key in strange)))
    async with cluster.peer() as peer:
        await host.join([peer], await cluster.token())


async def test_a_removal_that_nobody_can_read_still_bars(cluster: Cluster, host: Host) -> None:
    await FakeEtcd(cluster.store).txn(Txn(success=(Put(keys.removed_key(host.newcomer.host_id), b"\xff"),)))
    async with cluster.peer() as peer:
        assert (await host.refused([peer], await cluster.token())).why is Why.REMOVED


async def test_details_for_programs(cluster: Cluster, host: Host) -> None:
    secret = decode(await cluster.token())
    papers = Papers(secret.ca_pem, secret.certificate_pem, secret.key_pem)
    request = nodes_pb2.JoinRequest(protocol=99, token_id=secret.token_id, cluster_id=cluster.id)
    channels = PeerChannels(papers.channel_credentials)
    try:
        async with cluster.peer() as peer:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channels.nodes(peer).Join(request, timeout=5.0)
    finally:
        await channels.close()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    metadata = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason) == ("pilfer", "PROTOCOL_DIFFERS")
    assert [violation.field for violation in bad.field_violations] == ["protocol"]


@pytest.mark.parametrize(
    ("peer", "is_elsewhere"),
    [
        ("ipv4:127.0.0.1:5000", False),
        ("ipv4:127.9.9.9:5000", False),
        ("ipv4:192.0.2.1:5000", True),
        ("ipv6:%5B::1%5D:5000", False),
        ("ipv6:[::1]:5000", False),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5000", False),
        ("ipv6:%5B::ffff:192.0.2.1%5D:5000", True),
        ("ipv6:%5B2001:db8::1%5D:5000", True),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", True),
        ("ipv4:what", True),
        ("unix:", False),
        ("unix:/x", False),
    ],
)
def test_where_a_call_comes_from(peer: str, is_elsewhere: bool) -> None:
    assert is_from_elsewhere(peer) is is_elsewhere
