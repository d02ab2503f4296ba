"""The batcher: groups, isolation of errors, unknown outcomes, deadlines, cancelled callers, the end.

Run against a real etcd too, by tests/etcd_live/test_batcher_live.py, where they do not depend on the fake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from random import Random
from typing import Any, cast

import pytest
import pytest_asyncio

from etcd import keys, transitions
from etcd.batcher import Applied, Batcher, Lost
from etcd.errors import InvalidRequest, NoSpace, OutcomeUnknown, RequestTooLarge, StoreError, StoreUnavailable
from etcd.port import Delete, Etcd, Put, Range, Txn, TxnResult
from etcd.transitions import Name, Transition
from node.core.model import TaskSpec
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_store import FakeStore
from tests.support.tasks import TIMEOUT_S, key_value, new_task, snapshot
from tests.support.virtual_time import run_virtual
from tests.support.wait import wait_until


class Recorder:
    """Another etcd: notes the transactions, and holds them back while the gate is closed."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.txns: list[Txn] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        self.txns.append(txn)
        await self.gate.wait()
        return await self._etcd.txn(txn, timeout_s=timeout_s)

    @property
    def sizes(self) -> list[int]:
        """Transitions in each RPC."""
        return [sum(isinstance(op, Txn) for op in txn.success) or 1 for txn in self.txns]


@pytest_asyncio.fixture
async def etcd() -> AsyncIterator[Etcd]:
    async with FakeEtcd() as fake:
        yield fake


@pytest.fixture
def recorder(etcd: Etcd) -> Recorder:
    return Recorder(etcd)


@pytest_asyncio.fixture
async def batcher(recorder: Recorder) -> AsyncIterator[Batcher]:
    async with Batcher(cast("Etcd", recorder), random=Random(1)) as opened:
        yield opened


def submits(count: int) -> list[Transition]:
    return [transitions.submit(new_task()) for _ in range(count)]


def big_submit(size_bytes: int) -> Transition:
    return transitions.submit(new_task(TaskSpec("/bin/cat", stdin=b"x" * size_bytes)))


async def apply_all(batcher: Batcher, items: Iterable[Transition]) -> list[Applied | Lost | BaseException]:
    """By many callers at once."""
    return await asyncio.gather(*(batcher.apply(item, timeout_s=TIMEOUT_S) for item in items), return_exceptions=True)


# -- groups ---------------------------------------------------------------------------------------------------------


async def test_alone_it_goes_out_at_once_and_flat(batcher: Batcher, recorder: Recorder) -> None:
    (transition,) = submits(1)
    answer = await batcher.apply(transition, timeout_s=TIMEOUT_S)
    assert isinstance(answer, Applied)
    assert recorder.txns == [Txn(transition.compares, transition.writes, transition.reads)]


async def test_those_of_one_moment_share_a_call(batcher: Batcher, recorder: Recorder, etcd: Etcd) -> None:
    items = submits(100)
    answers = await apply_all(batcher, items)
    assert recorder.sizes == [100]
    assert {type(answer) for answer in answers} == {Applied}
    written = await key_value(etcd, keys.task(items[7].task_id))
    assert written is not None
    assert cast("Applied", answers[7]).revision == written.mod_revision


async def test_groups_form_under_load(batcher: Batcher, recorder: Recorder) -> None:
    await apply_all(batcher, submits(1000))
    assert sum(recorder.sizes) == 1000
    assert max(recorder.sizes) == 100
    assert len(recorder.sizes) <= 20


async def test_latecomers_wait_for_company_and_not_for_the_answer(batcher: Batcher, recorder: Recorder) -> None:
    """Beside an RPC that hangs a single item goes out after the linger time, not when that RPC returns."""
    recorder.gate.clear()
    first = asyncio.create_task(apply_all(batcher, submits(1)))
    await wait_until(lambda: len(recorder.txns) == 1)
    second = asyncio.create_task(apply_all(batcher, submits(3)))
    await wait_until(lambda: len(recorder.txns) == 2)
    assert recorder.sizes == [1, 3]
    recorder.gate.set()
    assert len(await first + await second) == 4


async def test_no_more_calls_in_flight_than_allowed(recorder: Recorder) -> None:
    recorder.gate.clear()
    async with Batcher(cast("Etcd", recorder), max_items=10, in_flight=3) as batcher:
        callers = asyncio.create_task(apply_all(batcher, submits(100)))
        await wait_until(lambda: len(recorder.txns) >= 3)
        # A linger's time and more: a fourth would have gone out by now.
        await asyncio.sleep(0.01)
        assert len(recorder.txns) == 3
        recorder.gate.set()
        assert {type(answer) for answer in await callers} == {Applied}


async def test_a_batch_is_bounded_in_bytes(recorder: Recorder) -> None:
    async with Batcher(cast("Etcd", recorder), max_bytes=10_000) as batcher:
        answers = await apply_all(batcher, [big_submit(3_000) for _ in range(9)])
    assert {type(answer) for answer in answers} == {Applied}
    assert max(recorder.sizes) == 3


async def test_a_task_is_once_in_a_batch(batcher: Batcher, recorder: Recorder, etcd: Etcd) -> None:
    """The same key twice fails a whole RPC: the second of a task waits, its neighbours do not."""
    items = submits(100)
    answers = await apply_all(batcher, [*items[:50], items[0], items[0], *items[50:]])
    assert recorder.sizes[0] == 100
    assert sum(recorder.sizes) == 102
    assert [type(answer) for answer in answers].count(Lost) == 2
    assert len(await snapshot(etcd)) == 200


async def test_each_gets_its_own_answer(batcher: Batcher, etcd: Etcd) -> None:
    there = submits(3)
    await apply_all(batcher, there)
    new = submits(3)
    mixed = [there[0], new[0], there[1], new[1], there[2], new[2]]
    answers = await apply_all(batcher, mixed)
    assert [type(answer) for answer in answers] == [Lost, Applied] * 3
    for transition, answer in zip(mixed[::2], answers[::2], strict=True):
        assert isinstance(answer, Lost)
        (record,) = answer.reads
        assert [kv.value for kv in record.kvs] == [transition.record]


async def test_many_of_one_call_in_order(batcher: Batcher, recorder: Recorder) -> None:
    items = submits(1500)
    items[700] = items[3]
    drawn = 0

    def draw() -> Iterable[Transition]:
        nonlocal drawn
        for item in items:
            drawn += 1
            yield item

    recorder.gate.clear()
    call = asyncio.create_task(batcher.apply_many(draw(), timeout_s=TIMEOUT_S))
    await wait_until(lambda: len(recorder.txns) == 4)
    assert drawn <= 400, "they are drawn as they are sent"
    recorder.gate.set()
    answers = await call
    assert len(answers) == 1500
    assert [place for place, answer in enumerate(answers) if isinstance(answer, Lost)] == [700]


# -- isolation ------------------------------------------------------------------------------------------------------


async def test_one_too_large_fails_alone(batcher: Batcher, etcd: Etcd) -> None:
    items = submits(100)
    items[42] = big_submit(2_000_000)
    answers = await apply_all(batcher, items)
    assert isinstance(answers[42], RequestTooLarge)
    assert [type(answer) for answer in answers].count(Applied) == 99
    assert len(await snapshot(etcd)) == 198


async def test_one_invalid_fails_alone(batcher: Batcher, recorder: Recorder, etcd: Etcd) -> None:
    """Two puts of one key, which no transition makes: etcd refuses the whole batch, and it is halved."""
    items = submits(100)
    key = keys.task(items[17].task_id)
    items[17] = Transition(Name.SUBMIT, items[17].task_id, (), (Put(key, b"1"), Put(key, b"2")), (), (), b"1")
    answers = await apply_all(batcher, items)
    assert isinstance(answers[17], InvalidRequest)
    assert [type(answer) for answer in answers].count(Applied) == 99
    assert len(await snapshot(etcd)) == 198
    assert len(recorder.txns) <= 1 + 2 * 7, "halving, not one by one"


async def test_without_space_deletes_still_go_through() -> None:
    store = FakeStore()
    async with FakeEtcd(store) as etcd, Batcher(etcd) as batcher:
        there = submits(5)
        await apply_all(batcher, there)
        store.has_no_space_alarm = True
        deletes = [
            Transition(
                Name.FORGET,
                t.task_id,
                compares=(),
                writes=(Delete(keys.task(t.task_id)), Delete(keys.queued_key(t.task_id))),
                reads=(),
                reads_applied=(),
                record=b"",
            )
            for t in there
        ]
        etcd.calls.clear()
        answers = await apply_all(batcher, [*submits(40), *deletes, *submits(40)])
        assert [type(answer) for answer in answers] == [NoSpace] * 40 + [Applied] * 5 + [NoSpace] * 40
        assert len(etcd.calls) == 3, "a full etcd is not asked again for every one: refused, read, deleted"
        assert await snapshot(etcd) == {}


async def test_no_space_may_be_said_of_what_was_applied(etcd: Etcd) -> None:
    """etcd applies what reaches it while it is filling up, and reports it as failed; the next it refuses. (Seen: 21
    tasks stored of which 16 were acknowledged.)"""

    class Filling(Recorder):
        """Applies the first transaction that puts, and says no space to all of them."""

        is_full = False

        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            if "Put" not in repr(txn):
                return await super().txn(txn, timeout_s=timeout_s)
            if not self.is_full:
                self.is_full = True
                await super().txn(txn, timeout_s=timeout_s)
            raise NoSpace("etcdserver: mvcc: database space exceeded")

    taken, *items = submits(20)
    await etcd.txn(Txn(success=taken.writes))
    async with Batcher(cast("Etcd", Filling(etcd)), max_items=10) as batcher:
        answers = await apply_all(batcher, [taken, *items])
    # The first ten were in one batch. The one that was there before has the same record, and so is its own.
    assert [type(answer) for answer in answers] == [Applied] * 10 + [NoSpace] * 10
    written = await snapshot(etcd)
    for transition, answer in zip([taken, *items], answers, strict=True):
        assert (keys.task(transition.task_id) in written) is isinstance(answer, Applied)


async def test_no_space_and_no_answer_to_the_read_is_unknown(etcd: Etcd) -> None:
    class Gone(Recorder):
        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            raise NoSpace("full") if "Put" in repr(txn) else StoreUnavailable("gone")

    async with Batcher(cast("Etcd", Gone(etcd))) as batcher:
        answers = await apply_all(batcher, submits(3))
    assert [type(answer) for answer in answers] == [OutcomeUnknown] * 3


# -- unknown outcomes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
async def test_unknown_is_sent_again_until_it_is_answered(fault: Fault) -> None:
    async with FakeEtcd() as etcd, Batcher(etcd, random=Random(1)) as batcher:
        faults = [fault, fault, fault]
        etcd.faults = lambda method, _: faults.pop() if method == "txn" and faults else None
        answers = await apply_all(batcher, submits(10))
        kind = Lost if fault is LOST_AFTER else Applied
        assert {type(answer) for answer in answers} == {kind}
        assert len(etcd.calls) == 4
        assert len(await snapshot(etcd)) == 20


async def test_never_answered_is_unknown_at_the_deadline() -> None:
    async with FakeEtcd() as etcd, Batcher(etcd, rpc_timeout_s=0.05) as batcher:
        etcd.is_cut = True
        with pytest.raises(OutcomeUnknown):
            await batcher.apply(submits(1)[0], timeout_s=0.3)
        assert len(etcd.calls) >= 2
        sent = len(etcd.calls)
        etcd.is_cut = False
        (answer,) = await apply_all(batcher, submits(1))
        assert isinstance(answer, Applied)
        assert len(etcd.calls) <= sent + 2, "what is past its deadline is not sent again"
        assert len(await snapshot(etcd)) == 2


async def test_the_first_try_is_given_up_sooner() -> None:
    """What a dead leader took along is never answered; the next one is there before an RPC's usual time is up."""
    async with FakeEtcd() as etcd, Batcher(etcd, rpc_timeout_s=1000.0, first_timeout_s=0.05) as batcher:
        etcd.is_cut = True
        waiting = asyncio.create_task(batcher.apply(submits(1)[0], timeout_s=TIMEOUT_S))
        await wait_until(lambda: bool(etcd.calls))
        etcd.is_cut = False
        assert isinstance(await waiting, Applied)


def test_a_slow_etcd_is_not_sent_everything_twice() -> None:
    """The short tries have several times what the slowest answer of late took."""

    async def two_answers() -> int:
        async with FakeEtcd() as etcd, Batcher(etcd, rpc_timeout_s=60.0, first_timeout_s=1.0) as batcher:
            etcd.latency = lambda: 0.9
            await apply_all(batcher, submits(1))
            etcd.latency = lambda: 0.0
            etcd.is_cut = True
            asyncio.get_running_loop().call_later(3.0, setattr, etcd, "is_cut", False)
            await apply_all(batcher, submits(1))
            return len(etcd.calls)

    assert run_virtual(two_answers()) == 2


async def test_a_short_deadline_does_not_shorten_its_neighbours() -> None:
    async with FakeEtcd() as etcd, Batcher(etcd, rpc_timeout_s=0.2) as batcher:
        etcd.is_cut = True
        short, long = submits(2)
        patient = asyncio.create_task(batcher.apply(long, timeout_s=TIMEOUT_S))
        with pytest.raises(OutcomeUnknown):
            await batcher.apply(short, timeout_s=0.1)
        assert not patient.done()
        etcd.is_cut = False
        assert isinstance(await patient, Applied)
        # The short one's outcome stays unknown: the call that carried both may have got through with both.
        assert await key_value(etcd, keys.task(long.task_id)) is not None


async def test_never_sent_is_told_apart_from_unknown(recorder: Recorder, etcd: Etcd) -> None:
    recorder.gate.clear()
    async with Batcher(cast("Etcd", recorder), in_flight=1) as batcher:
        sent = asyncio.create_task(apply_all(batcher, submits(1)))
        await wait_until(lambda: len(recorder.txns) == 1)
        with pytest.raises(StoreUnavailable):
            await batcher.apply(submits(1)[0], timeout_s=0.05)
        recorder.gate.set()
        assert isinstance((await sent)[0], Applied)
    assert len(await snapshot(etcd)) == 2


async def test_a_full_queue_makes_callers_wait(recorder: Recorder) -> None:
    recorder.gate.clear()
    async with Batcher(cast("Etcd", recorder), in_flight=1, max_items=10, max_waiting=10) as batcher:
        callers = asyncio.create_task(apply_all(batcher, submits(30)))
        await wait_until(lambda: len(recorder.txns) == 1)
        with pytest.raises(StoreUnavailable, match="full"):
            await batcher.apply(submits(1)[0], timeout_s=0.05)
        recorder.gate.set()
        assert {type(answer) for answer in await callers} == {Applied}


# -- cancelled callers, closing, bugs -------------------------------------------------------------------------------


async def test_a_cancelled_caller_leaves_its_neighbours_alone(recorder: Recorder, etcd: Etcd) -> None:
    recorder.gate.clear()
    async with Batcher(cast("Etcd", recorder), in_flight=1) as batcher:
        first = [asyncio.create_task(batcher.apply(item, timeout_s=TIMEOUT_S)) for item in submits(5)]
        await wait_until(lambda: len(recorder.txns) == 1)
        waiting = submits(5)
        second = [asyncio.create_task(batcher.apply(item, timeout_s=TIMEOUT_S)) for item in waiting]
        await asyncio.sleep(0)
        first[2].cancel()
        second[2].cancel()
        await asyncio.wait([first[2], second[2]])
        recorder.gate.set()
        for task in [*first[:2], *first[3:], *second[:2], *second[3:]]:
            assert isinstance(await task, Applied)
    assert recorder.sizes == [5, 4], "one that waits is taken out, one that was sent cannot be"
    assert await key_value(etcd, keys.task(waiting[2].task_id)) is None


async def test_cancelled_in_the_middle_of_many(recorder: Recorder) -> None:
    recorder.gate.clear()
    async with Batcher(cast("Etcd", recorder)) as batcher:
        call = asyncio.create_task(batcher.apply_many(submits(1000), timeout_s=TIMEOUT_S))
        await wait_until(lambda: len(recorder.txns) == 4)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        recorder.gate.set()
        (answer,) = await apply_all(batcher, submits(1))
        assert isinstance(answer, Applied)
        assert sum(recorder.sizes) <= 401


async def test_closing_tells_everybody(recorder: Recorder) -> None:
    recorder.gate.clear()
    async with Batcher(cast("Etcd", recorder), in_flight=1) as batcher:
        sent = asyncio.create_task(apply_all(batcher, submits(2)))
        await wait_until(lambda: len(recorder.txns) == 1)
        unsent = asyncio.create_task(apply_all(batcher, submits(2)))
        await asyncio.sleep(0)
    assert [type(answer) for answer in await sent] == [OutcomeUnknown] * 2
    assert [type(answer) for answer in await unsent] == [StoreUnavailable] * 2
    with pytest.raises(StoreUnavailable):
        await batcher.apply(submits(1)[0], timeout_s=1)


async def test_a_bug_reaches_those_who_wait(etcd: Etcd) -> None:
    class Broken(Recorder):
        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            raise ZeroDivisionError

    async with Batcher(cast("Etcd", Broken(etcd))) as batcher:
        answers = await apply_all(batcher, submits(3))
        assert [type(answer) for answer in answers] == [ZeroDivisionError] * 3


# -- reads ----------------------------------------------------------------------------------------------------------


async def test_reads_share_a_call_and_are_no_writes(batcher: Batcher, recorder: Recorder, etcd: Etcd) -> None:
    items = submits(5)
    await apply_all(batcher, items)
    before = (await etcd.range(Range(b"/"))).revision
    recorder.txns.clear()
    absent = keys.task(new_task().id)
    answers = await asyncio.gather(
        *(batcher.read([Range(keys.task(t.task_id)), Range(absent)], timeout_s=TIMEOUT_S) for t in items)
    )
    assert len(recorder.txns) == 1
    assert not any(isinstance(op, Txn) for op in recorder.txns[0].success), "nested ranges would go through etcd's log"
    for transition, (found, nothing) in zip(items, answers, strict=True):
        assert [kv.value for kv in found.kvs] == [transition.record]
        assert nothing.kvs == ()
    assert (await etcd.range(Range(b"/"))).revision == before


async def test_reads_beyond_one_call_are_split_and_one_too_wide_is_refused(
    batcher: Batcher, recorder: Recorder
) -> None:
    await asyncio.gather(*(batcher.read([Range(b"/x")] * 60, timeout_s=TIMEOUT_S) for _ in range(5)))
    assert len(recorder.txns) == 5
    with pytest.raises(ValueError, match="at most"):
        await batcher.read([Range(b"/x")] * 101, timeout_s=TIMEOUT_S)
    assert await batcher.read([], timeout_s=TIMEOUT_S) == ()


async def test_a_read_without_answer_is_unavailable() -> None:
    async with FakeEtcd() as etcd, Batcher(etcd, rpc_timeout_s=0.05) as batcher:
        etcd.is_cut = True
        with pytest.raises(StoreUnavailable):
            await batcher.read([Range(b"/x")], timeout_s=0.2)


async def test_errors_are_the_ports() -> None:
    """A batch whose RPC fails for good in another way tells each caller."""

    class Refusing(Recorder):
        async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
            self.txns.append(txn)
            raise StoreError("no")

    async with FakeEtcd() as fake:
        refusing = Refusing(fake)
        async with Batcher(cast("Etcd", refusing)) as batcher:
            answers = await apply_all(batcher, submits(4))
        assert [type(answer) for answer in answers] == [StoreError] * 4
