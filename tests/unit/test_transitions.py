"""Transitions: the table is the design's, and every guard keeps out a write that is wrong.

For each guard there is a situation in which it alone stands between a stale transition and etcd: with it the
transition is lost and nothing changes, without it the transition would be applied. The same tests run against a real
etcd in tests/etcd_live/test_transitions_live.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from etcd import codec, keys, transitions
from etcd.errors import RecordCorrupt
from etcd.identity import Identity
from etcd.port import Delete, Etcd, Put, Range, Txn
from etcd.store import Claim, TaskStore, Versioned
from etcd.transitions import TABLE, Guard, Name, Transition
from node.core import lifecycle
from node.core.errors import IllegalTransition
from node.core.model import Outcome, Reason, Requirements, Status, Task, TaskSpec
from tests.support.fake_etcd import FakeEtcd
from tests.support.tasks import (
    CANCELED,
    DONE,
    GIVEN_BACK,
    HOST,
    NODE_A,
    NODE_B,
    NOW,
    TIMEOUT_S,
    claimed,
    delete_key,
    join,
    key_value,
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


# -- the table ------------------------------------------------------------------------------------------------------


def test_table_is_the_designs() -> None:
    """Section 2 of the design, in words; a guard that is dropped or added must be a decision."""
    unchanged = Guard.RECORD_UNCHANGED
    owner = {unchanged, Guard.CLAIM_MINE, Guard.NODE_MINE}
    assert {name: set(row.guards) for name, row in TABLE.items()} == {
        Name.SUBMIT: {Guard.RECORD_ABSENT},
        Name.CLAIM: {unchanged, Guard.QUEUED_PRESENT, Guard.NODE_MINE},
        Name.FINISH: owner,
        Name.GIVE_BACK: owner,
        Name.CONFIRM_CANCEL: owner,
        Name.CANCEL_QUEUED: {unchanged, Guard.QUEUED_PRESENT},
        Name.REQUEST_CANCEL: {unchanged, Guard.RUNNING_PRESENT},
        Name.REQUEUE: {unchanged, Guard.RUNNING_PRESENT, Guard.OWNER_GONE},
        Name.FORGET: {Guard.ENDED_SAME},
    }


def test_whatever_rewrites_a_record_compares_its_revision() -> None:
    for name, row in TABLE.items():
        rewrites = transitions.Write.RECORD in row.writes and name is not Name.SUBMIT
        assert (Guard.RECORD_UNCHANGED in row.guards) == rewrites, name


def test_table_moves_as_the_lifecycle_does() -> None:
    """Every move of the table is legal for the core, and every legal move has a row."""
    moves = {(row.before, after) for name, row in TABLE.items() if name is not Name.FORGET for after in row.after}
    assert moves == {(before, after) for (before, _), to in lifecycle.TABLE.items() for after in to}


# -- legal and illegal pairs ----------------------------------------------------------------------------------------


def _in_status(status: Status) -> Task:
    task = new_task()
    if status is Status.QUEUED:
        return task
    running = lifecycle.claim(task, node_id=NODE_A, host_id=HOST, now=NOW)
    if status is Status.RUNNING:
        return running
    if status is Status.COMPLETE:
        return lifecycle.finish(running, DONE, started_at=NOW, now=NOW)
    if status is Status.FAILED:
        return lifecycle.finish(running, Outcome(Reason.SETUP_FAILED, step="exec"), started_at=None, now=NOW)
    return lifecycle.cancel(task, now=NOW)


ME = Identity(NODE_A, HOST, 5)


def _build(name: Name, before: Task | None, after: Task) -> Transition:
    if name is Name.SUBMIT:
        assert before is None
        return transitions.submit(after)
    assert before is not None
    match name:
        case Name.CLAIM:
            return transitions.claim(before, after, 3, ME)
        case Name.FINISH | Name.GIVE_BACK | Name.CONFIRM_CANCEL:
            return transitions.as_owner(name, before, after, mod_revision=3, identity=ME, fence_revision=3)
        case Name.CANCEL_QUEUED:
            return transitions.cancel_queued(before, after, 3)
        case Name.REQUEST_CANCEL:
            return transitions.request_cancel(before, replace(after, cancel_requested=True), 3)
        case _:
            return transitions.requeue(before, after, 3)


@pytest.mark.parametrize("name", [name for name in Name if name is not Name.FORGET])
@pytest.mark.parametrize("before", list(Status))
@pytest.mark.parametrize("after", list(Status))
def test_only_the_tables_pairs_can_be_built(name: Name, before: Status, after: Status) -> None:
    row = TABLE[name]
    if name is Name.SUBMIT:
        new = _in_status(after)
        if after in row.after:
            assert _build(name, None, new).task_id == new.id
        else:
            with pytest.raises(IllegalTransition):
                _build(name, None, new)
        return
    old = _in_status(before)
    new = replace(_in_status(after), id=old.id)
    if before is row.before and after in row.after:
        assert _build(name, old, new).name is name
    else:
        with pytest.raises(IllegalTransition):
            _build(name, old, new)


@pytest.mark.parametrize("status", list(Status))
def test_only_what_has_ended_is_forgotten(status: Status) -> None:
    key = keys.index_key(_in_status(status))
    index = keys.parse_index_key(key)
    if status.is_terminal:
        assert [w.key for w in transitions.forget(index, key, 9).writes] == [key, keys.task(index.task_id)]
    else:
        with pytest.raises(IllegalTransition):
            transitions.forget(index, key, 9)


def test_one_task_is_not_written_as_another() -> None:
    before, after = _in_status(Status.QUEUED), _in_status(Status.RUNNING)
    with pytest.raises(IllegalTransition):
        transitions.claim(before, after, 3, ME)


def test_a_claim_is_for_the_one_who_writes_it() -> None:
    before = new_task()
    after = lifecycle.claim(before, node_id=NODE_B, host_id=HOST, now=NOW)
    with pytest.raises(IllegalTransition):
        transitions.claim(before, after, 3, ME)


def test_only_the_owner_ends_a_claim() -> None:
    running = lifecycle.claim(new_task(), node_id=NODE_B, host_id=HOST, now=NOW)
    after = lifecycle.finish(running, DONE, started_at=NOW, now=NOW)
    with pytest.raises(IllegalTransition):
        transitions.as_owner(Name.FINISH, running, after, mod_revision=3, identity=ME, fence_revision=3)


def test_a_request_that_requests_nothing_is_refused() -> None:
    running = _in_status(Status.RUNNING)
    with pytest.raises(IllegalTransition):
        transitions.request_cancel(running, running, 3)


def test_an_unsound_record_is_never_written() -> None:
    with pytest.raises(RecordCorrupt):
        transitions.submit(replace(new_task(), attempt=3))


def test_the_queued_key_carries_the_offer() -> None:
    spec = TaskSpec("/bin/true", requirements=Requirements(cpu=2, memory_bytes=1 << 30))
    for task, value in (
        (new_task(), b""),
        (new_task(spec), codec.offer_value(spec.requirements)),
    ):
        assert Put(keys.queued_key(task.id), value) in transitions.submit(task).writes


# -- guards ---------------------------------------------------------------------------------------------------------

Situation = Callable[[Etcd, TaskStore, Identity], Awaitable[Transition]]


def _finish(claim: Claim, seen: Versioned | None = None) -> Transition:
    return _as_owner(Name.FINISH, claim, seen)


def _as_owner(name: Name, claim: Claim, seen: Versioned | None = None) -> Transition:
    """The end of a claim, built from the record as claimed or as seen later."""
    task = seen.task if seen else claim.task
    after = {
        Name.FINISH: lambda: lifecycle.finish(task, DONE, started_at=NOW, now=NOW + 2),
        Name.GIVE_BACK: lambda: lifecycle.give_back(task, GIVEN_BACK, started_at=NOW, now=NOW + 2),
        Name.CONFIRM_CANCEL: lambda: lifecycle.cancel(task, outcome=CANCELED, started_at=NOW, now=NOW + 2),
    }[name]()
    return transitions.as_owner(
        name,
        task,
        after,
        mod_revision=seen.mod_revision if seen else claim.mod_revision,
        identity=claim.identity,
        fence_revision=claim.fence_revision,
    )


def _claim(seen: Versioned, me: Identity) -> Transition:
    after = lifecycle.claim(seen.task, node_id=me.node_id, host_id=me.host_id, now=NOW)
    return transitions.claim(seen.task, after, seen.mod_revision, me)


def _cancel_queued(seen: Versioned) -> Transition:
    return transitions.cancel_queued(seen.task, lifecycle.cancel(seen.task, now=NOW), seen.mod_revision)


def _request_cancel(seen: Versioned) -> Transition:
    return transitions.request_cancel(seen.task, lifecycle.request_cancel(seen.task), seen.mod_revision)


def _requeue(seen: Versioned) -> Transition:
    return transitions.requeue(seen.task, lifecycle.requeue(seen.task, now=NOW), seen.mod_revision)


async def _give_back(store: TaskStore, claim: Claim) -> None:
    given = await store.give_back(claim, GIVEN_BACK, started_at=NOW, now=NOW + 1, timeout_s=TIMEOUT_S)
    assert given is not None
    assert given.status is Status.QUEUED


async def _was_claimed_and_given_back(etcd: Etcd, store: TaskStore, me: Identity) -> tuple[Versioned, Versioned]:
    """A queued task as it was read, and as it is: another had it in between."""
    old = await queued(store)
    other = await join(etcd, NODE_B)
    claim = await store.claim(old, other, now=NOW, timeout_s=TIMEOUT_S)
    assert claim is not None
    await _give_back(store, claim)
    return old, await read_one(store, old.task.id)


async def _submit_taken(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    seen = await queued(store)
    return transitions.submit(new_task(TaskSpec("/bin/false"), id=seen.task.id))


async def _claim_changed(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    old, _ = await _was_claimed_and_given_back(etcd, store, me)
    return _claim(old, me)


async def _claim_unqueued(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    seen = await queued(store)
    await delete_key(etcd, keys.queued_key(seen.task.id))
    return _claim(seen, me)


async def _claim_without_lease(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    seen = await queued(store)
    await leave(etcd, me.node_id)
    return _claim(seen, me)


def _end_changed(name: Name) -> Situation:
    async def situation(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
        claim = await claimed(store, me)
        await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
        return _as_owner(name, claim)

    return situation


def _end_of_older_claim(name: Name) -> Situation:
    async def situation(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
        old = await claimed(store, me)
        await _give_back(store, old)
        again = await store.claim(await read_one(store, old.task.id), me, now=NOW, timeout_s=TIMEOUT_S)
        assert again is not None
        # The late end of the first claim, with a record read just now: as a retry that looked again would build it.
        return _as_owner(name, old, await read_one(store, old.task.id))

    return situation


def _end_without_lease(name: Name) -> Situation:
    async def situation(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
        claim = await claimed(store, me)
        await leave(etcd, me.node_id)
        return _as_owner(name, claim)

    return situation


async def _cancel_queued_changed(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    old, _ = await _was_claimed_and_given_back(etcd, store, me)
    return _cancel_queued(old)


async def _cancel_unqueued(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    seen = await queued(store)
    await delete_key(etcd, keys.queued_key(seen.task.id))
    return _cancel_queued(seen)


async def _request_for_older_attempt(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    claim = await claimed(store, me)
    old = await read_one(store, claim.task.id)
    await _give_back(store, claim)
    again = await store.claim(await read_one(store, claim.task.id), me, now=NOW, timeout_s=TIMEOUT_S)
    assert again is not None
    return _request_cancel(old)


async def _request_without_running_key(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    claim = await claimed(store, me)
    await delete_key(etcd, keys.running_key(me.node_id, claim.task.id))
    return _request_cancel(await read_one(store, claim.task.id))


async def _requeue_forgets_cancel(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    claim = await claimed(store, me)
    old = await read_one(store, claim.task.id)
    await store.cancel(claim.task.id, now=NOW, timeout_s=TIMEOUT_S)
    await leave(etcd, me.node_id)
    return _requeue(old)


async def _requeue_without_running_key(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    claim = await claimed(store, me)
    await leave(etcd, me.node_id)
    await delete_key(etcd, keys.running_key(me.node_id, claim.task.id))
    return _requeue(await read_one(store, claim.task.id))


async def _requeue_from_the_living(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    claim = await claimed(store, me)
    return _requeue(await read_one(store, claim.task.id))


async def _forget_a_later_task(etcd: Etcd, store: TaskStore, me: Identity) -> Transition:
    """Listed, then forgotten by a peer and submitted anew; the second task ended in the same second."""
    first = await claimed(store, me)
    done = await store.finish(first, DONE, started_at=NOW, now=NOW + 2, timeout_s=TIMEOUT_S)
    assert done is not None
    key = keys.index_key(done)
    listed = await key_value(etcd, key)
    assert listed is not None
    await etcd.txn(Txn(success=(Delete(key), Delete(keys.task(done.id)))))
    await store.submit(new_task(id=done.id), timeout_s=TIMEOUT_S)
    second = await store.claim(await read_one(store, done.id), me, now=NOW, timeout_s=TIMEOUT_S)
    assert second is not None
    await store.finish(second, DONE, started_at=NOW, now=NOW + 2, timeout_s=TIMEOUT_S)
    return transitions.forget(keys.parse_index_key(key), key, listed.create_revision)


SITUATIONS: dict[tuple[Name, Guard], Situation] = {
    (Name.SUBMIT, Guard.RECORD_ABSENT): _submit_taken,
    (Name.CLAIM, Guard.RECORD_UNCHANGED): _claim_changed,
    (Name.CLAIM, Guard.QUEUED_PRESENT): _claim_unqueued,
    (Name.CLAIM, Guard.NODE_MINE): _claim_without_lease,
    **{(name, Guard.RECORD_UNCHANGED): _end_changed(name) for name in (Name.FINISH, Name.GIVE_BACK)},
    (Name.CONFIRM_CANCEL, Guard.RECORD_UNCHANGED): _end_changed(Name.CONFIRM_CANCEL),
    **{
        (name, Guard.CLAIM_MINE): _end_of_older_claim(name)
        for name in (Name.FINISH, Name.GIVE_BACK, Name.CONFIRM_CANCEL)
    },
    **{
        (name, Guard.NODE_MINE): _end_without_lease(name) for name in (Name.FINISH, Name.GIVE_BACK, Name.CONFIRM_CANCEL)
    },
    (Name.CANCEL_QUEUED, Guard.RECORD_UNCHANGED): _cancel_queued_changed,
    (Name.CANCEL_QUEUED, Guard.QUEUED_PRESENT): _cancel_unqueued,
    (Name.REQUEST_CANCEL, Guard.RECORD_UNCHANGED): _request_for_older_attempt,
    (Name.REQUEST_CANCEL, Guard.RUNNING_PRESENT): _request_without_running_key,
    (Name.REQUEUE, Guard.RECORD_UNCHANGED): _requeue_forgets_cancel,
    (Name.REQUEUE, Guard.RUNNING_PRESENT): _requeue_without_running_key,
    (Name.REQUEUE, Guard.OWNER_GONE): _requeue_from_the_living,
    (Name.FORGET, Guard.ENDED_SAME): _forget_a_later_task,
}

GUARDS = [(name, guard) for name, row in TABLE.items() for guard in row.guards]


@pytest.mark.parametrize(("name", "guard"), GUARDS, ids=[f"{name}-{guard.name.lower()}" for name, guard in GUARDS])
async def test_each_guard_alone_keeps_a_wrong_write_out(etcd: Etcd, name: Name, guard: Guard) -> None:
    me = await join(etcd, NODE_A)
    async with open_store(etcd) as store:
        stale = await SITUATIONS[(name, guard)](etcd, store, me)
    assert stale.name is name
    before = await snapshot(etcd)

    refused = await etcd.txn(Txn(stale.compares, stale.writes, stale.reads))
    assert not refused.succeeded
    assert len(refused.results) == len(stale.reads)
    assert await snapshot(etcd) == before

    place = TABLE[name].guards.index(guard)
    without = stale.compares[:place] + stale.compares[place + 1 :]
    unguarded = await etcd.txn(Txn(without, stale.writes, stale.reads))
    assert unguarded.succeeded, "another guard covers this situation: it does not test this one"
    assert await snapshot(etcd) != before


async def test_whole_life_keeps_record_and_index_together(etcd: Etcd) -> None:
    """Submit, claim, give back, claim, cancel, confirm: read at every revision of it."""
    me = await join(etcd, NODE_A)
    start = (await etcd.range(Range(b"/"))).revision
    async with open_store(etcd) as store:
        claim = await claimed(store, me)
        await _give_back(store, claim)
        again = await store.claim(await read_one(store, claim.task.id), me, now=NOW + 5, timeout_s=TIMEOUT_S)
        assert again is not None
        await store.cancel(again.task.id, now=NOW + 6, timeout_s=TIMEOUT_S)
        ended = await store.confirm_cancel(again, CANCELED, started_at=NOW + 5, now=NOW + 7, timeout_s=TIMEOUT_S)
    assert ended is not None
    end = (await etcd.range(Range(b"/"))).revision
    seen = []
    for revision in range(start + 1, end + 1):
        (task,) = status_agrees_with_record(await snapshot(etcd, revision)).values()
        seen.append((task.status, task.attempt, task.cancel_requested))
    assert seen == [
        (Status.QUEUED, 0, False),
        (Status.RUNNING, 1, False),
        (Status.QUEUED, 1, False),
        (Status.RUNNING, 2, False),
        (Status.RUNNING, 2, True),
        (Status.CANCELED, 2, True),
    ]
