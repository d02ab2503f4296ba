"""Renewal as time goes by: in time for any life, patient with failures, without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from node.trust.authority import ROLE_NODE, sign_request
from node.trust.certificates import keep_certificates, renew
from node.trust.material import Trust, due_leaves, ensure_trust, install, load_authority, make_request
from node.trust.signer import NobodySigns, Signer
from tests.support.virtual_time import virtual_time

NOW = 1_800_000_000.0
DAY_S = 86_400.0
NO_PEERS: Any = None


def now() -> float:
    """Unix time that goes by with the loop's."""
    return NOW + asyncio.get_running_loop().time()


def founder(directory: Path, names: Sequence[str] = (), at: float = NOW) -> Trust:
    return ensure_trust(directory / "pki", cluster_name="lab", host_id="host", host_names=names, now=at)


def ends_at(path: Path) -> float:
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


class Remote(Signer):
    """A signer whose voters answer only while `is_reachable`."""

    def __init__(self, founder: Trust) -> None:
        super().__init__(founder.pki_dir, NO_PEERS, list, clock=now)
        self.is_reachable = True
        self.asked = 0

    async def sign(self, request_pem: bytes, **words: Any) -> bytes:
        self.asked += 1
        if not self.is_reachable:
            raise NobodySigns("no voter could be asked")
        return await super().sign(request_pem, **words)


def joined(directory: Path, by: Trust, names: Sequence[str] = ()) -> Trust:
    authority = load_authority(by.pki_dir)
    assert authority is not None
    pki_dir = directory / "joined"
    if not (pki_dir / "node.crt").exists():
        certificate = sign_request(authority, make_request(pki_dir), role=ROLE_NODE, common_name="newcomer", now=NOW)
        install(pki_dir, host_id="newcomer", ca_pem=by.ca_cert.read_bytes(), cert_pem=certificate)
    return ensure_trust(pki_dir, cluster_name="lab", host_id="newcomer", host_names=names, now=NOW)


#: Short ones, and one that is looked at every hour. (A loop of virtual time counts no years: its clock is a float.)
@pytest.mark.parametrize("life_s", [60.0, 3600.0, 4 * DAY_S])
def test_no_certificate_ever_runs_out(tmp_path: Path, life_s: float) -> None:
    trust = founder(tmp_path)

    @virtual_time
    async def run() -> None:
        signer = Signer(trust.pki_dir, NO_PEERS, list, clock=now)
        # The founding ones last 90 days: due, they make way for those of this life.
        await renew(trust, signer, now=NOW + 80 * DAY_S, life_s=life_s)
        keeping = asyncio.create_task(keep_certificates(trust, signer, life_s=life_s, clock=now))
        ends: set[float] = set()
        for _ in range(200):
            await asyncio.sleep(life_s / 20)
            for cert in (trust.node_cert, trust.client_cert):
                # A quarter of a life is left at least, for a node that is switched off, and for failures.
                assert ends_at(cert) - now() > life_s / 4
                ends.add(ends_at(cert))
        keeping.cancel()
        # Ten lives in all: made anew at two thirds of each, and not much more often.
        assert 14 <= len(ends) <= 34

    run()


def test_what_a_joined_node_lacks_is_made_at_once_and_a_changed_address_too(tmp_path: Path) -> None:
    by = founder(tmp_path)
    joined(tmp_path, by)
    trust = joined(tmp_path, by, names=("192.0.2.77",))

    @virtual_time
    async def run() -> None:
        remote = Remote(by)
        assert sorted(leaf.cert.name for leaf in due_leaves(trust, NOW)) == ["client.crt", "node.crt"]
        keeping = asyncio.create_task(keep_certificates(trust, remote, clock=now))
        await asyncio.sleep(1)
        assert due_leaves(trust, now()) == []
        assert remote.asked == 2
        await asyncio.sleep(10 * DAY_S)
        assert remote.asked == 2
        keeping.cancel()

    run()


def test_a_failure_is_told_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by = founder(tmp_path)
    trust = joined(tmp_path, by)

    @virtual_time
    async def run() -> None:
        remote = Remote(by)
        remote.is_reachable = False
        before = trust.node_cert.read_bytes()
        keeping = asyncio.create_task(keep_certificates(trust, remote, clock=now))
        await asyncio.sleep(3600)
        # Not a line a second for a month.
        assert 10 < remote.asked <= 61
        assert "no voter could be asked" in caplog.text
        remote.is_reachable = True
        await asyncio.sleep(120)
        assert due_leaves(trust, now()) == []
        assert trust.node_cert.read_bytes() == before
        # A broken file is told too, and does not end the duty.
        trust.node_cert.write_bytes(b"rubbish")
        await asyncio.sleep(7200)
        assert "node.crt holds no certificate" in caplog.text
        trust.node_cert.write_bytes(before)
        assert not keeping.done()
        keeping.cancel()

    with caplog.at_level(logging.WARNING):
        run()


def test_a_clock_that_was_put_back_makes_a_certificate_that_is_good_now(tmp_path: Path) -> None:
    trust = founder(tmp_path, at=NOW + 400 * DAY_S)
    assert len(due_leaves(trust, NOW + 399 * DAY_S)) == 2
