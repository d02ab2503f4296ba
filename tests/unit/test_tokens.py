"""Join tokens in etcd: counted once per host, whatever is lost, and refused in words that say what to do."""

from __future__ import annotations

import asyncio

import pytest

from etcd import cluster_codec, keys
from etcd.errors import OutcomeUnknown
from etcd.port import Put, Range, Txn
from node.core.model import JoinToken
from node.trust.tokens import (
    KEEP_EXPIRED_S,
    TokenExpired,
    TokenRefused,
    TokenRevoked,
    Tokens,
    TokenUnknown,
    TokenUsedUp,
)
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault, applied_later
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time

NOW = 1_800_000_000.0
HOUR_S = 3600.0


def uid(number: int) -> str:
    return f"{number:08x}-1111-4111-8111-111111111111"


def token(number: int = 1, *, uses: int = 0, created_at: float = NOW, ttl_s: float = HOUR_S) -> JoinToken:
    return JoinToken(id=uid(number), created_at=created_at, expires_at=created_at + ttl_s, uses=uses)


async def stored(etcd: FakeEtcd, number: int = 1) -> JoinToken:
    key = keys.token_key(uid(number))
    found = await etcd.range(Range(key))
    return cluster_codec.decode_token(key, found.kvs[0].value)


@virtual_time
async def test_a_token_is_used_by_hosts_and_each_counts_once() -> None:
    async with FakeEtcd() as etcd:
        tokens = Tokens(etcd)
        await tokens.create(token(uses=2), NOW)
        for host in ("a", "b", "a", "b"):
            await tokens.use(uid(1), host, NOW)
        assert (await stored(etcd)).used_by == ("a", "b")
        with pytest.raises(TokenUsedUp, match=r"good for 2 hosts.*node token create"):
            await tokens.use(uid(1), "c", NOW)
        assert (await stored(etcd)).used_by == ("a", "b")


@virtual_time
async def test_refusals_say_which() -> None:
    async with FakeEtcd() as etcd:
        tokens = Tokens(etcd)
        await tokens.create(token(1), NOW)
        await tokens.create(token(2), NOW)
        await tokens.revoke(uid(2))
        situations: tuple[tuple[str, float, type[TokenRefused], str], ...] = (
            (uid(1), NOW + HOUR_S, TokenExpired, "has expired"),
            (uid(2), NOW, TokenRevoked, "was revoked"),
            (uid(3), NOW, TokenUnknown, "is not known"),
            ("nonsense", NOW, TokenUnknown, "no id"),
            ("../../x", NOW, TokenUnknown, "no id"),
        )
        for token_id, now, kind, words in situations:
            with pytest.raises(kind, match=f"{words}.*node token create"):
                await tokens.use(token_id, "host", now)
        assert await tokens.use(uid(1), "host", NOW + HOUR_S - 1)


@virtual_time
async def test_a_token_is_revoked_by_a_unique_prefix_and_again() -> None:
    async with FakeEtcd() as etcd:
        tokens = Tokens(etcd)
        await tokens.create(token(0x1A), NOW)
        await tokens.create(token(0x1B), NOW + 1)
        for prefix in (uid(0x1A), "0000001a", "0000001A-"):
            assert (await tokens.revoke(prefix)).revoked
        for prefix, words in (("0000001", "ambiguous"), ("ff", "no join token 'ff'"), ("", "no join token")):
            with pytest.raises(TokenUnknown, match=words):
                await tokens.revoke(prefix)
        assert [(t.id, t.revoked) for t in await tokens.list_all()] == [(uid(0x1A), True), (uid(0x1B), False)]


@virtual_time
async def test_old_tokens_go_when_one_is_made() -> None:
    async with FakeEtcd() as etcd:
        tokens = Tokens(etcd)
        await tokens.create(token(1), NOW)
        later = NOW + HOUR_S + KEEP_EXPIRED_S
        await tokens.create(token(2, created_at=later), later)
        assert len(await tokens.list_all()) == 2
        with pytest.raises(TokenExpired):
            await tokens.use(uid(1), "host", later)
        await tokens.create(token(3, created_at=later + 1), later + 1)
        assert [t.id for t in await tokens.list_all()] == [uid(2), uid(3)]


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER, applied_later(0.5), applied_later(30.0)])
def test_whatever_is_lost_a_use_counts_once(fault: Fault) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeEtcd() as etcd:
            tokens = Tokens(etcd)
            faults = [fault]

            def once(method: str, _argument: object) -> Fault | None:
                return faults.pop() if method == "txn" and faults else None

            etcd.faults = once
            await tokens.create(token(uses=2), NOW)
            assert not faults
            faults.append(fault)
            await tokens.use(uid(1), "a", NOW)
            assert not faults
            await tokens.use(uid(1), "b", NOW)
            # What was to be applied later has been by now, or was kept out by its guard.
            await asyncio.sleep(60)
            assert (await stored(etcd)).used_by == ("a", "b")
            faults.append(fault)
            await tokens.revoke(uid(1))
            await asyncio.sleep(60)
            assert (await stored(etcd)).revoked
            assert len(await tokens.list_all()) == 1

    run()


@virtual_time
async def test_hosts_that_race_for_the_last_use_are_told_apart() -> None:
    store = FakeStore()
    async with FakeEtcd(store) as first, FakeEtcd(store) as second:
        await Tokens(first).create(token(uses=5), NOW)
        uses = [Tokens(etcd).use(uid(1), f"host-{i}", NOW) for i, etcd in enumerate([first, second] * 5)]
        results = await asyncio.gather(*uses, return_exceptions=True)
        refused = [result for result in results if isinstance(result, BaseException)]
        assert len(refused) == 5
        assert all(isinstance(error, TokenUsedUp) for error in refused)
        assert len((await stored(first)).used_by) == 5


@virtual_time
async def test_an_etcd_that_never_answers_is_not_asked_for_ever() -> None:
    async with FakeEtcd() as etcd:
        tokens = Tokens(etcd)
        await tokens.create(token(), NOW)
        etcd.faults = lambda method, _argument: LOST_BEFORE if method == "txn" else None
        with pytest.raises(OutcomeUnknown):
            await tokens.use(uid(1), "host", NOW)
        with pytest.raises(OutcomeUnknown):
            await tokens.create(token(2), NOW)


@virtual_time
async def test_a_strangers_key_is_left_out() -> None:
    async with FakeEtcd() as etcd:
        tokens = Tokens(etcd)
        strange = (Put(b"/cluster/tokens/x", b"?"), Put(keys.token_key(uid(9)), cluster_codec.encode_token(token(8))))
        await etcd.txn(Txn(success=strange))
        await tokens.create(token(1), NOW)
        assert [t.id for t in await tokens.list_all()] == [uid(1)]
        assert (await tokens.revoke("00000001")).revoked
