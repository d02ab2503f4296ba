"""The cluster's certificate authority: what it signs, for whom, and what it refuses.

Theory. The authority is P-256 ECDSA and lasts ten years; its key lies on the voters alone, others ask a voter to sign.
A certificate says three things in its subject: O is the cluster, OU the role, CN who it is. The role decides what its
holder may call (`node/api/callers.py`):

    node      a host of the cluster, CN its host id; serves and calls; carries NODE_DNS_NAME and the host's names
    client    a command line, CN a name for people; calls
    join      a join token, CN the token's id; may ask to join and nothing else

Every node's certificate, and no other, carries the name NODE_DNS_NAME: peers and clients check it whatever address
they dialed (addresses change), and etcd can be told to admit it alone. Who asks for a certificate sends a request
(PKCS 10) that it signed with its key; of that request the key alone is used: names and role are the signer's to say.

Must not do: read the clock (time comes in as Unix seconds), or decide who may have a certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pilfer.address import NODE_DNS_NAME

CA_LIFE_S: Final = 10 * 365 * 86_400.0
LEAF_LIFE_S: Final = 90 * 86_400.0
#: Part of its life after which a certificate is made anew.
RENEW_AFTER: Final = 2 / 3
#: Certificates are good from a little earlier on: clocks of machines differ. Of a short life, a tenth of it.
CLOCK_SKEW_S: Final = 300.0

ROLE_CA: Final = "ca"
ROLE_NODE: Final = "node"
ROLE_CLIENT: Final = "client"
ROLE_JOIN: Final = "join"
#: What may be asked for.
ROLES: Final = (ROLE_NODE, ROLE_CLIENT, ROLE_JOIN)

#: X.520's limit for each part of a name.
NAME_MAX: Final = 64

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


class TrustError(Exception):
    """The material cannot be used; the text names the file and what to do."""


class NotSignable(TrustError):  # noqa: N818  (named after what is so, as in the conventions)
    """The authority signs no such certificate, here or on any other node: the request is at fault."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate of the authority, and its key: whoever has one of these may sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return "Authority(...)"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a certificate says about its holder."""

    cluster: str
    role: str
    name: str


def found_authority(cluster_name: str, key: ec.EllipticCurvePrivateKey, now: float) -> Authority:
    """A new authority, signed by itself."""
    name = _subject(f"pilfer:{cluster_name}", ROLE_CA, "Pilfer authority")
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # SEC 1 ("EC PRIVATE KEY") and PKCS 8 are both read by Go and OpenSSL; PKCS 8 says what it is.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request (PEM) for this key. It names nobody: the signer knows whom it signs for."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def node_names(host_names: Sequence[str]) -> tuple[str, ...]:
    """All that a node's certificate carries: the name of every node, this machine, and the names given."""
    return tuple(dict.fromkeys((NODE_DNS_NAME, *LOCAL_NAMES, *filter(None, host_names))))


def sign_request(
    authority: Authority,
    request_pem: bytes,
    *,
    role: str,
    common_name: str,
    host_names: Sequence[str] = (),
    life_s: float = LEAF_LIFE_S,
    now: float,
) -> bytes:
    """A certificate (PEM) for the key of the request, good from now on for `life_s` seconds.

    It never outlives its authority. `host_names` counts for the role node alone, whose certificate carries
    NODE_DNS_NAME and this machine's own names besides. Raises NotSignable for a request that cannot be read or was not
    signed by its own key, a role that there is not, a name that no certificate can hold, and an authority or a life
    that is over.
    """
    if role not in ROLES:
        raise NotSignable(f"there is no role {role!r}: it is one of {', '.join(ROLES)}")
    if not 0 < len(common_name) <= NAME_MAX:
        raise NotSignable(f"a certificate's name has 1 to {NAME_MAX} characters, not {len(common_name)}")
    key = _requested_key(request_pem)
    # A certificate that outlives its authority would fail without a word on that day.
    life_s = min(life_s, authority.certificate.not_valid_after_utc.timestamp() - now)
    if life_s <= 0:
        raise NotSignable("the certificate would be over before it began: check the clock, and the authority's end")
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role == ROLE_NODE:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer = authority.certificate.subject
    organization = _attribute(issuer, NameOID.ORGANIZATION_NAME)
    builder = (
        _builder(_subject(organization, role, common_name), issuer, key, now, life_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if role == ROLE_NODE:
        names = x509.SubjectAlternativeName([general_name(name) for name in node_names(host_names)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def subject_of(certificate: x509.Certificate) -> Subject:
    """What it says about its holder; empty texts where it says nothing."""
    name = certificate.subject
    return Subject(
        cluster=_attribute(name, NameOID.ORGANIZATION_NAME),
        role=_attribute(name, NameOID.ORGANIZATIONAL_UNIT_NAME),
        name=_attribute(name, NameOID.COMMON_NAME),
    )


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def covers(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    """Whether it carries all of these names and addresses."""
    if not names:
        return True
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return all(general_name(name) in found for name in names)


def is_renewal_due(not_before: float, not_after: float, now: float) -> bool:
    """The decision alone, in Unix seconds. Also due when it is not good yet: the clock was put back."""
    return now < not_before or now >= not_before + RENEW_AFTER * (not_after - not_before)


def general_name(name: str) -> x509.GeneralName:
    """An address or a DNS name. Raises NotSignable for what can be neither."""
    try:
        # A scope (fe80::1%eth0) means something on one machine only, and has no place in a certificate.
        return x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError):
        raise NotSignable(f"{name!r} is neither an address nor a host name that can stand in a certificate") from None


def public_key_of(holder: ec.EllipticCurvePrivateKey | x509.Certificate) -> bytes:
    """The public key in one form, for comparing."""
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key, is_signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise NotSignable(f"the certificate request cannot be read ({error})") from None
    if not is_signed:
        raise NotSignable("the certificate request was not signed by the key that it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotSignable("the certificate request is for a key of another kind: nodes and clients have P-256 keys")
    return key


def _attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value) if len(found) == 1 else ""


def _subject(organization: str, role: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:NAME_MAX]),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, life_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # The part before now must stay a small one, or a certificate of a short life would be due when it is made.
        .not_valid_before(_utc(now - min(CLOCK_SKEW_S, life_s / 10)))
        .not_valid_after(_utc(now + life_s))
    )


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.UTC)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
