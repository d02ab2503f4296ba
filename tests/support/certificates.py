"""Certificates for tests: one CA, and certificates for loopback that are good for both roles."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from etcd.endpoints import ClientTls

_DAY = datetime.timedelta(days=1)


#: In the certificates of members, and in no other.
MEMBER_NAME = "member.test"


def make_tls(directory: Path, name: str = "node") -> ClientTls:
    """A CA of its own and one certificate below it, as files in `directory`."""
    return make_several(directory, {name: True})[name]


def make_several(directory: Path, is_member: Mapping[str, bool]) -> dict[str, ClientTls]:
    """One CA and several certificates below it, by name; those of members carry MEMBER_NAME."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    name = "+".join(is_member)
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA of {name}")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    ca_file = directory / "ca.crt"
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    return {leaf: _leaf(directory, leaf, ca_name, ca_key, member) for leaf, member in is_member.items()}


def _leaf(
    directory: Path, name: str, ca_name: x509.Name, ca_key: ec.EllipticCurvePrivateKey, is_member: bool
) -> ClientTls:
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = ["localhost", *([MEMBER_NAME] if is_member else [])]
    addresses = [*(f"127.0.0.{i}" for i in range(1, 4)), "::1"]
    hosts = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        _builder(own, ca_name, key.public_key())
        .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, names), *hosts]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    tls = ClientTls(directory / "ca.crt", directory / f"{name}.crt", directory / f"{name}.key")
    tls.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tls


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )
