"""Certificates: what is made, what is kept, what is renewed and how, what is refused."""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node.trust.authority import CA_LIFE_S, LEAF_LIFE_S, TrustError, is_renewal_due
from node.trust.material import Trust, due_leaves, ensure_trust, has_joined, names_of_this_host
from pilfer.address import NODE_DNS_NAME

DAY_S = 86_400.0
#: An ordinary day; certificates count in whole seconds.
NOW = 1_800_000_000.0


def make(directory: Path, now: float = NOW, names: tuple[str, ...] = ("host.example", "192.0.2.7", "::2")) -> Trust:
    return ensure_trust(directory / "pki", cluster_name="lab", host_id="host-1", host_names=names, now=now)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(trust: Trust) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in trust.pki_dir.rglob("*") if path.is_file()}


def test_what_is_made(tmp_path: Path) -> None:
    trust = make(tmp_path)
    assert has_joined(trust.pki_dir)
    authority, node, client = map(certificate, (trust.ca_cert, trust.node_cert, trust.client_cert))
    for leaf in (node, client):
        leaf.verify_directly_issued_by(authority)
        assert leaf.not_valid_after_utc.timestamp() == NOW + LEAF_LIFE_S
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.not_valid_after_utc.timestamp() == NOW + CA_LIFE_S
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {NODE_DNS_NAME, "localhost", "host.example"}
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "192.0.2.7", "::2"}
    usages = {
        cert: set(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for cert in (node, client)
    }
    assert usages[node] == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    # A client's certificate is good for nothing but calling: it can neither serve nor pass for a node.
    assert usages[client] == {ExtendedKeyUsageOID.CLIENT_AUTH}
    with pytest.raises(x509.ExtensionNotFound):
        client.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    subject = {attribute.oid: attribute.value for attribute in node.subject}
    assert subject[NameOID.ORGANIZATION_NAME] == "pilfer:lab"
    assert subject[NameOID.ORGANIZATIONAL_UNIT_NAME] == "node"
    assert subject[NameOID.COMMON_NAME] == "host-1"
    assert trust.client_ca_cert.read_bytes() == trust.ca_cert.read_bytes()


def test_keys_are_private_and_made_private_again(tmp_path: Path) -> None:
    trust = make(tmp_path)
    keys = (trust.ca_key, trust.node_key, trust.client_key)
    trust.node_key.chmod(0o644)
    make(tmp_path)
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600] * 3
    assert stat.S_IMODE(trust.pki_dir.stat().st_mode) == stat.S_IMODE(trust.client_dir.stat().st_mode) == 0o700


def test_what_is_there_is_used_again(tmp_path: Path) -> None:
    before = contents(make(tmp_path))
    assert contents(make(tmp_path, NOW + 59 * DAY_S)) == before
    # Names that are covered are not asked for again.
    assert contents(make(tmp_path, names=("host.example",))) == before


def test_a_new_name_makes_a_new_certificate_for_the_same_key(tmp_path: Path) -> None:
    trust = make(tmp_path)
    before = contents(trust)
    make(tmp_path, names=("other.example",))
    changed = {Path(path).name for path, content in contents(trust).items() if content != before[path]}
    assert changed == {"node.crt"}


@pytest.mark.parametrize(
    ("age_days", "is_due"),
    [(-1, True), (0, False), (59.9, False), (60.1, True), (89, True), (91, True), (400, True)],
)
def test_when_a_renewal_is_due(age_days: float, is_due: bool) -> None:
    assert is_renewal_due(NOW, NOW + 90 * DAY_S, NOW + age_days * DAY_S) is is_due


def test_a_renewal_keeps_the_keys_so_that_every_pair_read_meanwhile_fits(tmp_path: Path) -> None:
    trust = make(tmp_path)
    before = contents(trust)
    assert due_leaves(trust, NOW + 59 * DAY_S) == []
    make(tmp_path, NOW + 61 * DAY_S)
    changed = {Path(path).name for path, content in contents(trust).items() if content != before[path]}
    assert changed == {"node.crt", "client.crt"}
    assert certificate(trust.node_cert).not_valid_after_utc.timestamp() == NOW + (61 + 90) * DAY_S
    # Whatever moment a reader chose, old or new certificate, the key is its key.
    for cert in (before[str(trust.node_cert)], trust.node_cert.read_bytes()):
        (tmp_path / "either.crt").write_bytes(cert)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "either.crt", trust.node_key)
    assert due_leaves(trust, NOW + 61 * DAY_S) == []


def test_nothing_outlives_its_authority(tmp_path: Path) -> None:
    make(tmp_path)
    late = NOW + CA_LIFE_S - 10 * DAY_S
    trust = make(tmp_path, late)
    assert certificate(trust.node_cert).not_valid_after_utc.timestamp() == NOW + CA_LIFE_S
    with pytest.raises(TrustError, match=r"ca\.crt has expired"):
        make(tmp_path, NOW + CA_LIFE_S)


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "node.crt", "node.key", "client/client.crt", "client/client.key"])
@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_broken_file_is_named_and_nothing_is_made_over_it(tmp_path: Path, name: str, content: bytes) -> None:
    trust = make(tmp_path)
    (trust.pki_dir / name).write_bytes(content)
    before = contents(trust)
    with pytest.raises(TrustError, match=name.rpartition("/")[2]):
        make(tmp_path)
    assert contents(trust) == before


@pytest.mark.parametrize("name", ["ca.key", "node.key", "client/client.key", "node.crt", "ca.crt"])
def test_a_file_of_another_cluster_is_refused(tmp_path: Path, name: str) -> None:
    trust, other = make(tmp_path / "one"), make(tmp_path / "two")
    shutil.copy(other.pki_dir / name, trust.pki_dir / name)
    before = contents(trust)
    with pytest.raises(TrustError, match=r"is not the key of|was not signed by"):
        make(tmp_path / "one")
    assert contents(trust) == before


def test_a_lost_authority_is_not_replaced_in_silence(tmp_path: Path) -> None:
    trust = make(tmp_path)
    trust.ca_cert.unlink()
    with pytest.raises(TrustError, match="restore it"):
        make(tmp_path)
    assert not trust.ca_cert.exists()


def test_making_can_be_interrupted_after_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run again after a crash behind each rename, it completes, and no certificate is without its key."""
    real_replace = Path.replace
    steps = 0

    class Crash(BaseException):
        """Like a kill: nothing handles it."""

    for crash_after in range(1, 10):
        count = 0

        def replace(self: Path, target: Path) -> Path:
            nonlocal count
            made = real_replace(self, target)
            count += 1
            if count == crash_after:  # noqa: B023  (called within this turn of the loop only)
                raise Crash
            return made

        directory = tmp_path / str(crash_after)
        monkeypatch.setattr(Path, "replace", replace)
        try:
            make(directory)
        except Crash:
            steps += 1
        monkeypatch.setattr(Path, "replace", real_replace)
        trust = make(directory)
        certificate(trust.node_cert).verify_directly_issued_by(certificate(trust.ca_cert))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(trust.node_cert, trust.node_key)
    # Three keys, three certificates and the copy for the client.
    assert steps == 7


def test_a_name_that_no_certificate_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="neither an address nor a host name"):
        make(tmp_path, names=("a..b",))


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(TrustError, match="/proc/pki"):
        ensure_trust(Path("/proc/pki"), cluster_name="lab", host_id="h", host_names=(), now=NOW)


def test_names_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "lab-1")
    assert names_of_this_host(None) == ("lab-1",)
    assert names_of_this_host("192.0.2.7")[-1] == "192.0.2.7"
    assert "127.0.0.1" in names_of_this_host("0.0.0.0")
    assert names_of_this_host("192.0.2.7", None, "front.example")[-2:] == ("192.0.2.7", "front.example")
    # A strange name of the machine's own must not keep a node from starting.
    monkeypatch.setattr(socket, "gethostname", lambda: "x" * 64)
    assert names_of_this_host(None) == ()


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """Common name of the client as the server sees it. Raises ssl.SSLError as either side does."""
    left, right = socket.socketpair()
    seen: list[str] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as connection:
                der = connection.getpeercert(binary_form=True)
                assert der is not None
                names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
                seen.append(str(names[0].value))
                connection.sendall(b"ok")
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=name) as connection:
            # TLS 1.3: the server's refusal arrives with the first read.
            if connection.recv(2) != b"ok":
                raise ssl.SSLError("refused")
    finally:
        right.close()
        thread.join(10)
        left.close()
    return seen[0]


def test_openssl_accepts_the_pairs_for_what_they_are_and_nothing_else(tmp_path: Path) -> None:
    trust, stranger = make(tmp_path / "one", time.time()), make(tmp_path / "two", time.time())

    def server(cert: Path, key: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        context.load_verify_locations(trust.ca_cert)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(cert: Path | None, key: Path | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(trust.client_ca_cert)
        if cert is not None:
            context.load_cert_chain(cert, key)
        return context

    node, admin = server(trust.node_cert, trust.node_key), client(trust.client_cert, trust.client_key)
    for name in (NODE_DNS_NAME, "localhost", "127.0.0.1", "host.example", "192.0.2.7"):
        assert handshake(node, admin, name) == "admin@host-1"
    assert handshake(node, client(trust.node_cert, trust.node_key), "localhost") == "host-1"
    with pytest.raises(OSError):
        handshake(node, client(None, None), "localhost")
    with pytest.raises(OSError):
        handshake(node, client(stranger.client_cert, stranger.client_key), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(node, admin, "elsewhere.example")
    # The administrator's certificate cannot serve as a node.
    with pytest.raises(ssl.SSLError):
        handshake(server(trust.client_cert, trust.client_key), admin, "localhost")
