"""Claims of one incarnation, in virtual time: nothing stays queued beside free capacity, nothing stays booked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from etcd import codec, keys, transitions
from etcd.errors import NoSpace, StoreError
from etcd.identity import Identity
from etcd.port import Delete, Op, Put, Range, Txn
from etcd.store import Claim, TaskStore, Versioned
from etcd.transitions import Transition
from node.core import lifecycle
from node.core.claim import ClaimPlan, Situation, plan_claims
from node.core.model import Status, Task
from node.core.queue_view import QueueView
from node.running.claimer import PAUSE_PER_OFFER_S
from tests.support.fake_etcd import Fault
from tests.support.fake_spawner import Shell, living, open_shell, use_the_loops_clock
from tests.support.tasks import GIVEN_BACK, NODE_A, NODE_B, NOW, TIMEOUT_S, join, new_task, read_one
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


def _has(op: object, wanted: type[Put] | type[Delete], key: bytes) -> bool:
    """Whether a transaction puts or deletes this key."""
    if isinstance(op, Txn):
        return any(_has(one, wanted, key) for one in op.success)
    return isinstance(op, wanted) and op.key == key


def _apply(shell: Shell, made: Transition) -> int:
    """As another client would, at once."""
    ops: tuple[Op, ...] = made.writes
    result = shell.etcd.store.transact(Txn(made.compares, ops, made.reads), shell.etcd.now())
    assert result.succeeded
    return result.revision


def _record(shell: Shell, task_id: str) -> tuple[Task, int]:
    (kv,) = shell.etcd.store.read(Range(keys.task(task_id))).kvs
    return codec.decode_task(kv.key, kv.value), kv.mod_revision


async def _submit(store: TaskStore, count: int) -> list[str]:
    tasks = [new_task() for _ in range(count)]
    for task in tasks:
        await store.submit(task, timeout_s=TIMEOUT_S)
    return [task.id for task in tasks]


@virtual_time
async def test_free_capacity_is_used_when_started_tasks_make_room_in_the_claim_window(tmp_path: Path) -> None:
    """Claims are held back while several are won and not started; their start must lead to the next look."""
    async with open_shell(tmp_path, cpu=16) as shell:
        shell.spawner.launch_takes_s = 0.05
        await _submit(shell.store, 16)
        async with living(shell):
            await wait_until(lambda: len(shell.spawner.alive) == 16, 60, what="16 endless tasks run on 16 CPUs")


@virtual_time
async def test_a_task_given_back_by_a_peer_while_it_was_being_claimed_is_claimed_again(tmp_path: Path) -> None:
    async with open_shell(tmp_path, cpu=2) as shell:
        peer = await join(shell.etcd, NODE_B)
        (task_id,) = await _submit(shell.store, 1)
        running, faults = keys.running_key(NODE_A, task_id), [Fault(error_after_s=0.5)]

        def peer_is_faster(_method: str, argument: object) -> Fault | None:
            """The first try of the claim gets lost; meanwhile a peer claims and gives back."""
            if not faults or not _has(argument, Put, running):
                return None
            task, revision = _record(shell, task_id)
            claimed = lifecycle.claim(task, node_id=peer.node_id, host_id=peer.host_id, now=NOW)
            fence = _apply(shell, transitions.claim(task, claimed, revision, peer))
            back = lifecycle.give_back(claimed, GIVEN_BACK, started_at=None, now=NOW)
            name = transitions.Name.GIVE_BACK
            _apply(
                shell,
                transitions.as_owner(name, claimed, back, mod_revision=fence, identity=peer, fence_revision=fence),
            )
            return faults.pop()

        shell.etcd.faults = peer_is_faster
        async with living(shell):
            await wait_until(lambda: task_id in shell.spawner.sandboxes, 60, what="the task runs here")


@virtual_time
async def test_news_of_the_queue_are_not_looked_at_one_by_one_where_looks_find_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a thousand offers takes a node a millisecond, and among many nodes news come faster than that."""
    looks: list[float] = []
    finds_nothing = True
    loop = asyncio.get_running_loop()

    def plan(view: QueueView, situation: Situation) -> ClaimPlan:
        looks.append(loop.time())
        return ClaimPlan(looked_at=1000) if finds_nothing else plan_claims(view, situation)

    monkeypatch.setattr("node.running.claimer.plan_claims", plan)
    async with open_shell(tmp_path, cpu=16) as shell, living(shell):
        began = loop.time()
        for task in [new_task() for _ in range(99)]:
            await shell.store.submit(task, timeout_s=TIMEOUT_S)
            await asyncio.sleep(0.001)
        took_s = loop.time() - began
        heard = [at for at in looks if at >= began]
        assert 5 < len(heard) <= took_s / (1000 * PAUSE_PER_OFFER_S) + 2
        assert not shell.spawner.alive
        finds_nothing = False
        await _submit(shell.store, 1)
        await wait_until(lambda: len(shell.spawner.alive) == 16, 5, what="the last news are looked at all the same")


@virtual_time
async def test_a_full_node_does_not_look_at_news_of_the_queue_and_takes_them_when_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a busy cluster most news come while a node is full, and none of them can matter then."""
    looks: list[int] = []

    def plan(view: QueueView, situation: Situation) -> ClaimPlan:
        looks.append(len(view))
        return plan_claims(view, situation)

    monkeypatch.setattr("node.running.claimer.plan_claims", plan)
    async with open_shell(tmp_path, cpu=2) as shell, living(shell):
        first = await _submit(shell.store, 2)
        await wait_until(lambda: len(shell.spawner.alive) == 2, what="it is full")
        await asyncio.sleep(1)
        looks.clear()
        for _ in range(50):
            await _submit(shell.store, 1)
            await asyncio.sleep(0.01)  # of virtual time: each is news of its own
        assert len(looks) <= 1, "the first may tell that there is no room"
        await shell.store.cancel(first[0], now=NOW, timeout_s=TIMEOUT_S)
        await wait_until(lambda: len(shell.spawner.alive) == 2 and len(looks) > 1, what="the next runs")
        assert max(looks) == 50, "it knew of all of them"


@virtual_time
async def test_a_record_read_ahead_is_not_used_after_the_queue_was_listed_again(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        peer = await join(shell.etcd, NODE_B)
        first, second, third = sorted(await _submit(shell.store, 3))
        async with living(shell):
            await wait_until(lambda: first in shell.spawner.sandboxes)
            await asyncio.sleep(1)
            task, revision = _record(shell, second)
            claimed = lifecycle.claim(task, node_id=peer.node_id, host_id=peer.host_id, now=NOW)
            fence = _apply(shell, transitions.claim(task, claimed, revision, peer))
            back = lifecycle.give_back(claimed, GIVEN_BACK, started_at=None, now=NOW)
            name = transitions.Name.GIVE_BACK
            _apply(
                shell,
                transitions.as_owner(name, claimed, back, mod_revision=fence, identity=peer, fence_revision=fence),
            )
            shell.etcd.store.compact(shell.etcd.store.revision)
            await asyncio.sleep(5)  # the watch fell behind the compaction: the queue is listed again
            shell.spawner.sandboxes[first].end()
            await wait_until(lambda: {second, third} & shell.spawner.sandboxes.keys() != set(), 60)
            for task_id in (third, second):
                if task_id in shell.spawner.sandboxes:
                    shell.spawner.sandboxes[task_id].end()
            await wait_until(lambda: {second, third} <= shell.spawner.sandboxes.keys(), 60, what="both ran")


@virtual_time
async def test_a_claim_lost_while_the_give_back_before_it_is_unsettled_leaves_nothing_booked(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        (task_id,) = await _submit(shell.store, 1)
        running = keys.running_key(NODE_A, task_id)
        #: The give back is applied, and its sender learns of it late.
        faults = [Fault(applied_after_s=0.0, error_after_s=1.0)]
        claims: list[str] = []

        def trouble(_method: str, argument: object) -> Fault | None:
            if _has(argument, Put, running):
                claims.append(task_id)
                if len(claims) == 2:  # somebody cancels it just before the second claim
                    task, revision = _record(shell, task_id)
                    _apply(shell, transitions.cancel_queued(task, lifecycle.cancel(task, now=NOW), revision))
            elif faults and _has(argument, Delete, running):
                return faults.pop()
            return None

        shell.etcd.faults = trouble
        async with living(shell):
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            shell.spawner.sandboxes[task_id].end(ended_by="fence", signal=9)
            await wait_until(lambda: len(claims) == 2, 60, what="claimed again")
            await wait_until(lambda: not shell.incarnation.runner.runs, 60, what="the run is over")
            assert (await read_one(shell.store, task_id)).task.status is Status.CANCELED
            assert len(shell.incarnation.ledger) == 0, "booked, and nobody is there to release it"


@virtual_time
async def test_a_claim_that_was_won_does_not_wait_for_those_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = TaskStore.claim_many, [0]

    async def some_are_refused(
        self: TaskStore,
        seen: Sequence[Versioned],
        identity: Identity,
        *,
        now: float,
        timeout_s: float,
        is_patient: bool,
    ) -> list[Claim | StoreError | None]:
        calls[0] += 1
        if calls[0] > 1:
            return await real(self, seen, identity, now=now, timeout_s=timeout_s, is_patient=is_patient)
        won = await real(self, seen[-1:], identity, now=now, timeout_s=timeout_s, is_patient=is_patient)
        return [*(NoSpace("full") for _ in seen[:-1]), *won]

    monkeypatch.setattr(TaskStore, "claim_many", some_are_refused)
    async with open_shell(tmp_path, cpu=4) as shell:
        await _submit(shell.store, 4)
        async with living(shell):
            await wait_until(lambda: calls[0] > 0)
            await asyncio.sleep(0.1)
            assert shell.spawner.sandboxes, "won, and not started while the others pause"
