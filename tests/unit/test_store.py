"""The store: what each call means when it wins, loses, is raced, or never hears of its outcome.

The same tests run against a real etcd in tests/etcd_live/test_store_live.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import pytest
import pytest_asyncio

from etcd import keys
from etcd.errors import NoSpace, OutcomeUnknown, RecordCorrupt, RequestTooLarge, StoreUnavailable
from etcd.identity import Identity
from etcd.port import Etcd, Put, Txn, TxnResult
from etcd.store import AlreadyExists, CancelStep, Claim, Submitted, TaskStore, Versioned
from node.core.model import Outcome, Reason, Requirements, Status, Task, TaskSpec
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_store import FakeStore
from tests.support.tasks import (
    CANCELED,
    DONE,
    GIVEN_BACK,
    LOSSES,
    LOST_AFTER,
    NODE_A,
    NODE_B,
    NOW,
    TIMEOUT_S,
    Loss,
    LossyEtcd,
    claimed,
    delete_key,
    join,
    leave,
    new_task,
    open_store,
    queued,
    read_one,
    snapshot,
    status_agrees_with_record,
)


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[Etcd]:
    async with FakeEtcd() as fake:
        yield fake


@pytest_asyncio.fixture
async def store(etcd: Etcd) -> AsyncIterator[TaskStore]:
    async with open_store(etcd) as opened:
        yield opened
        status_agrees_with_record(await snapshot(etcd))


@pytest_asyncio.fixture
async def me(etcd: Etcd) -> Identity:
    return await join(etcd, NODE_A)


@pytest_asyncio.fixture
async def other(etcd: Etcd) -> Identity:
    return await join(etcd, NODE_B)


class Raced:
    """Another etcd: lets something else happen right before the first transaction that writes."""

    def __init__(self, etcd: Etcd, first: Callable[[], Awaitable[object]]) -> None:
        self._etcd = etcd
        self._first: Callable[[], Awaitable[object]] | None = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        if "Put" in repr(txn) and self._first is not None:
            first, self._first = self._first, None
            await first()
        return await self._etcd.txn(txn, timeout_s=timeout_s)


def raced(etcd: Etcd, first: Callable[[], Awaitable[object]]) -> Etcd:
    return cast("Etcd", Raced(etcd, first))


End: TypeAlias = Callable[[TaskStore, Claim], Awaitable[Task | None]]


async def finish(store: TaskStore, claim: Claim, outcome: Outcome = DONE) -> Task | None:
    return await store.finish(claim, outcome, started_at=NOW + 2, now=NOW + 3, timeout_s=TIMEOUT_S)


async def give_back(store: TaskStore, claim: Claim, *, started: bool = True) -> Task | None:
    at = NOW + 2 if started else None
    return await store.give_back(claim, GIVEN_BACK, started_at=at, now=NOW + 3, timeout_s=TIMEOUT_S)


async def confirm(store: TaskStore, claim: Claim) -> Task | None:
    return await store.confirm_cancel(claim, CANCELED, started_at=NOW + 2, now=NOW + 3, timeout_s=TIMEOUT_S)


async def claim_again(store: TaskStore, task_id: str, me: Identity) -> Claim | None:
    return await store.claim(await read_one(store, task_id), me, now=NOW + 4, timeout_s=TIMEOUT_S)


# -- submit ---------------------------------------------------------------------------------------------------------


async def test_a_submit_repeated_finds_its_own_task(store: TaskStore) -> None:
    task = new_task(TaskSpec("/bin/echo", args=("a",), env={"K": "V"}, requirements=Requirements(cpu=2)))
    first = await store.submit(task, timeout_s=TIMEOUT_S)
    again = await store.submit(new_task(task.spec, id=task.id, now=NOW + 100), timeout_s=TIMEOUT_S)
    assert (first.created, again.created) == (True, False)
    assert again.task == task, "with the time of its first submit"


async def test_a_submit_repeated_after_its_end_finds_its_end(store: TaskStore, me: Identity) -> None:
    claim = await claimed(store, me)
    done = await finish(store, claim)
    again = await store.submit(new_task(claim.task.spec, id=claim.task.id), timeout_s=TIMEOUT_S)
    assert again == Submitted(cast("Task", done), created=False)


async def test_the_same_id_with_another_spec_is_refused(store: TaskStore) -> None:
    seen = await queued(store)
    with pytest.raises(AlreadyExists, match=seen.task.id):
        await store.submit(new_task(TaskSpec("/bin/false"), id=seen.task.id), timeout_s=TIMEOUT_S)
    assert await read_one(store, seen.task.id) == seen


async def test_many_are_answered_in_order_each_for_itself(store: TaskStore) -> None:
    there = await queued(store)
    tasks = [new_task() for _ in range(250)]
    tasks[10] = new_task(TaskSpec("/bin/false"), id=there.task.id)
    tasks[20] = new_task(there.task.spec, id=tasks[19].id, now=NOW + 1)
    tasks[30] = new_task(TaskSpec("/bin/cat", stdin=b"x" * 2_000_000))
    tasks[40] = new_task(there.task.spec, id=there.task.id, now=NOW + 1)
    answers = await store.submit_many(tasks, timeout_s=TIMEOUT_S)
    assert isinstance(answers[10], AlreadyExists)
    assert isinstance(answers[30], RequestTooLarge)
    created = {}
    for place, (task, answer) in enumerate(zip(tasks, answers, strict=True)):
        if place not in (10, 30):
            assert isinstance(answer, Submitted)
            assert answer.task.id == task.id
            created[place] = answer.created
    # Two of the same id go in different calls, and etcd may take either first.
    assert sorted((created.pop(19), created.pop(20))) == [False, True]
    assert [place for place, is_created in created.items() if not is_created] == [40]


# -- read -----------------------------------------------------------------------------------------------------------


async def test_records_come_in_the_order_of_the_ids(store: TaskStore) -> None:
    tasks = [new_task() for _ in range(130)]
    await store.submit_many(tasks, timeout_s=TIMEOUT_S)
    wanted = [tasks[5].id, new_task().id, tasks[5].id, *(task.id for task in reversed(tasks))]
    found = await store.read(wanted)
    assert found[1] is None
    assert [seen.task.id for seen in found if seen] == [wanted[0], *wanted[2:]]
    assert await store.read([]) == []


async def test_ids_are_found_by_prefix(store: TaskStore) -> None:
    ids = ["11111111-1111-4111-8111-111111111111", "11111111-2222-4222-8222-222222222222"]
    for id_ in ids:
        await store.submit(new_task(id=id_), timeout_s=TIMEOUT_S)
    assert await store.find("11111111-1") == ids[:1]
    assert await store.find("11111111") == ids
    assert await store.find("1", limit=1) == ids[:1]
    assert await store.find(ids[1]) == ids[1:]
    assert await store.find("2") == []
    for nonsense in ("status", "s", "-", "11111111x", ids[0] + "0", "1111111111111111", "ABCDEF"):
        assert await store.find(nonsense) == []


async def test_a_read_without_time_is_unavailable_not_unknown(etcd: Etcd, store: TaskStore) -> None:
    seen = await queued(store)

    class Deaf(LossyEtcd):
        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            return await asyncio.Event().wait()  # type: ignore[return-value]  # never answers

    async with open_store(cast("Etcd", Deaf(etcd))) as deaf:
        with pytest.raises(StoreUnavailable):
            await deaf.read([seen.task.id] * 120, timeout_s=0.05)


async def test_a_strangers_record_is_named(store: TaskStore, etcd: Etcd) -> None:
    stranger = new_task()
    await etcd.txn(Txn(success=(Put(keys.task(stranger.id), b"\xff\xff"),)))
    with pytest.raises(RecordCorrupt, match=stranger.id):
        await store.read([stranger.id])
    sound = await queued(store)
    before, broken, after = await store.read_each([sound.task.id, stranger.id, sound.task.id])
    assert isinstance(broken, RecordCorrupt)
    assert before == after == sound
    await delete_key(etcd, keys.task(stranger.id))


# -- claim ----------------------------------------------------------------------------------------------------------


async def test_of_two_claims_one_wins(store: TaskStore, me: Identity, other: Identity) -> None:
    seen = await queued(store)
    claims = await asyncio.gather(
        *(store.claim(seen, who, now=NOW + 1, timeout_s=TIMEOUT_S) for who in (me, other, me, other))
    )
    (won,) = [claim for claim in claims if claim is not None]
    record = await read_one(store, seen.task.id)
    assert record == Versioned(won.task, won.mod_revision)
    assert record.task.owner == won.identity.node_id
    assert record.task.attempt == 1


async def test_many_claims_each_for_itself(store: TaskStore, me: Identity, other: Identity) -> None:
    seen = [await queued(store) for _ in range(12)]
    assert await store.claim(seen[3], other, now=NOW, timeout_s=TIMEOUT_S)
    await store.cancel(seen[5].task.id, now=NOW, timeout_s=TIMEOUT_S)
    claims = await store.claim_many(seen, me, now=NOW + 1, timeout_s=TIMEOUT_S)
    assert [place for place, claim in enumerate(claims) if claim is None] == [3, 5]
    for one, claim in zip(seen, claims, strict=True):
        if isinstance(claim, Claim):
            assert claim.task.id == one.task.id
            running, revision = await store.running_of(me.node_id)
            assert dict(running)[claim.task.id].create_revision == claim.fence_revision <= revision


async def test_a_fenced_node_claims_nothing(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    seen = await queued(store)
    await leave(etcd, me.node_id)
    assert await store.claim(seen, me, now=NOW, timeout_s=TIMEOUT_S) is None
    # The same id again is another incarnation.
    await join(etcd, me.node_id)
    assert await store.claim(seen, me, now=NOW, timeout_s=TIMEOUT_S) is None


async def test_a_claim_that_is_held_already_is_not_won_twice(store: TaskStore, me: Identity) -> None:
    """A stale view claims again what this node runs: not another run of it."""
    seen = await queued(store)
    assert await store.claim(seen, me, now=NOW + 1, timeout_s=TIMEOUT_S) is not None
    assert await store.claim(seen, me, now=NOW + 2, timeout_s=TIMEOUT_S) is None


async def test_an_unknown_claim_is_adopted(store: TaskStore, me: Identity, other: Identity) -> None:
    claim = await claimed(store, me)
    assert await store.adopt(claim.task.id, me, timeout_s=TIMEOUT_S) == claim
    assert await store.adopt(claim.task.id, other, timeout_s=TIMEOUT_S) is None
    await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    adopted = await store.adopt(claim.task.id, me, timeout_s=TIMEOUT_S)
    assert adopted is not None
    assert adopted.fence_revision == claim.fence_revision
    assert adopted.task.cancel_requested


async def raise_epoch(etcd: Etcd, epoch: int) -> None:
    await etcd.txn(Txn(success=(Put(keys.cluster_epoch(), str(epoch).encode()),)))


async def test_a_claim_is_of_the_epoch_in_which_it_was_written(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    """Found by chaos: another node's `recover` raises the epoch while this one lives. A token made of the epoch before
    would be smaller than those handed out since."""
    alone, *several = [await queued(store) for _ in range(4)]
    async with open_store(raced(etcd, lambda: raise_epoch(etcd, 7))) as racing:
        claim = await racing.claim(alone, me, now=NOW, timeout_s=TIMEOUT_S)
    assert claim is not None
    assert claim.epoch == 7
    async with open_store(raced(etcd, lambda: raise_epoch(etcd, 8))) as racing:
        claims = await racing.claim_many(several, me, now=NOW, timeout_s=TIMEOUT_S)
    assert [one.epoch for one in claims if isinstance(one, Claim)] == [8, 8, 8]
    await raise_epoch(etcd, 9)
    adopted = await store.adopt(alone.task.id, me, timeout_s=TIMEOUT_S)
    assert adopted is not None
    assert adopted.epoch == 9


async def test_an_unknown_claim_is_of_an_epoch_no_older_than_its_own(
    store: TaskStore, etcd: Etcd, me: Identity
) -> None:
    """Written, then the answer is lost, then the epoch is raised, then it is found again."""
    seen = await queued(store)
    lossy = LossyEtcd(etcd)
    lossy.loss = lambda: LOST_AFTER
    async with open_store(cast("Etcd", lossy)) as unlucky:
        with pytest.raises(OutcomeUnknown):
            await unlucky.claim(seen, me, now=NOW, timeout_s=0.15)
        await raise_epoch(etcd, 7)
        lossy.loss = lambda: None
        claim = await unlucky.claim(seen, me, now=NOW, timeout_s=TIMEOUT_S)
    assert claim is not None
    assert claim.epoch == 7


async def test_claims_written_while_etcd_fills_up_are_of_their_epoch(
    store: TaskStore, etcd: Etcd, me: Identity
) -> None:
    class Filling:
        """Applies what puts something, and says no space."""

        def __getattr__(self, name: str) -> Any:
            return getattr(etcd, name)

        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            answer = await etcd.txn(txn, timeout_s=timeout_s)
            if "Put" in repr(txn):
                raise NoSpace("etcdserver: mvcc: database space exceeded")
            return answer

    await raise_epoch(etcd, 7)
    seen = [await queued(store) for _ in range(100)]
    async with open_store(cast("Etcd", Filling())) as full:
        claims = await full.claim_many(seen, me, now=NOW, timeout_s=TIMEOUT_S)
    assert [one.epoch for one in claims if isinstance(one, Claim)] == [7] * 100


# -- the end of a claim ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status", "used"),
    [
        (finish, Status.COMPLETE, 1),
        (give_back, Status.QUEUED, 1),
        (lambda store, claim: give_back(store, claim, started=False), Status.QUEUED, 0),
        (confirm, Status.CANCELED, 1),
        (lambda store, claim: finish(store, claim, Outcome(Reason.SETUP_FAILED, step="exec")), Status.FAILED, 1),
    ],
)
async def test_the_owner_ends_its_claim_once(
    store: TaskStore,
    me: Identity,
    end: End,
    status: Status,
    used: int,
) -> None:
    claim = await claimed(store, me)
    after = await end(store, claim)
    assert after is not None
    assert (after.status, after.attempts_used) == (status, used)
    assert (await read_one(store, after.id)).task == after
    # Said again it is the same; something else can no longer be said.
    assert await end(store, claim) == after
    if status.is_terminal:
        assert await give_back(store, claim, started=False) is None
    else:
        assert await finish(store, claim) is None
    assert (await read_one(store, after.id)).task == after


ENDS: list[End] = [finish, give_back, confirm]


@pytest.mark.parametrize("end", ENDS)
async def test_a_fenced_owner_ends_nothing(store: TaskStore, etcd: Etcd, me: Identity, end: End) -> None:
    claim = await claimed(store, me)
    await leave(etcd, me.node_id)
    assert await end(store, claim) is None
    assert (await read_one(store, claim.task.id)).task == claim.task
    requeued = await store.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S)
    assert requeued is not None
    assert await end(store, claim) is None
    assert (await read_one(store, claim.task.id)).task == requeued


@pytest.mark.parametrize("end", ENDS)
async def test_an_older_claim_of_the_same_node_ends_nothing(store: TaskStore, me: Identity, end: End) -> None:
    old = await claimed(store, me)
    await store.give_back(old, GIVEN_BACK, started_at=NOW + 1, now=NOW + 1.5, timeout_s=TIMEOUT_S)
    new = await claim_again(store, old.task.id, me)
    assert new is not None
    assert await end(store, old) is None
    assert (await read_one(store, old.task.id)).task == new.task


@pytest.mark.parametrize(
    ("end", "status"), [(finish, Status.COMPLETE), (give_back, Status.CANCELED), (confirm, Status.CANCELED)]
)
async def test_a_cancel_request_between_claim_and_end_is_looked_at(
    store: TaskStore,
    me: Identity,
    end: End,
    status: Status,
) -> None:
    """The record changed under the claim, which is still mine. Ended by itself: complete; given back: canceled."""
    claim = await claimed(store, me)
    canceled = await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert canceled.step is CancelStep.REQUESTED
    after = await end(store, claim)
    assert after is not None
    assert after.status is status
    assert after.cancel_requested
    assert (await read_one(store, claim.task.id)).task == after


# -- cancel ---------------------------------------------------------------------------------------------------------


async def test_cancel_of_a_queued_task_is_its_end(store: TaskStore) -> None:
    seen = await queued(store)
    first = await store.cancel(seen.task.id, now=NOW + 1, timeout_s=TIMEOUT_S)
    again = await store.cancel(seen.task.id, now=NOW + 2, timeout_s=TIMEOUT_S)
    assert (first.step, again.step) == (CancelStep.CANCELED, CancelStep.ALREADY_ENDED)
    assert first.task == again.task == (await read_one(store, seen.task.id)).task


async def test_cancel_of_a_running_task_is_a_request_that_its_node_sees(
    store: TaskStore, etcd: Etcd, me: Identity
) -> None:
    claim = await claimed(store, me)
    of_node = keys.running_of(me.node_id)
    async with etcd.watch([of_node]) as events:
        first = await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            async for batch in events:
                if batch.events:
                    break
        (event,) = batch.events
        assert event.kv.create_revision == claim.fence_revision < event.kv.mod_revision
    again = await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert (first.step, again.step) == (CancelStep.REQUESTED, CancelStep.REQUESTED)
    assert first.task == again.task == (await read_one(store, claim.task.id)).task
    assert await confirm(store, claim) is not None
    ended = await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert ended.step is CancelStep.ALREADY_ENDED


async def test_cancel_of_nothing(store: TaskStore) -> None:
    canceled = await store.cancel(new_task().id, now=NOW, timeout_s=TIMEOUT_S)
    assert (canceled.step, canceled.task) == (CancelStep.NOT_FOUND, None)


async def test_cancel_where_the_owner_is_gone_is_its_end(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    claim = await claimed(store, me)
    await leave(etcd, me.node_id)
    canceled = await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert canceled.step is CancelStep.CANCELED
    assert canceled.task is not None
    assert canceled.task.status is Status.CANCELED
    assert (await read_one(store, claim.task.id)).task == canceled.task


async def test_cancel_requested_before_the_owner_was_gone(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    claim = await claimed(store, me)
    await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    await leave(etcd, me.node_id)
    canceled = await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert canceled.step is CancelStep.CANCELED


async def test_cancel_raced_by_a_claim_becomes_a_request(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    seen = await queued(store)
    won: list[Claim | None] = []

    async def claim() -> None:
        won.append(await store.claim(seen, me, now=NOW, timeout_s=TIMEOUT_S))

    async with open_store(raced(etcd, claim)) as slow:
        canceled = await slow.cancel(seen.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert won[0] is not None
    assert canceled.step is CancelStep.REQUESTED
    assert (await read_one(store, seen.task.id)).task.cancel_requested


@pytest.mark.parametrize(
    ("end", "step"),
    [(finish, CancelStep.ALREADY_ENDED), (give_back, CancelStep.CANCELED), (confirm, CancelStep.ALREADY_ENDED)],
)
async def test_cancel_raced_by_the_end_of_the_claim(
    store: TaskStore,
    etcd: Etcd,
    me: Identity,
    end: End,
    step: CancelStep,
) -> None:
    claim = await claimed(store, me)
    async with open_store(raced(etcd, lambda: end(store, claim))) as slow:
        canceled = await slow.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert canceled.step is step
    assert canceled.task == (await read_one(store, claim.task.id)).task


async def test_end_raced_by_a_cancel_goes_through(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    claim = await claimed(store, me)
    async with open_store(raced(etcd, lambda: store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S))) as slow:
        after = await finish(slow, claim)
    assert after is not None
    assert (after.status, after.cancel_requested) == (Status.COMPLETE, True)


async def test_cancel_of_a_damaged_task_says_so(store: TaskStore, etcd: Etcd) -> None:
    """Somebody deleted its queued key: to try again would never end."""
    seen = await queued(store)
    await delete_key(etcd, keys.queued_key(seen.task.id))
    with pytest.raises(RecordCorrupt, match=seen.task.id):
        await store.cancel(seen.task.id, now=NOW, timeout_s=TIMEOUT_S)
    await etcd.txn(Txn(success=(Put(keys.queued_key(seen.task.id)),)))


# -- requeue --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "is_canceled", "status"),
    [
        (TaskSpec("/bin/true"), False, Status.QUEUED),
        (TaskSpec("/bin/true"), True, Status.CANCELED),
        (TaskSpec("/bin/true", restart_on_node_loss=False), False, Status.FAILED),
        (TaskSpec("/bin/true", max_attempts=1), False, Status.FAILED),
    ],
)
async def test_what_becomes_of_an_orphan(  # noqa: PLR0917  (fixtures and parameters)
    store: TaskStore,
    etcd: Etcd,
    me: Identity,
    other: Identity,
    spec: TaskSpec,
    is_canceled: bool,
    status: Status,
) -> None:
    claim = await claimed(store, me, spec)
    kept = await claimed(store, other)
    if is_canceled:
        await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    assert await store.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S) is None
    assert await store.orphans() == []
    await leave(etcd, me.node_id)
    assert await store.orphans() == [(me.node_id, claim.task.id)]
    after = await store.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S)
    assert after is not None
    assert after.status is status
    assert await store.orphans() == []
    assert await store.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S) is None
    assert await store.requeue(new_task().id, me.node_id, now=NOW, timeout_s=TIMEOUT_S) is None
    seen = await store.running_at_one_revision()
    assert (seen.nodes, seen.tasks) == ((other.node_id,), ((other.node_id, kept.task.id),))


async def test_requeue_raced_by_a_cancel_cancels(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    claim = await claimed(store, me)
    await leave(etcd, me.node_id)
    async with open_store(raced(etcd, lambda: store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S))) as slow:
        after = await slow.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S)
    assert after is None, "the canceler requeued it itself"
    assert (await read_one(store, claim.task.id)).task.status is Status.CANCELED


async def test_two_peers_requeue_once(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    claim = await claimed(store, me)
    await leave(etcd, me.node_id)
    async with open_store(
        raced(etcd, lambda: store.requeue(claim.task.id, me.node_id, now=NOW + 9, timeout_s=9))
    ) as slow:
        assert await slow.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S) is None
    assert (await read_one(store, claim.task.id)).task.attempts_used == 1


# -- unknown outcomes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name.replace(" ", "-"))
@pytest.mark.parametrize(
    "call", ["submit", "claim", "finish", "give_back", "confirm_cancel", "cancel_queued", "request_cancel", "requeue"]
)
async def test_an_unknown_outcome_is_settled(  # noqa: PLR0917  (fixtures and parameters)
    store: TaskStore, etcd: Etcd, me: Identity, other: Identity, call: str, loss: Loss
) -> None:
    """Lost before, lost after, applied before or after the next try: the answer is as if nothing had happened, and
    nothing is applied twice."""
    lossy = LossyEtcd(etcd)
    async with open_store(cast("Etcd", lossy)) as unlucky:
        task = new_task()
        if call == "submit":
            lossy.lose_once(loss)
            assert (await unlucky.submit(task, timeout_s=TIMEOUT_S)).created
            expected = task
        elif call in ("claim", "cancel_queued"):
            seen = await queued(store)
            lossy.lose_once(loss)
            if call == "claim":
                claim = await unlucky.claim(seen, me, now=NOW, timeout_s=TIMEOUT_S)
                assert claim is not None
                running, _ = await store.running_of(me.node_id)
                assert [kv.create_revision for _, kv in running] == [claim.fence_revision]
                expected = claim.task
            else:
                canceled = await unlucky.cancel(seen.task.id, now=NOW, timeout_s=TIMEOUT_S)
                assert canceled.step is CancelStep.CANCELED
                expected = cast("Task", canceled.task)
        else:
            claim = await claimed(store, me)
            if call == "requeue":
                await leave(etcd, me.node_id)
            lossy.lose_once(loss)
            ends: dict[str, End] = {"finish": finish, "give_back": give_back, "confirm_cancel": confirm}
            if call in ends:
                expected = cast("Task", await ends[call](unlucky, claim))
            elif call == "requeue":
                requeued = await unlucky.requeue(claim.task.id, me.node_id, now=NOW, timeout_s=TIMEOUT_S)
                expected = cast("Task", requeued)
            else:
                canceled = await unlucky.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
                assert canceled.step is CancelStep.REQUESTED
                expected = cast("Task", canceled.task)
        assert expected is not None
        await lossy.settled()
        assert (await read_one(store, expected.id)).task == expected


@pytest.mark.parametrize("call", ["claim", "finish", "submit"])
async def test_a_call_repeated_after_an_unknown_outcome_finds_its_own(
    store: TaskStore, etcd: Etcd, me: Identity, call: str
) -> None:
    """All tries of the first call lose their answers; the caller repeats it with the same values."""
    lossy = LossyEtcd(etcd)
    task, seen, claim = new_task(), await queued(store), await claimed(store, me)

    async def once(unlucky: TaskStore, timeout_s: float) -> object:
        if call == "submit":
            return await unlucky.submit(task, timeout_s=timeout_s)
        if call == "claim":
            return await unlucky.claim(seen, me, now=NOW + 1, timeout_s=timeout_s)
        return await unlucky.finish(claim, DONE, started_at=NOW, now=NOW + 2, timeout_s=timeout_s)

    lossy.loss = lambda: LOST_AFTER
    async with open_store(cast("Etcd", lossy)) as unlucky:
        with pytest.raises(OutcomeUnknown):
            await once(unlucky, 0.15)
        lossy.loss = lambda: None
        answer = await once(unlucky, TIMEOUT_S)
    if call == "submit":
        assert answer == Submitted(task, created=True)
    elif call == "claim":
        assert isinstance(answer, Claim)
        assert answer.task == (await read_one(store, seen.task.id)).task
    else:
        assert answer == (await read_one(store, claim.task.id)).task


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name.replace(" ", "-"))
async def test_an_unknown_claim_that_another_won_is_lost(
    store: TaskStore, etcd: Etcd, me: Identity, other: Identity, loss: Loss
) -> None:
    """Between the lost try and the next one a peer claims it, or finds it claimed."""
    seen = await queued(store)
    lossy = LossyEtcd(etcd)
    lossy.lose_once(loss)
    async with open_store(cast("Etcd", lossy)) as unlucky:
        mine, theirs = await asyncio.gather(
            unlucky.claim(seen, me, now=NOW, timeout_s=TIMEOUT_S),
            store.claim(seen, other, now=NOW, timeout_s=TIMEOUT_S),
        )
        await lossy.settled()
    (won,) = [claim for claim in (mine, theirs) if claim is not None]
    assert (await read_one(store, seen.task.id)).task == won.task


async def test_a_finish_that_was_applied_and_a_task_that_moved_on(store: TaskStore, etcd: Etcd, me: Identity) -> None:
    """The give back's answer is lost, and before the next try the same node has claimed the task again: the give back
    is no longer its to report, and the new claim stays."""
    claim = await claimed(store, me)

    class Late(LossyEtcd):
        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            try:
                return await super().txn(txn, timeout_s=timeout_s)
            except Exception:
                assert await claim_again(store, claim.task.id, me) is not None
                raise

    late = Late(etcd)
    late.lose_once(LOSSES[1])
    async with open_store(cast("Etcd", late)) as unlucky:
        assert await give_back(unlucky, claim) is None
    now = (await read_one(store, claim.task.id)).task
    assert (now.status, now.attempt) == (Status.RUNNING, 2)


async def test_without_space_submits_fail_and_nothing_is_written() -> None:
    fake = FakeStore()
    async with FakeEtcd(fake) as etcd, open_store(etcd) as store:
        seen = await queued(store)
        fake.has_no_space_alarm = True
        answers = await store.submit_many([new_task() for _ in range(300)], timeout_s=TIMEOUT_S)
        assert {type(answer) for answer in answers} == {NoSpace}
        assert list(status_agrees_with_record(await snapshot(etcd))) == [seen.task.id]
