"""What the authority signs, and what it refuses to."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from node.trust.authority import (
    CA_LIFE_S,
    LEAF_LIFE_S,
    ROLES,
    Authority,
    NotSignable,
    covers,
    found_authority,
    is_issued_by,
    is_renewal_due,
    new_key,
    request_of,
    sign_request,
    subject_of,
)
from pilfer.address import NODE_DNS_NAME

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("lab", new_key(), NOW)


def sign(
    authority: Authority, role: str = "client", name: str = "alice", life_s: float = LEAF_LIFE_S, now: float = NOW
) -> x509.Certificate:
    pem = sign_request(authority, request_of(new_key()), role=role, common_name=name, life_s=life_s, now=now)
    return x509.load_pem_x509_certificate(pem)


@pytest.mark.parametrize("role", ROLES)
def test_a_certificate_says_who_holds_it_and_is_good_for_its_role_alone(authority: Authority, role: str) -> None:
    certificate = sign(authority, role)
    assert is_issued_by(certificate, authority.certificate)
    subject = subject_of(certificate)
    assert (subject.cluster, subject.role, subject.name) == ("pilfer:lab", role, "alice")
    usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    # Only a node serves, and only a node passes for one.
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usages) is (role == "node")
    assert covers(certificate, [NODE_DNS_NAME]) is (role == "node")


def test_names_are_for_nodes_alone_and_are_the_signers_to_say(authority: Authority) -> None:
    oids = x509.NameOID
    subject = [(oids.COMMON_NAME, "root"), (oids.ORGANIZATIONAL_UNIT_NAME, "node")]
    names = [x509.DNSName(NODE_DNS_NAME), x509.DNSName("bank.example")]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, text) for oid, text in subject]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(new_key(), hashes.SHA256())
    )
    pem = request.public_bytes(serialization.Encoding.PEM)
    for role, host_names in (("client", ["192.0.2.7"]), ("join", [])):
        signed = x509.load_pem_x509_certificate(
            sign_request(authority, pem, role=role, common_name="alice", host_names=host_names, now=NOW)
        )
        with pytest.raises(x509.ExtensionNotFound):
            signed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert subject_of(signed).name == "alice"
    node = x509.load_pem_x509_certificate(
        sign_request(authority, pem, role="node", common_name="h", host_names=["192.0.2.7", "a.example"], now=NOW)
    )
    assert covers(node, [NODE_DNS_NAME, "192.0.2.7", "a.example", "localhost"])
    assert not covers(node, ["bank.example"])


@pytest.mark.parametrize("life_s", [1.0, 30.0, 3600.0, LEAF_LIFE_S])
def test_no_certificate_is_due_when_it_is_made(authority: Authority, life_s: float) -> None:
    certificate = sign(authority, life_s=life_s)
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    assert end == NOW + life_s
    assert start < NOW or life_s < 10
    assert not is_renewal_due(start, end, NOW)
    assert is_renewal_due(start, end, NOW + life_s * 0.9)


def test_nothing_outlives_its_authority(authority: Authority) -> None:
    late = NOW + CA_LIFE_S - 100
    assert sign(authority, now=late).not_valid_after_utc.timestamp() == NOW + CA_LIFE_S
    with pytest.raises(NotSignable, match="over before it began"):
        sign(authority, now=NOW + CA_LIFE_S)


@pytest.mark.parametrize("role", ["ca", "", "admin", "Node"])
def test_there_are_no_other_roles(authority: Authority, role: str) -> None:
    with pytest.raises(NotSignable, match="no role"):
        sign(authority, role)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_name_that_a_certificate_would_cut_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(NotSignable, match="characters"):
        sign(authority, name=name)


def test_a_request_must_be_signed_by_its_key(authority: Authority) -> None:
    der = bytearray(x509.load_pem_x509_csr(request_of(new_key())).public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(request_of(new_key())).public_bytes(serialization.Encoding.DER)
    # The other one's key under this one's signature: whoever asks must have the key.
    key = x509.load_pem_x509_csr(request_of(new_key())).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    at = other.index(b"\x04", other.index(b"\x03\x42\x00"))
    der[at : at + len(point)] = point
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(NotSignable, match="not signed by the key"):
        sign_request(authority, forged, role="client", common_name="alice", now=NOW)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_a_request_that_cannot_be_read_is_refused(authority: Authority, content: bytes) -> None:
    with pytest.raises(NotSignable, match="cannot be read"):
        sign_request(authority, content, role="client", common_name="alice", now=NOW)


def test_keys_of_another_kind_are_refused(authority: Authority) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    other = ec.generate_private_key(ec.SECP384R1())
    for key in (weak, other):
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(NotSignable, match="another kind"):
            sign_request(authority, pem, role="client", common_name="alice", now=NOW)


def test_the_authority_does_not_show_its_key(authority: Authority) -> None:
    assert repr(authority) == "Authority(...)"
