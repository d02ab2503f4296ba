"""One behaviour, two etcds: every test runs on the fake and on a real one. What the code may rely on is here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from etcd.errors import Compacted, InvalidRequest, LeaseNotFound, RequestTooLarge, StoreError
from etcd.port import (
    Compare,
    Delete,
    DeleteResult,
    Etcd,
    Event,
    KeyRange,
    Op,
    Put,
    PutResult,
    Range,
    RangeResult,
    Relation,
    Target,
    Txn,
    TxnResult,
    WatchBatch,
)
from tests.support.etcd_process import EtcdProcess, wipe
from tests.support.fake_etcd import FakeEtcd
from tests.support.wait import wait_until

ALL = KeyRange(b"/", b"0")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.etcd)])
def process(request: pytest.FixtureRequest) -> EtcdProcess | None:
    """The real etcd, or None for the fake. Not async: etcd dies with the thread that started it."""
    if request.param == "fake":
        return None
    real: EtcdProcess = request.getfixturevalue("session_etcd")
    return real


@pytest_asyncio.fixture
async def etcd(process: EtcdProcess | None) -> AsyncIterator[Etcd]:
    """An empty etcd."""
    client = FakeEtcd() if process is None else process.client()
    async with client:
        if process is not None:
            await process.wait_ready()
            await wipe(client)
        yield client


async def do(etcd: Etcd, *ops: Op) -> TxnResult:
    return await etcd.txn(Txn((), ops))


async def keys(etcd: Etcd) -> list[bytes]:
    return [kv.key for kv in (await etcd.range(Range(b"/", b"0", keys_only=True))).kvs]


async def collect(watch: AsyncIterator[WatchBatch], count: int) -> list[Event]:
    """The next `count` events."""
    events: list[Event] = []
    async with asyncio.timeout(20):
        while len(events) < count:
            events += (await anext(watch)).events
    return events


# Reading and writing


async def test_put_then_range_gives_all_fields(etcd: Etcd) -> None:
    first = await do(etcd, Put(b"/a", b"1"))
    second = await do(etcd, Put(b"/a", b"2"))
    assert second.revision == first.revision + 1
    (kv,) = (await etcd.range(Range(b"/a"))).kvs
    assert (kv.key, kv.value, kv.version, kv.lease) == (b"/a", b"2", 2, 0)
    assert (kv.create_revision, kv.mod_revision) == (first.revision, second.revision)


async def test_deleted_and_put_again_starts_anew(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a", b"1"))
    deleted = await do(etcd, Delete(b"/a"))
    assert deleted.results == (DeleteResult(1, deleted.revision),)
    again = await do(etcd, Put(b"/a", b"2"))
    (kv,) = (await etcd.range(Range(b"/a"))).kvs
    assert (kv.create_revision, kv.version) == (again.revision, 1)


async def test_range_limits_orders_and_counts(etcd: Etcd) -> None:
    await do(etcd, *(Put(f"/k{i}".encode(), b"v") for i in range(5)))
    got = await etcd.range(Range(b"/k", b"/l", limit=2))
    assert ([kv.key for kv in got.kvs], got.count, got.more) == ([b"/k0", b"/k1"], 5, True)
    got = await etcd.range(Range(b"/k", b"/l", limit=2, descending=True))
    assert [kv.key for kv in got.kvs] == [b"/k4", b"/k3"]
    got = await etcd.range(Range(b"/k", b"/l", count_only=True))
    assert (got.kvs, got.count) == ((), 5)
    got = await etcd.range(Range(b"/k1", b"/k3", keys_only=True))
    assert [(kv.key, kv.value) for kv in got.kvs] == [(b"/k1", b""), (b"/k2", b"")]
    assert not got.more


async def test_range_end_of_nul_is_everything_from_the_key_on(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a"), Put(b"/b"), Put(b"/c"))
    assert [kv.key for kv in (await etcd.range(Range(b"/b", b"\0"))).kvs] == [b"/b", b"/c"]
    await do(etcd, Delete(b"/b", b"\0"))
    assert await keys(etcd) == [b"/a"]


async def test_range_at_an_older_revision(etcd: Etcd) -> None:
    first = await do(etcd, Put(b"/a", b"old"))
    await do(etcd, Put(b"/a", b"new"))
    await do(etcd, Delete(b"/a"))
    got = await etcd.range(Range(b"/a", revision=first.revision))
    assert [kv.value for kv in got.kvs] == [b"old"]
    with pytest.raises(InvalidRequest):
        await etcd.range(Range(b"/a", revision=first.revision + 1000))


async def test_empty_key_is_refused(etcd: Etcd) -> None:
    with pytest.raises(InvalidRequest):
        await do(etcd, Put(b""))
    with pytest.raises(InvalidRequest):
        await etcd.range(Range(b""))


async def test_a_transaction_that_changes_nothing_makes_no_revision(etcd: Etcd) -> None:
    before = await do(etcd, Put(b"/a"))
    after = await do(etcd, Delete(b"/nothing"), Range(b"/a"))
    assert after.revision == before.revision
    assert after.results[0] == DeleteResult(0, before.revision)


# Guards


ABSENT = [(Target.VERSION, 0), (Target.CREATE, 0), (Target.MOD, 0), (Target.LEASE, 0)]


@pytest.mark.parametrize(("target", "operand"), ABSENT)
async def test_an_absent_key_has_zeros(etcd: Etcd, target: Target, operand: int) -> None:
    assert (await etcd.txn(Txn((Compare(b"/none", target, Relation.EQUAL, operand),)))).succeeded
    assert not (await etcd.txn(Txn((Compare(b"/none", target, Relation.GREATER, operand),)))).succeeded


async def test_the_value_of_an_absent_key_compares_with_nothing(etcd: Etcd) -> None:
    for relation in Relation:
        assert not (await etcd.txn(Txn((Compare(b"/none", Target.VALUE, relation, b""),)))).succeeded


@pytest.mark.parametrize(
    ("relation", "offset", "holds"),
    [
        (Relation.EQUAL, 0, True),
        (Relation.EQUAL, 1, False),
        (Relation.NOT_EQUAL, 0, False),
        (Relation.NOT_EQUAL, 1, True),
        (Relation.GREATER, -1, True),
        (Relation.GREATER, 0, False),
        (Relation.LESS, 1, True),
        (Relation.LESS, 0, False),
    ],
)
async def test_comparing_numbers(etcd: Etcd, relation: Relation, offset: int, holds: bool) -> None:
    lease = await etcd.lease_grant(60)
    created = await do(etcd, Put(b"/a", b"1", lease.id))
    changed = await do(etcd, Put(b"/a", b"2", lease.id))
    actual = {
        Target.CREATE: created.revision,
        Target.MOD: changed.revision,
        Target.VERSION: 2,
        Target.LEASE: lease.id,
    }
    for target, number in actual.items():
        got = await etcd.txn(Txn((Compare(b"/a", target, relation, number + offset),)))
        assert got.succeeded == holds, target


async def test_comparing_values(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a", b"m"))
    holds = {(Relation.EQUAL, b"m"), (Relation.NOT_EQUAL, b"n"), (Relation.GREATER, b"l"), (Relation.LESS, b"n")}
    for relation in Relation:
        for operand in (b"l", b"m", b"n"):
            expected = (relation, operand) in holds or (relation, operand) == (Relation.NOT_EQUAL, b"l")
            got = await etcd.txn(Txn((Compare(b"/a", Target.VALUE, relation, operand),)))
            assert got.succeeded == expected, (relation, operand)


async def test_all_guards_must_hold_and_failure_branch_runs(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a"))
    absent, there = (Compare(key, Target.CREATE, Relation.EQUAL, 0) for key in (b"/b", b"/a"))
    got = await etcd.txn(Txn((absent, there), (Put(b"/yes"),), (Put(b"/no"), Range(b"/a"))))
    assert not got.succeeded
    assert isinstance(got.results[0], PutResult)
    assert isinstance(got.results[1], RangeResult)
    assert [kv.key for kv in got.results[1].kvs] == [b"/a"]
    assert await keys(etcd) == [b"/a", b"/no"]


# Nested transactions


async def test_nested_each_take_their_own_branch_at_one_revision(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a"))
    absent = {key: Compare(key, Target.CREATE, Relation.EQUAL, 0) for key in (b"/a", b"/b")}
    got = await do(
        etcd,
        Txn((absent[b"/a"],), (Put(b"/a", b"won"),), (Range(b"/a"),)),
        Txn((absent[b"/b"],), (Put(b"/b", b"won"),), (Range(b"/b"),)),
    )
    lost, won = got.results
    assert isinstance(lost, TxnResult)
    assert isinstance(won, TxnResult)
    assert (lost.succeeded, won.succeeded) == (False, True)
    assert isinstance(lost.results[0], RangeResult)
    assert [kv.value for kv in lost.results[0].kvs] == [b""]
    (kv,) = (await etcd.range(Range(b"/b"))).kvs
    assert kv.mod_revision == got.revision == won.revision == lost.revision


async def test_all_guards_see_the_state_before_the_whole_transaction(etcd: Etcd) -> None:
    there = Compare(b"/a", Target.CREATE, Relation.GREATER, 0)
    got = await do(etcd, Txn((), (Put(b"/a"),)), Txn((there,), (Put(b"/b"),)))
    assert isinstance(got.results[1], TxnResult)
    assert not got.results[1].succeeded


async def test_reads_in_a_transaction_see_what_came_before_them(etcd: Etcd) -> None:
    got = await do(etcd, Range(b"/a"), Put(b"/a", b"1"), Range(b"/a"))
    before, _, after = got.results
    assert isinstance(before, RangeResult)
    assert isinstance(after, RangeResult)
    assert before.kvs == ()
    assert [(kv.value, kv.mod_revision) for kv in after.kvs] == [(b"1", got.revision)]


async def test_a_failing_outer_guard_runs_the_nested_reads_of_its_failure_branch(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a"))
    nested = Txn((), (Range(b"/a"),))
    got = await etcd.txn(Txn((Compare(b"/x", Target.CREATE, Relation.GREATER, 0),), (Put(b"/b"),), (nested, nested)))
    assert not got.succeeded
    for result in got.results:
        assert isinstance(result, TxnResult)
        assert isinstance(result.results[0], RangeResult)
        assert [kv.key for kv in result.results[0].kvs] == [b"/a"]


async def test_an_empty_nested_transaction_has_its_place(etcd: Etcd) -> None:
    got = await do(etcd, Txn(), Put(b"/a"), Txn())
    assert [type(result) for result in got.results] == [TxnResult, PutResult, TxnResult]


DUPLICATES: list[tuple[Op, ...]] = [
    (Put(b"/a"), Put(b"/a")),
    (Put(b"/a"), Delete(b"/a")),
    (Delete(b"/a"), Put(b"/a")),
    (Delete(b"/", b"/z"), Put(b"/a")),
    (Txn((), (Put(b"/a"),)), Txn((), (Put(b"/a"),))),
    (Txn((), (Put(b"/a"),)), Txn((), (), (Put(b"/a"),))),
    (Txn((), (Put(b"/a"),)), Put(b"/a")),
    (Delete(b"/a"), Txn((), (Put(b"/a"),))),
    (Txn((), (Put(b"/a"),)), Delete(b"/a")),
    (Txn((), (Delete(b"/a"),)), Txn((), (Put(b"/a"),))),
]


@pytest.mark.parametrize("ops", DUPLICATES)
async def test_a_key_written_twice_is_refused(etcd: Etcd, ops: tuple[Op, ...]) -> None:
    with pytest.raises(InvalidRequest):
        await do(etcd, Put(b"/good"), *ops)
    assert await keys(etcd) == []


ALLOWED: list[tuple[Op, ...]] = [
    (Delete(b"/a"), Delete(b"/a")),
    (Txn((), (Put(b"/a"),), (Put(b"/a"),)),),
    (Range(b"/a"), Put(b"/a"), Range(b"/a")),
    (Delete(b"/b", b"/z"), Put(b"/a")),
    (Txn((), (Put(b"/a"),)), Txn((), (Delete(b"/a"),))),
]


@pytest.mark.parametrize("ops", ALLOWED)
async def test_what_is_not_written_twice_is_allowed(etcd: Etcd, ops: tuple[Op, ...]) -> None:
    assert (await do(etcd, *ops)).succeeded


def claim_like(index: int) -> Txn:
    """Two guards and three operations, as a claim has."""
    key = f"/t{index:04}".encode()
    guard = Compare(key, Target.CREATE, Relation.EQUAL, 0)
    return Txn((guard, guard), (Put(key), Put(key + b"x"), Delete(key + b"y")))


async def test_the_width_of_transactions_is_limited(etcd: Etcd) -> None:
    """At each level the longest list counts, and nested ones get what is left of 128."""
    await do(etcd, *(claim_like(i) for i in range(125)))
    assert len(await keys(etcd)) == 250
    with pytest.raises(InvalidRequest):
        await do(etcd, *(claim_like(i) for i in range(126)))
    await do(etcd, *(Put(f"/p{i}".encode()) for i in range(128)))
    with pytest.raises(InvalidRequest):
        await do(etcd, *(Put(f"/p{i}".encode()) for i in range(129)))


async def test_a_request_over_1_5_mib_is_refused(etcd: Etcd) -> None:
    await do(etcd, Put(b"/a", bytes(1_500_000)))
    for size in (1_572_864, 3 << 20):
        with pytest.raises(RequestTooLarge):
            await do(etcd, Put(b"/b", bytes(size)))
    assert await keys(etcd) == [b"/a"]


# Leases


async def test_a_lease_is_granted_at_least_two_seconds(etcd: Etcd) -> None:
    assert (await etcd.lease_grant(1)).ttl_s == 2
    assert (await etcd.lease_grant(5)).ttl_s == 5


async def test_a_key_on_an_unknown_lease_is_refused_and_nothing_is_written(etcd: Etcd) -> None:
    with pytest.raises(LeaseNotFound):
        await do(etcd, Put(b"/a"), Put(b"/b", b"", 12345))
    assert await keys(etcd) == []


async def test_revoking_deletes_the_keys_of_the_lease_alone(etcd: Etcd) -> None:
    lease = await etcd.lease_grant(60)
    await do(etcd, Put(b"/leased", b"", lease.id), Put(b"/moved", b"", lease.id), Put(b"/free"))
    await do(etcd, Put(b"/moved"))
    async with etcd.watch([ALL]) as watch:
        await etcd.lease_revoke(lease.id)
        (event,) = await collect(watch, 1)
    assert (event.is_delete, event.kv.key) == (True, b"/leased")
    assert await keys(etcd) == [b"/free", b"/moved"]
    await etcd.lease_revoke(lease.id)  # gone already: fine


async def test_pings_keep_a_lease_and_an_unknown_one_is_told(etcd: Etcd) -> None:
    lease = await etcd.lease_grant(5)
    async with etcd.keep_alive(lease.id) as stream:
        for _ in range(3):
            await stream.ping()
        for _ in range(3):
            assert (await stream.answer()).ttl_s == 5
        await etcd.lease_revoke(lease.id)
        await stream.ping()
        assert (await stream.answer()).ttl_s <= 0


async def test_a_lease_without_pings_runs_out(etcd: Etcd) -> None:
    lease = await etcd.lease_grant(2)
    await do(etcd, Put(b"/leased", b"", lease.id))
    async with etcd.watch([ALL]) as watch:
        (event,) = await collect(watch, 1)
    assert (event.is_delete, event.kv.key) == (True, b"/leased")
    with pytest.raises(LeaseNotFound):
        await do(etcd, Put(b"/again", b"", lease.id))


# Watching


async def test_a_watch_sees_all_that_follows_its_entry(etcd: Etcd) -> None:
    await do(etcd, Put(b"/before"))
    async with etcd.watch([ALL]) as watch:
        put = await do(etcd, Put(b"/a", b"1"))
        deleted = await do(etcd, Delete(b"/a"))
        first, second = await collect(watch, 2)
    assert (first.is_delete, first.kv.key, first.kv.value) == (False, b"/a", b"1")
    assert (first.kv.mod_revision, first.kv.create_revision) == (put.revision, put.revision)
    assert (second.is_delete, second.kv.key, second.kv.mod_revision) == (True, b"/a", deleted.revision)


async def test_one_transaction_is_one_batch(etcd: Etcd) -> None:
    async with etcd.watch([ALL]) as watch:
        written = await do(etcd, Put(b"/a"), Put(b"/b"), Txn((), (Put(b"/c"),)))
        async with asyncio.timeout(20):
            batch = await anext(watch)
    assert batch.revision == written.revision
    assert [e.kv.key for e in batch.events] == [b"/a", b"/b", b"/c"]


async def test_a_watch_from_an_older_revision_replays(etcd: Etcd) -> None:
    first = await do(etcd, Put(b"/a", b"1"))
    await do(etcd, Put(b"/a", b"2"))
    async with etcd.watch([ALL], start_revision=first.revision) as watch:
        assert [e.kv.value for e in await collect(watch, 2)] == [b"1", b"2"]
    async with etcd.watch([ALL], start_revision=first.revision + 1) as watch:
        assert [e.kv.value for e in await collect(watch, 1)] == [b"2"]


async def test_a_watch_of_several_ranges_sees_these_and_nothing_else(etcd: Etcd) -> None:
    async with etcd.watch([KeyRange(b"/a/", b"/a0"), KeyRange(b"/one")]) as watch:
        await do(etcd, Put(b"/a/1"), Put(b"/b"), Put(b"/onething"))
        await do(etcd, Put(b"/one"))
        assert {e.kv.key for e in await collect(watch, 2)} == {b"/a/1", b"/one"}


async def test_the_revision_of_batches_never_goes_back(etcd: Etcd) -> None:
    start = await do(etcd, Put(b"/a"))
    for i in range(50):
        await do(etcd, Put(b"/a", b"%d" % i))
    seen: list[WatchBatch] = []
    async with etcd.watch([ALL], start_revision=start.revision) as watch, asyncio.timeout(20):
        while sum(len(batch.events) for batch in seen) < 51:
            seen.append(await anext(watch))
    revisions = [batch.revision for batch in seen]
    assert revisions == sorted(revisions)
    changes = [e.kv.mod_revision for batch in seen for e in batch.events]
    assert changes == sorted(changes)


async def test_a_watch_of_puts_only_is_not_told_of_deletes(etcd: Etcd) -> None:
    async with etcd.watch([KeyRange(b"/a", puts_only=True)]) as watch:
        await etcd.txn(Txn(success=(Put(b"/a", b"1"),)))
        await etcd.txn(Txn(success=(Delete(b"/a"),)))
        await etcd.txn(Txn(success=(Put(b"/a", b"2"),)))
        assert [(e.kv.value, e.is_delete) for e in await collect(watch, 2)] == [(b"1", False), (b"2", False)]


async def test_a_watch_may_be_given_up_and_taken_up_again(etcd: Etcd) -> None:
    """Canceling anext() loses nothing."""
    async with etcd.watch([ALL]) as watch:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watch), 0.05)
        await do(etcd, Put(b"/a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(watch)
        await do(etcd, Put(b"/b"))
        assert [e.kv.key for e in await collect(watch, 2)] == [b"/a", b"/b"]


# Upkeep


async def test_compaction_takes_the_past_away(etcd: Etcd) -> None:
    first = await do(etcd, Put(b"/a", b"1"))
    second = await do(etcd, Put(b"/a", b"2"))
    third = await do(etcd, Put(b"/gone"))
    last = await do(etcd, Delete(b"/gone"))
    await etcd.compact(second.revision)
    await etcd.compact(second.revision)  # again: fine
    with pytest.raises(Compacted):
        await etcd.range(Range(b"/a", revision=first.revision))
    assert [kv.value for kv in (await etcd.range(Range(b"/a", revision=second.revision))).kvs] == [b"2"]
    with pytest.raises(Compacted) as told:
        async with etcd.watch([ALL], start_revision=first.revision) as watch:
            await asyncio.wait_for(anext(watch), 20)
    assert told.value.compact_revision == second.revision
    async with etcd.watch([ALL], start_revision=second.revision + 1) as watch:
        seen = await collect(watch, 2)
    assert [(e.kv.mod_revision, e.is_delete) for e in seen] == [(third.revision, False), (last.revision, True)]
    with pytest.raises(InvalidRequest):
        await etcd.compact(last.revision + 1000)


async def test_status_grows_with_what_is_written(etcd: Etcd) -> None:
    before = await etcd.status()
    rounds = 0

    async def grown() -> bool:
        """The real one writes to its file every 100 ms, and may still be freeing what earlier tests left."""
        nonlocal rounds
        rounds += 1
        await do(etcd, *(Put(f"/big{rounds}/{i}".encode(), bytes(50_000)) for i in range(20)))
        return (await etcd.status()).db_in_use_bytes > before.db_in_use_bytes

    await wait_until(grown, what="the database is larger")
    after = await etcd.status()
    assert after.revision == before.revision + rounds
    assert after.member_id == after.leader_id == (await etcd.members())[0].id
    assert after.db_size_bytes >= after.db_in_use_bytes
    assert await etcd.alarms() == ()


async def test_errors_are_ours(etcd: Etcd) -> None:
    with pytest.raises(StoreError):
        await do(etcd, Put(b"/a"), Put(b"/a"))
