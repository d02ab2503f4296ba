"""A node that joined: it has no authority of its own, and what it is given is looked at before it is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography import x509

from node.trust.authority import LEAF_LIFE_S, ROLE_CLIENT, ROLE_NODE, TrustError, sign_request, subject_of
from node.trust.material import (
    JoinNeeded,
    Trust,
    due_leaves,
    ensure_trust,
    has_joined,
    install,
    install_authority_key,
    load_authority,
    make_request,
    request_for,
    sign_leaf,
    write_leaf,
)

DAY_S = 86_400.0
NOW = 1_800_000_000.0


def voter(directory: Path) -> Trust:
    return ensure_trust(directory / "pki", cluster_name="lab", host_id="voter", host_names=(), now=NOW)


def signed(by: Trust, request_pem: bytes, role: str = ROLE_NODE, name: str = "newcomer", now: float = NOW) -> bytes:
    authority = load_authority(by.pki_dir)
    assert authority is not None
    return sign_request(
        authority, request_pem, role=role, common_name=name, host_names=("192.0.2.9",), life_s=LEAF_LIFE_S, now=now
    )


def come_back(pki_dir: Path, now: float = NOW, host_id: str = "newcomer", names: tuple[str, ...] = ()) -> Trust:
    return ensure_trust(pki_dir, cluster_name="lab", host_id=host_id, host_names=names, now=now, may_found=False)


def joined(directory: Path, by: Trust) -> Trust:
    pki_dir = directory / "joined"
    certificate = signed(by, make_request(pki_dir))
    install(pki_dir, host_id="newcomer", ca_pem=by.ca_cert.read_bytes(), cert_pem=certificate)
    return come_back(pki_dir)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_join_gives_a_certificate_and_no_authority(tmp_path: Path) -> None:
    by = voter(tmp_path)
    trust = joined(tmp_path, by)
    assert has_joined(trust.pki_dir)
    certificate = x509.load_pem_x509_certificate(trust.node_cert.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(by.ca_cert.read_bytes()))
    assert subject_of(certificate).role == ROLE_NODE
    assert load_authority(trust.pki_dir) is None
    assert not trust.ca_key.exists()
    # The unix socket needs no certificate: the administrator's is made when somebody signs.
    assert [leaf.cert.name for leaf in due_leaves(trust, NOW)] == ["client.crt"]
    assert trust.client_ca_cert.read_bytes() == trust.ca_cert.read_bytes()


def test_the_key_of_a_request_is_kept_so_that_a_lost_answer_costs_nothing(tmp_path: Path) -> None:
    by = voter(tmp_path)
    pki_dir = tmp_path / "joined"
    lost = signed(by, make_request(pki_dir))
    assert not has_joined(pki_dir)
    make_request(pki_dir)
    install(pki_dir, host_id="newcomer", ca_pem=by.ca_cert.read_bytes(), cert_pem=lost)
    assert has_joined(pki_dir)


def test_an_empty_directory_founds_nothing_where_it_may_not(tmp_path: Path) -> None:
    with pytest.raises(JoinNeeded, match="has not joined"):
        come_back(tmp_path / "pki")
    assert not has_joined(tmp_path / "pki")
    assert contents(tmp_path) == {}


def test_an_install_can_be_interrupted_after_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by = voter(tmp_path)
    real_replace = Path.replace

    class Crash(BaseException):
        """Like a kill: nothing handles it."""

    crashes = 0
    for crash_after in range(1, 5):
        pki_dir = tmp_path / str(crash_after)
        certificate = signed(by, make_request(pki_dir))
        count = 0

        def replace(self: Path, target: Path) -> Path:
            nonlocal count
            made = real_replace(self, target)
            count += 1
            if count == crash_after:  # noqa: B023  (called within this turn of the loop only)
                raise Crash
            return made

        monkeypatch.setattr(Path, "replace", replace)
        try:
            install(pki_dir, host_id="newcomer", ca_pem=by.ca_cert.read_bytes(), cert_pem=certificate)
        except Crash:
            crashes += 1
        monkeypatch.setattr(Path, "replace", real_replace)
        if not has_joined(pki_dir):
            with pytest.raises(JoinNeeded, match="join token"):
                come_back(pki_dir)
            again = signed(by, make_request(pki_dir))
            install(pki_dir, host_id="newcomer", ca_pem=by.ca_cert.read_bytes(), cert_pem=again)
        come_back(pki_dir)
    # The authority's certificate, its copy for the client, the node's.
    assert crashes == 3


def test_what_was_not_asked_for_is_not_taken(tmp_path: Path) -> None:
    by, other = voter(tmp_path), voter(tmp_path / "other")
    pki_dir = tmp_path / "joined"
    request = make_request(pki_dir)
    theirs = make_request(tmp_path / "third")
    before = contents(pki_dir)
    ca = by.ca_cert.read_bytes()
    for cert_pem, words in (
        (signed(other, request), "not signed by this cluster's authority"),
        (signed(by, theirs), "is for another key"),
        (signed(by, request, ROLE_CLIENT), "is not for node newcomer"),
        (signed(by, request, name="somebody"), "is not for node newcomer"),
        (b"rubbish", "no certificate in PEM form"),
    ):
        with pytest.raises(TrustError, match=words):
            install(pki_dir, host_id="newcomer", ca_pem=ca, cert_pem=cert_pem)
        assert contents(pki_dir) == before


def test_a_directory_of_one_cluster_does_not_join_another(tmp_path: Path) -> None:
    by, other = voter(tmp_path), voter(tmp_path / "other")
    trust = joined(tmp_path, by)
    for pki_dir in (trust.pki_dir, by.pki_dir):
        before = contents(pki_dir)
        certificate = signed(other, make_request(pki_dir))
        with pytest.raises(TrustError, match="another cluster"):
            install(pki_dir, host_id="newcomer", ca_pem=other.ca_cert.read_bytes(), cert_pem=certificate)
        assert contents(pki_dir) == before


def test_a_certificate_that_ended_while_the_node_was_away_asks_for_another_join(tmp_path: Path) -> None:
    by = voter(tmp_path)
    trust = joined(tmp_path, by)
    come_back(trust.pki_dir, NOW + 89 * DAY_S)  # due, but good
    with pytest.raises(JoinNeeded, match="ended on 2027-04-15"):
        come_back(trust.pki_dir, NOW + 91 * DAY_S)
    later = NOW + 91 * DAY_S
    again = signed(by, make_request(trust.pki_dir), now=later)
    install(trust.pki_dir, host_id="newcomer", ca_pem=by.ca_cert.read_bytes(), cert_pem=again)
    assert come_back(trust.pki_dir, later).node_cert.read_bytes() == again


def test_a_certificate_does_not_go_with_another_host(tmp_path: Path) -> None:
    trust = joined(tmp_path, voter(tmp_path))
    with pytest.raises(JoinNeeded, match="is for host newcomer, and this is host another"):
        come_back(trust.pki_dir, host_id="another")
    # Where the authority's key is, the node certifies itself.
    by = voter(tmp_path)
    ensure_trust(by.pki_dir, cluster_name="lab", host_id="another", host_names=(), now=NOW)
    assert subject_of(x509.load_pem_x509_certificate(by.node_cert.read_bytes())).name == "another"


def test_a_changed_address_makes_the_certificate_due_and_keeps_the_node_going(tmp_path: Path) -> None:
    by = voter(tmp_path)
    joined(tmp_path, by)
    trust = come_back(tmp_path / "joined", names=("192.0.2.10",))
    assert "node.crt" in [leaf.cert.name for leaf in due_leaves(trust, NOW)]
    key = trust.node_key.read_bytes()
    authority = load_authority(by.pki_dir)
    assert authority is not None
    for leaf in due_leaves(trust, NOW):
        write_leaf(trust, leaf, sign_leaf(authority, leaf, now=NOW))
    assert due_leaves(trust, NOW) == []
    assert trust.node_key.read_bytes() == key


def test_a_renewal_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    by, other = voter(tmp_path), voter(tmp_path / "other")
    trust = joined(tmp_path, by)
    node = trust.leaves[0]
    before = trust.node_cert.read_bytes()
    with pytest.raises(TrustError, match="not taken"):
        write_leaf(trust, node, signed(other, request_for(node)))
    with pytest.raises(TrustError, match="not taken"):
        write_leaf(trust, node, signed(by, request_for(node), ROLE_CLIENT))
    assert trust.node_cert.read_bytes() == before


def test_the_authoritys_key_is_taken_when_it_fits_and_makes_the_node_a_signer(tmp_path: Path) -> None:
    by, other = voter(tmp_path), voter(tmp_path / "other")
    trust = joined(tmp_path, by)
    for wrong, words in ((other.ca_key.read_bytes(), "is not the key of"), (b"rubbish", "no private key")):
        with pytest.raises(TrustError, match=words):
            install_authority_key(trust.pki_dir, wrong)
        assert not trust.ca_key.exists()
    install_authority_key(trust.pki_dir, by.ca_key.read_bytes())
    install_authority_key(trust.pki_dir, by.ca_key.read_bytes())
    assert trust.ca_key.stat().st_mode & 0o777 == 0o600
    # Now what is due is made at the next start, and the administrator's certificate with it.
    assert due_leaves(come_back(trust.pki_dir, NOW + 61 * DAY_S), NOW + 61 * DAY_S) == []


def test_a_lost_authority_key_is_no_reason_to_found_anew(tmp_path: Path) -> None:
    trust = voter(tmp_path)
    trust.ca_key.unlink()
    before = contents(trust.pki_dir)
    ensure_trust(trust.pki_dir, cluster_name="lab", host_id="voter", host_names=(), now=NOW + 61 * DAY_S)
    assert contents(trust.pki_dir) == before
    shutil.rmtree(trust.client_dir)
    trust.node_cert.unlink()
    with pytest.raises(JoinNeeded, match=r"node\.crt is missing"):
        ensure_trust(trust.pki_dir, cluster_name="lab", host_id="voter", host_names=(), now=NOW)
