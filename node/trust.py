"""Who may talk to this cluster: its certificate authority, and certificates for this node and for its administrator.

Every TCP port (the API, etcd's client and peer ports) is mutual TLS from the first start; this module makes what
that needs and keeps it fresh. Layout of a `pki` directory (0700; keys 0600):

    ca.crt ca.key             the cluster's authority; on other nodes than voters the key may be missing
    node.crt node.key         this node, as server and as client
    client/ca.crt client.crt client.key    the command line's, for TCP; may be copied to an administrator's machine

Theory: the authority is P-256 ECDSA and lasts ten years. The others last 90 days and are made anew at two thirds of
their life, which leaves a month for a node that was switched off. **A renewal keeps the key**: a certificate and its
key are two files, etcd reads both at every handshake, and no rename replaces two files at once; with the same key,
one atomic rename of the certificate is the whole renewal, and every reader sees a pair that fits.

What is there is used again. What is broken is an error that names the file: a new authority made in silence would
cut this node off from its cluster. Making is safe to interrupt: a key is durable before the certificate that needs
it, and a key without a certificate is simply used.

Roles stand in the subject: O is `pilfer:CLUSTER`, OU the role (`ca`, `node`, `client`), CN the host id for a node.
Every node's certificate, and no other, carries the name NODE_DNS_NAME: peers check it whatever address they dialed,
and etcd can be told to admit it alone (--client-cert-allowed-hostname).

Must not do: read the clock (time comes in as Unix seconds) or decide who is admitted.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node.files import write_atomic

#: In every node's certificate, and in no other.
NODE_DNS_NAME: Final = "node.pilfer.internal"

CA_LIFE_S: Final = 10 * 365 * 86_400.0
LEAF_LIFE_S: Final = 90 * 86_400.0
#: Part of its life after which a certificate is made anew.
RENEW_AFTER: Final = 2 / 3
#: Certificates are good from a little earlier on: clocks of machines differ.
CLOCK_SKEW_S: Final = 300.0

ROLE_CA: Final = "ca"
ROLE_NODE: Final = "node"
ROLE_CLIENT: Final = "client"

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")


class TrustError(Exception):
    """The material cannot be used; the text names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Where the material lies, and what it has to say. The files are there and fit when `ensure_trust` returns."""

    pki_dir: Path
    cluster_name: str
    host_id: str
    #: Names and addresses that the node's certificate has to cover.
    host_names: tuple[str, ...]

    @property
    def ca_cert(self) -> Path:
        return self.pki_dir / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.pki_dir / "ca.key"

    @property
    def node_cert(self) -> Path:
        return self.pki_dir / "node.crt"

    @property
    def node_key(self) -> Path:
        return self.pki_dir / "node.key"

    @property
    def client_dir(self) -> Path:
        return self.pki_dir / "client"

    @property
    def client_ca_cert(self) -> Path:
        return self.client_dir / "ca.crt"

    @property
    def client_cert(self) -> Path:
        return self.client_dir / "client.crt"

    @property
    def client_key(self) -> Path:
        return self.client_dir / "client.key"


def names_of_this_host(listen_host: str | None) -> tuple[str, ...]:
    """For `ensure_trust`: the host's name, and what --listen makes it reachable by (all addresses for a wildcard)."""
    names = [name] if (name := socket.gethostname()) and _can_be_certified(name) else []
    if listen_host in _WILDCARDS:
        families = (socket.AF_INET, socket.AF_INET6)
        addresses = (address for found in psutil.net_if_addrs().values() for address in found)
        # A link-local address changes with the interface and means nothing without it.
        names += sorted(
            address.address
            for address in addresses
            if address.family in families and not ipaddress.ip_address(address.address.partition("%")[0]).is_link_local
        )
    elif listen_host is not None:
        names.append(listen_host)
    return tuple(dict.fromkeys(names))


def _can_be_certified(name: str) -> bool:
    """A machine may call itself what no certificate can hold; nobody needs to reach it by that name."""
    try:
        _general_name(name)
    except TrustError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A certificate that the authority signs: where it lies, and what it is to say."""

    cert: Path
    key: Path
    role: str
    common_name: str
    #: Names it is to cover; empty for a client.
    host_names: tuple[str, ...]


def ensure_trust(pki_dir: Path, *, cluster_name: str, host_id: str, host_names: Sequence[str], now: float) -> Trust:
    """Leaves whole, valid material in `pki_dir`: what is missing is made, what is due or misses a name is made anew.

    `host_names`: names and IP addresses that others reach this node by, besides localhost. `now`: Unix seconds.
    Raises TrustError; then nothing that was there has been changed or replaced by something else.
    """
    names = dict.fromkeys((NODE_DNS_NAME, *_LOCAL_NAMES, *filter(None, host_names)))
    trust = Trust(pki_dir, cluster_name, host_id, tuple(names))
    try:
        for directory in (pki_dir, trust.client_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        authority = _ensure_authority(trust, now)
        for leaf in _leaves(trust):
            _ensure_leaf(trust, authority, leaf, now)
        _copy_authority(trust, authority)
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or pki_dir}: {error.strerror}") from error
    return trust


def renew_if_due(trust: Trust, now: float) -> bool:
    """Makes each certificate that is past two thirds of its life anew, with the same key. True: something changed.

    May be called while etcd and the API use the files. Raises TrustError; the old ones are still there then.
    """
    try:
        authority = _ensure_authority(trust, now)
        changed = [_ensure_leaf(trust, authority, leaf, now) for leaf in _leaves(trust)]
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or trust.pki_dir}: {error.strerror}") from error
    return any(changed)


def is_renewal_due(not_before: float, not_after: float, now: float) -> bool:
    """The decision alone, in Unix seconds. Also due when it is not good yet: the clock was put back."""
    return now < not_before or now >= not_before + RENEW_AFTER * (not_after - not_before)


def _leaves(trust: Trust) -> tuple[_Leaf, ...]:
    return (
        _Leaf(trust.node_cert, trust.node_key, ROLE_NODE, trust.host_id, trust.host_names),
        _Leaf(trust.client_cert, trust.client_key, ROLE_CLIENT, "admin", ()),
    )


# --- the authority


def _ensure_authority(trust: Trust, now: float) -> x509.Certificate:
    if trust.ca_cert.exists():
        certificate = _read_certificate(trust.ca_cert)
        if trust.ca_key.exists() and _public(_read_key(trust.ca_key)) != _public(certificate):
            raise TrustError(f"{trust.ca_key} is not the key of {trust.ca_cert}: restore the one that belongs to it")
        if now >= certificate.not_valid_after_utc.timestamp():
            raise TrustError(f"{trust.ca_cert} has expired: the cluster needs a new authority (or check the clock)")
        return certificate
    if trust.node_cert.exists():
        # A new authority would not have signed it, and the other nodes would not know it.
        raise TrustError(f"{trust.ca_cert} is missing beside {trust.node_cert}: restore it")
    key = _ensure_key(trust.ca_key)
    name = _subject(trust, ROLE_CA, "Pilfer authority")
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_certificate(trust.ca_cert, certificate)
    return certificate


def _copy_authority(trust: Trust, authority: x509.Certificate) -> None:
    wanted = authority.public_bytes(serialization.Encoding.PEM)
    if not trust.client_ca_cert.exists() or trust.client_ca_cert.read_bytes() != wanted:
        write_atomic(trust.client_ca_cert, wanted, mode=0o644)


# --- what it signs


def _ensure_leaf(trust: Trust, authority: x509.Certificate, leaf: _Leaf, now: float) -> bool:
    """Leaves a fitting certificate; True: it was made just now."""
    if leaf.cert.exists():
        certificate = _read_certificate(leaf.cert)
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError):
            raise TrustError(
                f"{leaf.cert} was not signed by {trust.ca_cert}: restore the pair that belongs together, "
                f"or move {leaf.cert} and {leaf.key} away to have them made anew"
            ) from None
        if _public(_read_key(leaf.key)) != _public(certificate):
            raise TrustError(
                f"{leaf.key} is not the key of {leaf.cert}: restore it, or move both away to have them made anew"
            )
        start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if not is_renewal_due(start, end, now) and _covers(certificate, leaf.host_names):
            return False
    _sign(trust, authority, leaf, now)
    return True


def _sign(trust: Trust, authority: x509.Certificate, leaf: _Leaf, now: float) -> None:
    if not trust.ca_key.exists():
        raise TrustError(f"{trust.ca_key} is missing, and {leaf.cert} has to be made: restore it")
    authority_key = _read_key(trust.ca_key)
    key = _ensure_key(leaf.key)
    # A certificate that outlives its authority would fail without a word on that day.
    life_s = min(LEAF_LIFE_S, authority.not_valid_after_utc.timestamp() - now)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if leaf.role == ROLE_NODE:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        _builder(_subject(trust, leaf.role, leaf.common_name), authority.subject, key.public_key(), now, life_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if leaf.host_names:
        names = x509.SubjectAlternativeName([_general_name(name) for name in leaf.host_names])
        builder = builder.add_extension(names, critical=False)
    _write_certificate(leaf.cert, builder.sign(authority_key, hashes.SHA256()))


def _covers(certificate: x509.Certificate, host_names: Sequence[str]) -> bool:
    if not host_names:
        return True
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return all(_general_name(name) in found for name in host_names)


def _general_name(name: str) -> x509.GeneralName:
    """An address or a DNS name. Raises TrustError for what can be neither."""
    try:
        # A scope (fe80::1%eth0) means something on one machine only, and has no place in a certificate.
        return x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError):
        raise TrustError(f"{name!r} is neither an address nor a host name that can stand in a certificate") from None


def _subject(trust: Trust, role: str, common_name: str) -> x509.Name:
    # 64 characters is X.520's limit for each of these.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"pilfer:{trust.cluster_name}"[:64]),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
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
        .not_valid_before(_utc(now - CLOCK_SKEW_S))
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


# --- files


def _ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that lies there, or a new one, durable before anything is signed for it."""
    if path.exists():
        return _read_key(path)
    key = ec.generate_private_key(ec.SECP256R1())
    # SEC 1 ("EC PRIVATE KEY") and PKCS 8 are both read by Go and OpenSSL; PKCS 8 says what it is.
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(path, content, mode=0o600)
    return key


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise TrustError(
            f"{path} is missing: restore it, or move its certificate away to have both made anew"
        ) from None
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path} holds no private key in PEM form ({error}): restore it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{path} holds no elliptic curve key: restore it")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise TrustError(f"{path} holds no certificate in PEM form ({error}): restore it") from None


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    write_atomic(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _public(holder: ec.EllipticCurvePrivateKey | x509.Certificate) -> bytes:
    """The public key in one form, for comparing."""
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
