"""Tokens, invitations and signatures, over real grpc with real certificates; etcd is the fake."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import pilfer
from node.api.trust import INVITATION_TTL_S
from node.trust.authority import NotSignable, new_key, request_of, subject_of
from node.trust.certificates import renew
from node.trust.join_token import decode
from node.trust.material import Trust, install_authority_key, load_authority
from node.trust.signer import NobodySigns
from pilfer.address import CERTIFICATE_FILES, NODE_DNS_NAME
from pilfer.v1 import nodes_pb2, nodes_pb2_grpc
from tests.support.trusted_nodes import CLUSTER, JOINED, LISTEN_ON, REMOVED, VOTER, Lab


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_a_token_is_made_listed_and_revoked(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with lab.serving(lab.founder()) as node, node.client() as client:
        lab.addresses = [node.address]
        before = time.time()
        made = await client.create_token(uses=3)
        assert made.addresses == (node.address,)
        secret = decode(made.text)
        assert (secret.cluster_id, secret.token_id) == (CLUSTER, made.view.id)
        assert before + 3590 < secret.expires_at < time.time() + 3610
        holder = certificate(secret.certificate_pem)
        holder.verify_directly_issued_by(certificate(secret.ca_pem))
        assert (subject_of(holder).role, subject_of(holder).name) == ("join", made.view.id)
        # A little longer than the token, so that its end is told in words.
        assert holder.not_valid_after_utc.timestamp() > secret.expires_at + 60

        short = await client.create_token(ttl_s=90)
        assert [view.id for view in await client.list_tokens()] == [made.view.id, short.view.id]
        revoked = await client.revoke_token(made.view.id[:13])
        assert revoked.revoked
        assert [view.revoked for view in await client.list_tokens()] == [True, False]
        with pytest.raises(pilfer.NotFound, match="node token list"):
            await client.revoke_token("ffffffff-ffff")
        # Neither the text nor the key is told anywhere.
        assert made.text not in caplog.text
        assert made.text not in repr(made)
        assert made.view.id in caplog.text


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"ttl_s": 0.0}, "ttl"),
        ({"ttl_s": 32 * 86_400.0}, "ttl"),
        ({"uses": -1}, "uses"),
        ({"uses": 1_000_000}, "uses"),
    ],
)
async def test_a_token_has_its_limits(lab: Lab, request_: dict[str, Any], field: str) -> None:
    async with lab.serving(lab.founder()) as node, node.client() as client:
        with pytest.raises(pilfer.InvalidRequest) as caught:
            await client.create_token(**request_)
        assert [violation.field for violation in caught.value.violations] == [field]
        assert await client.list_tokens() == []


async def test_an_invitation_lets_a_client_in_from_elsewhere(lab: Lab, tmp_path: Path) -> None:
    async with lab.serving(lab.founder()) as node:
        lab.addresses = [node.address]
        async with node.client() as client:
            invitation = await client.invite("alice")
        directory = tmp_path / "alice"
        directory.mkdir()
        contents = (invitation.ca_certificate, invitation.certificate, invitation.key)
        for name, content in zip(CERTIFICATE_FILES, contents, strict=True):
            (directory / name).write_bytes(content)
        assert invitation.key.decode() not in repr(invitation)
        holder = certificate(invitation.certificate)
        assert (subject_of(holder).role, subject_of(holder).name) == ("client", "alice")
        assert abs(holder.not_valid_after_utc.timestamp() - time.time() - INVITATION_TTL_S) < 60
        # No certificate names the address: a node is known by what it is, not by where it is.
        names = certificate(node.trust.node_cert.read_bytes()).extensions
        covered = names.get_extension_for_class(x509.SubjectAlternativeName).value
        assert ipaddress.ip_address(LISTEN_ON) not in covered.get_values_for_type(x509.IPAddress)
        async with pilfer.AsyncClient(invitation.addresses[0], certs=directory, timeout_s=30) as elsewhere:
            assert await elsewhere.list_tokens() == []


@pytest.mark.parametrize("name", ["", " alice", "a\nb", "x" * 65, f"admin@{VOTER}"])
async def test_an_invitation_needs_a_name(lab: Lab, name: str) -> None:
    async with lab.serving(lab.founder()) as node, node.client() as client:
        with pytest.raises(pilfer.InvalidRequest, match="name"):
            await client.invite(name)


async def test_a_node_without_the_authoritys_key_asks_until_one_signs(lab: Lab) -> None:
    founder = lab.founder()
    first, second = lab.newcomer(founder), lab.newcomer(founder, "66666666-6666-4666-8666-666666666666")
    async with lab.serving(founder) as voter, lab.serving(first) as one, lab.serving(second) as other:
        # Nobody there; a node without the key; itself; the voter.
        lab.addresses = [unused_address(), other.address, one.address, voter.address]
        async with one.client() as client:
            secret = decode((await client.create_token()).text)
            certificate(secret.certificate_pem).verify_directly_issued_by(certificate(secret.ca_pem))
            invitation = await client.invite("alice")
            certificate(invitation.certificate).verify_directly_issued_by(certificate(invitation.ca_certificate))
        lab.addresses.pop()
        with pytest.raises(NobodySigns, match=r"other nodes|ask a voter"):
            await one.signer.sign(request_of(new_key()), role="client", common_name="bob")
        lab.addresses.append(voter.address)
        with pytest.raises(NotSignable, match="no role"):
            await one.signer.sign(request_of(new_key()), role="king", common_name="bob")


async def test_a_renewal_needs_no_restart(lab: Lab) -> None:
    """The server of a node without the authority's key shows its new certificate to the next who connects."""
    founder = lab.founder()
    trust = lab.newcomer(founder)
    async with lab.serving(founder) as voter, lab.serving(trust) as node:
        lab.addresses = [voter.address]
        old = await asyncio.to_thread(shown_certificate, trust, node.address)
        assert old.public_bytes(Encoding.PEM) == trust.node_cert.read_bytes()
        late = time.time() + 61 * 86_400
        assert await renew(trust, node.signer, now=late) == ["node.crt", "client.crt"]
        new = await asyncio.to_thread(shown_certificate, trust, node.address)
        assert new.serial_number != old.serial_number
        assert new.public_key() == old.public_key()
        assert new.public_bytes(Encoding.PEM) == trust.node_cert.read_bytes()


async def test_nothing_is_signed_for_a_host_that_was_removed(lab: Lab) -> None:
    async with lab.serving(lab.founder()) as node:
        stub = node.peers.nodes(node.address)
        for role, name in (("node", REMOVED), ("client", f"admin@{REMOVED}")):
            request = nodes_pb2.SignRequest(
                certificate_request=request_of(new_key()), role=role, common_name=name, life={"seconds": 60}
            )
            with pytest.raises(grpc.aio.AioRpcError, match="was removed") as caught:
                await stub.Sign(request, timeout=20)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_life_without_end_is_not_signed(lab: Lab) -> None:
    async with lab.serving(lab.founder()) as node:
        stub = node.peers.nodes(node.address)
        for life in ({}, {"seconds": -1}, {"seconds": 10**9}):
            request = nodes_pb2.SignRequest(
                certificate_request=request_of(new_key()), role="client", common_name="x", life=life
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Sign(request, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_authoritys_key_goes_to_voters_alone(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    founder = lab.founder()
    trust = lab.newcomer(founder)
    request = nodes_pb2.ShareAuthorityRequest()
    async with lab.serving(founder) as voter, lab.serving(trust) as node:
        with pytest.raises(grpc.aio.AioRpcError, match="is for voters") as refused:
            await node.peers.nodes(voter.address).ShareAuthority(request, timeout=20)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        lab.voters.add(JOINED)
        with pytest.raises(grpc.aio.AioRpcError, match="ask a voter") as without:
            await node.peers.nodes(node.address).ShareAuthority(request, timeout=20)
        assert without.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        response = await node.peers.nodes(voter.address).ShareAuthority(request, timeout=20)
        install_authority_key(trust.pki_dir, response.ca_key)
        assert load_authority(trust.pki_dir) is not None
        assert response.ca_key.decode().splitlines()[1] not in caplog.text
        # The local administrator of a voter does not get it through the door either.
        async with grpc.aio.insecure_channel(f"unix:{voter.socket}") as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="between nodes"):
                await nodes_pb2_grpc.NodeServiceStub(channel).ShareAuthority(request, timeout=20)


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def shown_certificate(trust: Trust, address: str) -> x509.Certificate:
    """What a server shows to who connects now."""
    context = ssl.create_default_context(cafile=str(trust.ca_cert))
    context.load_cert_chain(trust.node_cert, trust.node_key)
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname=NODE_DNS_NAME) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)
