"""All watch calls of a node on one watch of etcd: nothing lost, nothing twice, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from etcd import keys
from etcd.port import Delete, Put, Txn
from node.api import shared_watch
from node.api.shared_watch import LINGER_S, REST_S, SharedWatch
from node.api.watch import WatchCall
from pilfer.v1 import records_pb2, tasks_pb2
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import virtual_time

QUEUED, RUNNING, COMPLETE = (
    records_pb2.TASK_STATUS_QUEUED,
    records_pb2.TASK_STATUS_RUNNING,
    records_pb2.TASK_STATUS_COMPLETE,
)
IDS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(200)]
#: Virtual seconds in which everything that can happen has happened.
LONG_S = 5.0


def put(number: int, status: records_pb2.TaskStatus, label: str = "") -> Put:
    spec = records_pb2.TaskSpec(command="true", labels={"l": label} if label else None, stdin=b"not told")
    task = records_pb2.Task(id=IDS[number], status=status, spec=spec)
    return Put(keys.task(IDS[number]), task.SerializeToString())


class Aborted(Exception):  # noqa: N818  (what grpc's own abort does to a call)
    pass


class Context:
    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    async def abort(self, code: grpc.StatusCode, _message: str, _metadata: object) -> None:
        self.code = code
        raise Aborted


class Call:
    """One watch call and what it was told."""

    def __init__(self, watch: WatchCall, request: tasks_pb2.WatchRequest, pause_s: Callable[[], float]) -> None:
        self.request = request
        self.context = Context()
        self.messages: list[tasks_pb2.WatchResponse] = []
        self._pause_s = pause_s
        self._task = asyncio.create_task(self._run(watch))

    async def _run(self, watch: WatchCall) -> None:
        with contextlib.suppress(Aborted):
            async with contextlib.aclosing(watch.Watch(self.request, self.context)) as responses:
                async for response in responses:
                    self.messages.append(response)
                    if pause_s := self._pause_s():
                        await asyncio.sleep(pause_s)

    @property
    def responses(self) -> list[tasks_pb2.WatchResponse]:
        return [response for message in self.messages for response in message.group or (message,)]

    @property
    def told(self) -> list[tuple[int, str, int]]:
        return [(r.revision, r.task.id, r.task.status) for r in self.responses if not r.ready]

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        assert self._task.cancelled() or self._task.exception() is None


class Place:
    """A node's watches, with a hand on what lies below."""

    def __init__(self) -> None:
        self.etcd = FakeEtcd()
        self.shared = SharedWatch(self.etcd)
        self.watch = WatchCall(self.etcd, self.shared)
        self.calls: list[Call] = []
        self._duty: asyncio.Task[None] | None = None

    async def write(self, *ops: Put | Delete) -> int:
        return (await self.etcd.txn(Txn(success=ops))).revision

    async def call(
        self, *numbers: int, pause_s: Callable[[], float] = lambda: 0.0, until_it_stands: bool = True, **options: object
    ) -> Call:
        request = tasks_pb2.WatchRequest(ids=[IDS[number] for number in numbers], **options)  # type: ignore[arg-type]  # named fields
        call = Call(self.watch, request, pause_s)
        self.calls.append(call)
        if until_it_stands:
            await asyncio.sleep(LONG_S)
            assert any(response.ready for response in call.responses)
        return call

    @property
    def watches(self) -> int:
        """Those that etcd has now."""
        return len(self.etcd.watches)

    def start(self) -> None:
        self._duty = asyncio.create_task(self.shared.run())

    async def stop(self) -> None:
        if self._duty is not None:
            self._duty.cancel()
            await asyncio.wait([self._duty])
            assert self._duty.cancelled(), self._duty.exception()
            self._duty = None


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Place]:
    """Leaves nothing behind, whatever happened."""
    place = Place()
    async with place.etcd:
        place.start()
        await place.write(*(put(number, QUEUED) for number in range(100)))
        await place.write(*(put(number, QUEUED) for number in range(100, len(IDS))))
        try:
            yield place
        finally:
            for call in place.calls:
                await call.end()
            assert place.watches <= 1, "a call that ended has left its watch"
            await asyncio.sleep(LINGER_S + 1)
            assert place.watches == 0, "a call that ended still follows"
            await place.stop()


@virtual_time
async def test_many_calls_have_one_watch_which_goes_when_nobody_needs_it() -> None:
    async with opened() as place:
        assert place.watches == 0
        calls = [await place.call(1), await place.call(2, 3, ended_only=True), await place.call()]
        assert place.watches == 1
        first = await place.write(put(1, RUNNING), put(2, RUNNING))
        second = await place.write(put(2, COMPLETE))
        await asyncio.sleep(LONG_S)
        assert calls[0].told[1:] == [(first, IDS[1], RUNNING)]
        assert calls[1].told == [(second, IDS[2], COMPLETE)]
        assert calls[2].told == [(first, IDS[1], RUNNING), (first, IDS[2], RUNNING), (second, IDS[2], COMPLETE)]
        assert not any(response.task.spec.stdin for call in calls for response in call.responses)
        for call in calls:
            await call.end()
        await asyncio.sleep(LINGER_S - 1)
        assert place.watches == 1
        again = await place.call(4)
        await asyncio.sleep(LINGER_S + 1)
        assert place.watches == 1
        await again.end()
        await asyncio.sleep(LINGER_S + 1)
        assert place.watches == 0
        assert (await place.call(5)).told == [(2, IDS[5], QUEUED)]


@virtual_time
async def test_from_a_revision_by_a_watch_of_its_own_until_it_has_caught_up() -> None:
    async with opened() as place:
        await place.call()
        await place.write(put(1, RUNNING))
        late = await place.call(from_revision=2)
        assert len(late.told) == len(IDS) + 1
        assert place.watches == 1
        revision = await place.write(put(1, COMPLETE))
        await asyncio.sleep(LONG_S)
        assert late.told[-2:] == [(4, IDS[1], RUNNING), (revision, IDS[1], COMPLETE)]


@virtual_time
async def test_a_slow_call_goes_on_by_itself_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_watch, "QUEUE_MAX", 5)
    async with opened() as place:
        is_slow = True
        slow = await place.call(pause_s=lambda: 100.0 if is_slow else 0.0)
        quick = await place.call()
        await asyncio.sleep(100)
        for number in range(50):
            await place.write(put(number, RUNNING))
        is_slow = False
        await asyncio.sleep(1000)
        assert slow.told == quick.told
        assert len(quick.told) == 50
        await place.write(put(1, COMPLETE))
        await asyncio.sleep(LONG_S)
        assert place.watches == 1
        assert slow.told == quick.told


@virtual_time
async def test_few_ids_among_too_much_else_are_watched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_watch, "WASTE_MAX", 10)
    async with opened() as place:
        narrow = await place.call(1)
        for number in range(2, 90):
            await place.write(put(number, RUNNING))
        await place.write(put(1, RUNNING))
        await asyncio.sleep(LONG_S)
        await place.call(2)
        assert place.watches == 2
        assert all(len(watch._ranges) == 1 and not watch._ranges[0].range_end for watch in place.etcd.watches)
        wide = await place.call()
        assert place.watches == 3
        revision = await place.write(put(1, COMPLETE))
        await asyncio.sleep(LONG_S)
        assert [status for _, _, status in narrow.told] == [QUEUED, RUNNING, COMPLETE]
        assert wide.told == [(revision, IDS[1], COMPLETE)]
        await asyncio.sleep(REST_S)
        await place.call(3)
        assert place.watches == 3, "the watch that stands for the wide call serves this one"


@virtual_time
async def test_what_ended_while_etcd_was_out_of_reach_is_told() -> None:
    async with opened() as place:
        waiting = await place.call(1, ended_only=True)
        place.etcd.is_cut = True
        place.etcd.store.transact(Txn(success=(put(1, COMPLETE),)), 0.0)
        await asyncio.sleep(LONG_S)
        assert waiting.told == []
        place.etcd.is_cut = False
        await asyncio.sleep(LONG_S)
        assert waiting.told == [(4, IDS[1], COMPLETE)]


@virtual_time
async def test_a_call_that_missed_what_was_compacted_is_told_so_and_the_next_is_served() -> None:
    async with opened() as place:
        calls = [await place.call(1), await place.call()]
        place.etcd.is_cut = True
        for _ in range(3):
            place.etcd.store.transact(Txn(success=(put(1, RUNNING),)), 0.0)
        place.etcd.store.compact(place.etcd.store.revision)
        place.etcd.is_cut = False
        await asyncio.sleep(LONG_S)
        assert [call.context.code for call in calls] == [grpc.StatusCode.OUT_OF_RANGE] * 2
        assert (await place.call(1)).told == [(6, IDS[1], RUNNING)]


@virtual_time
async def test_without_etcd_a_call_fails_in_time_and_nothing_is_tried_on() -> None:
    async with opened() as place:
        place.etcd.is_cut = True
        call = await place.call(1, until_it_stands=False)
        gone = await place.call(2, until_it_stands=False)
        await asyncio.sleep(1)
        await gone.end()
        await asyncio.sleep(10)
        assert call.context.code is grpc.StatusCode.UNAVAILABLE
        assert not place.shared._asked.is_set()
        place.etcd.is_cut = False
        assert (await place.call(1)).told == [(2, IDS[1], QUEUED)]


@virtual_time
async def test_calls_go_on_without_the_shared_watch() -> None:
    async with opened() as place:
        calls = [await place.call(1), await place.call()]
        await place.stop()
        revision = await place.write(put(1, RUNNING))
        await asyncio.sleep(LONG_S)
        assert place.watches == 2
        assert [call.told[-1] for call in calls] == [(revision, IDS[1], RUNNING)] * 2
        assert len((await place.call(2)).told) == 1


@virtual_time
async def test_under_load_transitions_come_in_groups_and_a_lone_one_at_once() -> None:
    async with opened() as place:
        grouped, single = await place.call(grouped=True), await place.call()
        for number in [*range(100)] * 5:
            await place.write(put(number, RUNNING))
            await asyncio.sleep(0.001)
        await asyncio.sleep(LONG_S)
        assert len(single.messages) == 501
        assert len(grouped.messages) < 150
        assert grouped.told == single.told
        await place.write(put(1, COMPLETE))
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        assert grouped.messages[-1].task.status == COMPLETE


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_each_call_is_told_each_transition_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_watch, "QUEUE_MAX", 8)
    monkeypatch.setattr(shared_watch, "WASTE_MAX", 20)
    monkeypatch.setattr(shared_watch, "REST_S", 2.0)
    monkeypatch.setattr(shared_watch, "SLICE", 2)

    @virtual_time
    async def run() -> None:
        rng = random.Random(seed)
        async with opened() as place:
            place.etcd.latency = lambda: rng.choice([0.0, 0.0, 0.001, 0.1])
            for _ in range(150):
                await _happen(place, rng)
                await asyncio.sleep(rng.choice([0.0, 0.0, 0.001, 0.01, 0.3]))
            place.etcd.is_cut = False
            await asyncio.sleep(300)
            for call in place.calls:
                _check(place, call)
            assert any(call.told for call in place.calls)

    run()


async def _happen(place: Place, rng: random.Random) -> None:
    kind = rng.random()
    if kind < 0.1 and len(place.calls) < 12:
        numbers = rng.sample(range(len(IDS)), rng.choice([0, 0, 1, 2, 150]))
        options: dict[str, object] = {"grouped": rng.random() < 0.5}
        if rng.random() < 0.3:
            options["labels"] = {"l": "a"}
        if rng.random() < 0.3:
            options["ended_only"] = True
        if rng.random() < 0.3:
            options["from_revision"] = rng.randint(1, place.etcd.store.revision + 1)
        slowness = rng.choice([0.0, 0.0, 0.2])
        await place.call(*numbers, pause_s=lambda: rng.random() * slowness, until_it_stands=False, **options)
    elif kind < 0.15:
        place.etcd.is_cut = not place.etcd.is_cut
    elif kind < 0.2:
        await place.stop()
        place.start()
    else:
        changed = rng.sample(range(len(IDS)), rng.choice([1, 1, 3, 20]))
        ops = [
            put(number, rng.choice([QUEUED, RUNNING, COMPLETE]), rng.choice(["", "a", "b"]))
            if rng.random() < 0.97
            else Delete(keys.task(IDS[number]))
            for number in changed
        ]
        place.etcd.store.transact(Txn(success=tuple(ops)), 0.0)


def _check(place: Place, call: Call) -> None:
    """Against etcd's own history."""
    if call.context.code is not None:
        assert call.context.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)
        return
    request = call.request
    (ready,) = (response for response in call.responses if response.ready)
    has_present = bool(request.ids) and not request.HasField("from_revision")
    present = [] if not has_present else _present(call)
    since = {response.task.id: response.revision for response in present}
    expected = []
    for change in place.etcd.store.history(1):
        for event in change.events:
            task_id = keys.parse_task(event.kv.key)
            if request.ids and task_id not in request.ids:
                continue
            if change.revision <= (ready.revision - 1 if not has_present else since.get(task_id, ready.revision - 1)):
                continue
            task = records_pb2.Task.FromString(event.kv.value)
            is_told = (not request.ended_only or task.status == COMPLETE) and (
                not request.labels or task.spec.labels.get("l") == "a"
            )
            if event.is_delete or is_told:
                expected.append((change.revision, task_id))
    told = [(r.revision, r.task.id) for r in call.responses if not r.ready][len(present) :]
    assert len(told) == len(set(told)), "told twice"
    assert sorted(told) == sorted(expected)
    if not 0 < len(request.ids) <= 64:
        assert [revision for revision, _ in told] == sorted(revision for revision, _ in told)


def _present(call: Call) -> list[tasks_pb2.WatchResponse]:
    """The present states that a call with ids was told first."""
    if call.request.ended_only:
        number = next(number for number, response in enumerate(call.responses) if response.ready)
        return call.responses[:number]
    return call.responses[1 : 1 + len(call.request.ids)]
