"""The certificates that lie on this node's disk: made, used again, installed after a join, renewed.

Every TCP port (the API, etcd's client and peer ports) is mutual TLS from the first start; this module makes what
that needs and keeps it whole. What is signed, and what it says, is `node/trust/authority.py`'s. Layout of a `pki`
directory (0700; keys 0600):

    ca.crt ca.key             the cluster's authority; the key lies on voters alone
    node.crt node.key         this node, as server and as client
    client/ca.crt client.crt client.key    the command line's, for TCP; may be copied to an administrator's machine

Three ways to a whole directory:

    founding    nothing is there: authority, node and client are made (`ensure_trust`)
    joining     `make_request`, a peer signs, `install`; the client's follows by itself (`node/trust/certificates.py`),
                since the unix socket needs none
    coming back what is there is checked and used again; with the authority's key, what is due is made anew at once

Theory: **a renewal keeps the key**. A certificate and its key are two files, etcd reads both at every handshake, and
no rename replaces two files at once; with the same key, one atomic rename of the certificate is the whole renewal, and
every reader sees a pair that fits. Certificates last 90 days and are made anew at two thirds of their life, which
leaves a month for a node that was switched off.

What is broken is an error that names the file: a new authority made in silence would cut this node off from its
cluster. Making is safe to interrupt: a key is durable before the certificate that needs it, and a key without a
certificate is simply used.

Must not do: read the clock (time comes in as Unix seconds), talk to anybody, or decide who is admitted.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from node.files import write_atomic
from node.trust.authority import (
    LEAF_LIFE_S,
    ROLE_CLIENT,
    ROLE_NODE,
    Authority,
    TrustError,
    covers,
    found_authority,
    general_name,
    is_issued_by,
    is_renewal_due,
    key_pem,
    new_key,
    node_names,
    public_key_of,
    request_of,
    sign_request,
    subject_of,
)

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)
_ADMIN: Final = "admin@"


class JoinNeeded(TrustError):  # noqa: N818  (named after what is so, as in the conventions)
    """This node has no certificate that is good, and cannot make one: it has to join (again)."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate that the authority signs: where it lies, and what it is to say."""

    cert: Path
    key: Path
    role: str
    common_name: str
    #: All that it is to cover; empty for a client.
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trust:
    """Where the material lies, and what it has to say. The files are there and fit when `ensure_trust` returns; the
    client's may be missing where the authority's key is."""

    pki_dir: Path
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

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        # The client's names its host, so that it goes when the host is removed.
        return (
            Leaf(self.node_cert, self.node_key, ROLE_NODE, self.host_id, self.host_names),
            Leaf(self.client_cert, self.client_key, ROLE_CLIENT, admin_of(self.host_id), ()),
        )


def admin_of(host_id: str) -> str:
    """Name of the client certificate that a host keeps for its own administrator."""
    return f"{_ADMIN}{host_id}"


def host_of_admin(name: str) -> str:
    """The host id in a name made by `admin_of`; empty for any other name."""
    return name.removeprefix(_ADMIN) if name.startswith(_ADMIN) else ""


def names_of_this_host(*hosts: str | None) -> tuple[str, ...]:
    """For `ensure_trust`: the host's name, and what `--listen` and `--advertise` make it reachable by (all its
    addresses for a wildcard; None: nothing)."""
    names = [name] if (name := socket.gethostname()) and _can_be_certified(name) else []
    for host in hosts:
        if host in _WILDCARDS:
            names += _own_addresses()
        elif host is not None:
            names.append(host)
    return tuple(dict.fromkeys(names))


def _own_addresses() -> list[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = (address for found in psutil.net_if_addrs().values() for address in found)
    # A link-local address changes with the interface and means nothing without it.
    return sorted(
        address.address
        for address in addresses
        if address.family in families and not ipaddress.ip_address(address.address.partition("%")[0]).is_link_local
    )


def _can_be_certified(name: str) -> bool:
    """A machine may call itself what no certificate can hold; nobody needs to reach it by that name."""
    try:
        general_name(name)
    except TrustError:
        return False
    return True


def has_joined(pki_dir: Path) -> bool:
    """Whether this directory belongs to a cluster already: it founded one, or a join was installed to its end."""
    return all((pki_dir / name).exists() for name in ("ca.crt", "node.crt"))


def ensure_trust(
    pki_dir: Path, *, cluster_name: str, host_id: str, host_names: Sequence[str], now: float, may_found: bool = True
) -> Trust:
    """Leaves whole, valid material in `pki_dir`: what is missing is made, what is due or misses a name is made anew.

    Without the authority's key nothing can be made here: then the node's certificate must be there and good, and what
    is due is left to `node/trust/certificates.py`. `host_names`: names and IP addresses that others reach this node by,
    besides localhost. `now`: Unix seconds. `may_found`: an empty directory gets an authority of its own.
    Raises JoinNeeded, and TrustError; then nothing that was there has been changed or replaced by something else.
    """
    trust = Trust(pki_dir, host_id, node_names(host_names))
    try:
        _make_directories(trust)
        if not trust.ca_cert.exists() and not (may_found or trust.node_cert.exists()):
            raise JoinNeeded(f"{pki_dir} holds no certificates: this node has not joined a cluster yet")
        certificate, authority = _ensure_authority(trust, cluster_name, now)
        for leaf in trust.leaves:
            _check_leaf(trust, certificate, leaf)
        if authority is not None:
            for leaf in due_leaves(trust, now):
                write_leaf(trust, leaf, sign_leaf(authority, leaf, now=now))
        else:
            _check_still_good(trust, now)
        _copy_authority(trust, certificate)
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or pki_dir}: {error.strerror}") from error
    return trust


# --- joining


def make_request(pki_dir: Path) -> bytes:
    """A certificate request (PEM) for this node's key, which is made if it is missing and kept: asked again after a
    crash, the same key asks."""
    trust = Trust(pki_dir, "", ())
    try:
        _make_directories(trust)
        return request_of(_ensure_key(trust.node_key))
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or pki_dir}: {error.strerror}") from error


def install(pki_dir: Path, *, host_id: str, ca_pem: bytes, cert_pem: bytes) -> None:
    """Puts what a join was answered with where it belongs; the node's certificate last, which makes it a member.

    Raises TrustError when the pieces do not belong together, or the directory belongs to another cluster; then
    nothing has been changed.
    """
    trust = Trust(pki_dir, host_id, ())
    try:
        authority = _parse_certificate(ca_pem, "the authority's certificate in the answer")
        certificate = _parse_certificate(cert_pem, "the node's certificate in the answer")
        if trust.ca_cert.exists() and public_key_of(_read_certificate(trust.ca_cert)) != public_key_of(authority):
            raise TrustError(
                f"{trust.ca_cert} is another cluster's: this data directory belongs to it. Give an empty --data-dir "
                "to join this one"
            )
        if trust.ca_key.exists() and public_key_of(_read_key(trust.ca_key)) != public_key_of(authority):
            raise TrustError(f"{trust.ca_key} is another cluster's: give an empty --data-dir to join this one")
        _check_answer(authority, certificate, Leaf(trust.node_cert, trust.node_key, ROLE_NODE, host_id, ()))
        _make_directories(trust)
        _write_certificate(trust.ca_cert, authority)
        _copy_authority(trust, authority)
        _write_certificate(trust.node_cert, certificate)
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or pki_dir}: {error.strerror}") from error


def install_authority_key(pki_dir: Path, ca_key_pem: bytes) -> None:
    """Keeps the authority's key, handed on by a voter. Raises TrustError when it is not the key of ca.crt."""
    trust = Trust(pki_dir, "", ())
    try:
        key = _parse_key(ca_key_pem, "the authority's key in the answer")
        if public_key_of(key) != public_key_of(_read_certificate(trust.ca_cert)):
            raise TrustError(f"the key that was handed over is not the key of {trust.ca_cert}: it was not taken")
        if not trust.ca_key.exists():
            write_atomic(trust.ca_key, key_pem(key), mode=0o600)
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or pki_dir}: {error.strerror}") from error


def load_authority(pki_dir: Path) -> Authority | None:
    """The authority, where its key is; None elsewhere. Raises TrustError for files that cannot be used."""
    trust = Trust(pki_dir, "", ())
    try:
        if not trust.ca_key.exists():
            return None
        return Authority(_read_certificate(trust.ca_cert), _read_key(trust.ca_key))
    except OSError as error:
        raise TrustError(f"cannot use {error.filename or pki_dir}: {error.strerror}") from error


# --- renewal, by whoever signs


def due_leaves(trust: Trust, now: float) -> list[Leaf]:
    """Certificates that are missing, past two thirds of their life, or without a name that they should carry.
    Raises TrustError for one that cannot be read."""
    return [leaf for leaf in trust.leaves if _is_due(leaf, now)]


def lives_of(trust: Trust) -> list[float]:
    """How long each certificate lasts from beginning to end, in seconds."""
    there = [_read_certificate(leaf.cert) for leaf in trust.leaves if leaf.cert.exists()]
    return [(one.not_valid_after_utc - one.not_valid_before_utc).total_seconds() for one in there]


def request_for(leaf: Leaf) -> bytes:
    """A certificate request (PEM) for the key of this certificate; the key is made if it is missing, and kept."""
    return request_of(_ensure_key(leaf.key))


def sign_leaf(authority: Authority, leaf: Leaf, *, now: float, life_s: float = LEAF_LIFE_S) -> bytes:
    """The certificate (PEM), signed here."""
    return sign_request(
        authority,
        request_for(leaf),
        role=leaf.role,
        common_name=leaf.common_name,
        host_names=leaf.names,
        life_s=life_s,
        now=now,
    )


def write_leaf(trust: Trust, leaf: Leaf, cert_pem: bytes) -> None:
    """Puts a certificate in its place, after a check that it is what was asked for. Raises TrustError, OSError; the
    old one is still there then. May be called while etcd and the API use the files."""
    certificate = _parse_certificate(cert_pem, f"the certificate for {leaf.cert}")
    _check_answer(_read_certificate(trust.ca_cert), certificate, leaf)
    _write_certificate(leaf.cert, certificate)


def _is_due(leaf: Leaf, now: float) -> bool:
    if not leaf.cert.exists():
        return True
    certificate = _read_certificate(leaf.cert)
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    fits = subject_of(certificate).name == leaf.common_name and covers(certificate, leaf.names)
    return is_renewal_due(start, end, now) or not fits


# --- checks


def _ensure_authority(trust: Trust, cluster_name: str, now: float) -> tuple[x509.Certificate, Authority | None]:
    """The authority's certificate, and the authority itself where its key is."""
    if trust.ca_cert.exists():
        certificate = _read_certificate(trust.ca_cert)
        key = _read_key(trust.ca_key) if trust.ca_key.exists() else None
        if key is not None and public_key_of(key) != public_key_of(certificate):
            raise TrustError(f"{trust.ca_key} is not the key of {trust.ca_cert}: restore the one that belongs to it")
        if now >= certificate.not_valid_after_utc.timestamp():
            raise TrustError(f"{trust.ca_cert} has expired: the cluster needs a new authority (or check the clock)")
        return certificate, Authority(certificate, key) if key is not None else None
    if trust.node_cert.exists():
        # A new authority would not have signed it, and the other nodes would not know it.
        raise TrustError(f"{trust.ca_cert} is missing beside {trust.node_cert}: restore it")
    authority = found_authority(cluster_name, _ensure_key(trust.ca_key), now)
    _write_certificate(trust.ca_cert, authority.certificate)
    return authority.certificate, authority


def _check_leaf(trust: Trust, authority: x509.Certificate, leaf: Leaf) -> None:
    """Raises TrustError when a certificate that lies there belongs to another authority or another key."""
    if not leaf.cert.exists():
        return
    certificate = _read_certificate(leaf.cert)
    if not is_issued_by(certificate, authority):
        raise TrustError(
            f"{leaf.cert} was not signed by {trust.ca_cert}: restore the pair that belongs together, "
            f"or move {leaf.cert} and {leaf.key} away to have them made anew"
        )
    if public_key_of(_read_key(leaf.key)) != public_key_of(certificate):
        raise TrustError(
            f"{leaf.key} is not the key of {leaf.cert}: restore it, or move both away to have them made anew"
        )


def _check_still_good(trust: Trust, now: float) -> None:
    """Of a node that cannot sign for itself. Raises JoinNeeded."""
    again = "start it with --peers and a join token (node token create, on any node of the cluster)"
    if not trust.node_cert.exists():
        raise JoinNeeded(f"{trust.node_cert} is missing, and {trust.ca_key} to make it is on other nodes: {again}")
    certificate = _read_certificate(trust.node_cert)
    if now >= certificate.not_valid_after_utc.timestamp():
        ended = certificate.not_valid_after_utc.date()
        raise JoinNeeded(f"{trust.node_cert} ended on {ended}, while this node was away: {again}, or check the clock")
    if (name := subject_of(certificate).name) != trust.host_id:
        raise JoinNeeded(
            f"{trust.node_cert} is for host {name}, and this is host {trust.host_id}: restore the host_id that belongs "
            f"to it, or move {trust.node_cert} away and {again}"
        )


def _check_answer(authority: x509.Certificate, certificate: x509.Certificate, leaf: Leaf) -> None:
    """Raises TrustError when a certificate that somebody signed for us is not the one we asked for."""
    if not is_issued_by(certificate, authority):
        raise TrustError(f"the certificate for {leaf.cert} was not signed by this cluster's authority: not taken")
    if public_key_of(_read_key(leaf.key)) != public_key_of(certificate):
        raise TrustError(f"the certificate for {leaf.cert} is for another key than {leaf.key}: not taken")
    subject = subject_of(certificate)
    if (subject.role, subject.name) != (leaf.role, leaf.common_name) or not covers(certificate, leaf.names):
        raise TrustError(f"the certificate for {leaf.cert} is not for {leaf.role} {leaf.common_name}: not taken")


# --- files


def _make_directories(trust: Trust) -> None:
    for directory in (trust.pki_dir, trust.client_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)


def _copy_authority(trust: Trust, authority: x509.Certificate) -> None:
    wanted = authority.public_bytes(serialization.Encoding.PEM)
    if not trust.client_ca_cert.exists() or trust.client_ca_cert.read_bytes() != wanted:
        write_atomic(trust.client_ca_cert, wanted, mode=0o644)


def _ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that lies there, or a new one, durable before anything is signed for it."""
    if path.exists():
        return _read_key(path)
    key = new_key()
    write_atomic(path, key_pem(key), mode=0o600)
    return key


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise TrustError(
            f"{path} is missing: restore it, or move its certificate away to have both made anew"
        ) from None
    key = _parse_key(content, str(path))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return key


def _parse_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise TrustError(f"{what} holds no private key in PEM form ({error}): restore it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{what} holds no elliptic curve key: restore it")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    return _parse_certificate(path.read_bytes(), str(path))


def _parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise TrustError(f"{what} holds no certificate in PEM form ({error}): restore it") from None


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    write_atomic(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
