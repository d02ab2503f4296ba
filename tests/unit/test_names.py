"""Claims on names: one of two gets it, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from etcd import keys
from etcd.cluster_codec import decode_name_claim, encode_name_claim
from etcd.errors import OutcomeUnknown, RecordCorrupt
from etcd.port import Put, Txn
from node.core.newcomer import NAME_CLAIM_S, NameClaim, Newcomer
from node.joining.names import claim_name
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault, applied_later
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time

NOW = 1_800_000_000.0
HOSTS = [f"00000000-0000-4000-8000-{n:012d}" for n in range(20)]


def newcomer(n: int, name: str = "web", *, is_name_given: bool = False) -> Newcomer:
    return Newcomer(HOSTS[n], name, is_name_given=is_name_given, address=f"10.0.0.{n}:7400")


@virtual_time
async def test_the_first_gets_the_name_the_next_a_number_and_who_insists_nothing() -> None:
    etcd = FakeEtcd()
    assert await claim_name(etcd, newcomer(1), taken=(), now=NOW) == "web"
    assert await claim_name(etcd, newcomer(2), taken=(), now=NOW) == "web-2"
    assert await claim_name(etcd, newcomer(3, is_name_given=True), taken=(), now=NOW) is None
    assert await claim_name(etcd, newcomer(3), taken=("web-3",), now=NOW) == "web-4"


@virtual_time
async def test_who_asks_again_is_called_the_same() -> None:
    etcd = FakeEtcd()
    await claim_name(etcd, newcomer(1), taken=(), now=NOW)
    assert await claim_name(etcd, newcomer(2), taken=(), now=NOW) == "web-2"
    assert await claim_name(etcd, newcomer(2), taken=(), now=NOW + 1) == "web-2"


@virtual_time
async def test_a_claim_that_nobody_made_use_of_runs_out() -> None:
    etcd = FakeEtcd()
    await claim_name(etcd, newcomer(1, is_name_given=True), taken=(), now=NOW)
    two = newcomer(2, is_name_given=True)
    assert await claim_name(etcd, two, taken=(), now=NOW + NAME_CLAIM_S - 1) is None
    assert await claim_name(etcd, two, taken=(), now=NOW + NAME_CLAIM_S) == "web"
    assert await claim_name(etcd, newcomer(1, is_name_given=True), taken=(), now=NOW + NAME_CLAIM_S + 1) is None


@virtual_time
async def test_the_name_of_a_removed_host_is_free() -> None:
    etcd = FakeEtcd()
    await claim_name(etcd, newcomer(1, is_name_given=True), taken=(), now=NOW)
    two = newcomer(2, is_name_given=True)
    assert await claim_name(etcd, two, taken=(), now=NOW + 1, removed=[HOSTS[3]]) is None
    assert await claim_name(etcd, two, taken=(), now=NOW + 1, removed=[HOSTS[1]]) == "web"


@virtual_time
async def test_of_many_at_once_each_has_a_name_of_its_own() -> None:
    store = FakeStore()
    clients = [FakeEtcd(store) for _ in HOSTS]
    names = await asyncio.gather(*(claim_name(etcd, newcomer(n), taken=(), now=NOW) for n, etcd in enumerate(clients)))
    assert len(set(names)) == len(HOSTS)
    assert "web" in names


@virtual_time
async def test_of_many_who_insist_one_has_it() -> None:
    store = FakeStore()
    clients = [FakeEtcd(store) for _ in HOSTS]
    names = await asyncio.gather(
        *(claim_name(etcd, newcomer(n, is_name_given=True), taken=(), now=NOW) for n, etcd in enumerate(clients))
    )
    assert sorted(name or "" for name in names) == [""] * (len(HOSTS) - 1) + ["web"]


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER, applied_later(0.5)])
@virtual_time
async def test_a_lost_answer_changes_nothing(fault: Fault) -> None:
    etcd = FakeEtcd()
    lost = [fault]
    etcd.faults = lambda method, _argument: lost.pop() if method == "txn" and lost else None
    assert await claim_name(etcd, newcomer(1, is_name_given=True), taken=(), now=NOW) == "web"
    assert lost == []
    assert await claim_name(etcd, newcomer(2, is_name_given=True), taken=(), now=NOW) is None


@virtual_time
async def test_an_etcd_that_never_answers_is_told() -> None:
    etcd = FakeEtcd()
    etcd.faults = lambda method, _argument: LOST_BEFORE if method == "txn" else None
    with pytest.raises(OutcomeUnknown):
        await claim_name(etcd, newcomer(1), taken=(), now=NOW)


@virtual_time
async def test_a_claim_that_nobody_can_read_holds_nothing() -> None:
    etcd = FakeEtcd()
    await etcd.txn(Txn(success=(Put(keys.name_key("web"), b"\xff\xff"),)))
    assert await claim_name(etcd, newcomer(1), taken=(), now=NOW) == "web"


def test_a_name_of_any_kind_has_one_key() -> None:
    names = ["a/b", "a%2Fb", "a b", "ü", ".", "/", "a", "x" * 64, "台" * 64]
    found = {keys.name_key(name) for name in names}
    assert len(found) == len(names)
    assert all(key.startswith(b"/cluster/names/") and key.count(b"/") == 3 for key in found)


def test_the_record_of_a_claim() -> None:
    claim = NameClaim(HOSTS[1], NOW + 0.25)
    key = keys.name_key("web")
    assert decode_name_claim(key, encode_name_claim(claim)) == claim
    assert decode_name_claim(key, encode_name_claim(replace(claim, at=0.0))).at == 0.0
    with pytest.raises(RecordCorrupt):
        decode_name_claim(key, b"\xff")
