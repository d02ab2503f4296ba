"""Several sweepers on one fake etcd, in virtual time: who sees to what a dead node has left, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from etcd import cluster_codec, codec, keys
from etcd.identity import Identity
from etcd.port import Put, Range, Txn
from etcd.store import TaskStore
from node.cluster.host_record import host_of
from node.cluster.sweeper import TICK_S, Sweeper
from node.core.model import Capacity, Host, Node, Status
from node.core.sweep import DEFAULT_DELAY_S, sweep_order
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_spawner import use_the_loops_clock
from tests.support.fake_store import FakeStore
from tests.support.tasks import NOW, claimed, leave, open_store, read_one
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


def node_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def host_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-00000000ffff"


@dataclass
class Peer:
    etcd: FakeEtcd
    store: TaskStore
    identity: Identity
    sweeper: Sweeper
    sweeping: asyncio.Task[None]

    @property
    def id(self) -> str:
        return self.identity.node_id

    async def die(self) -> None:
        """As kill -9: it does nothing more. Its key goes when the test says so."""
        self.sweeping.cancel()
        await asyncio.wait({self.sweeping})

    @property
    def asked(self) -> int:
        """Calls of etcd so far."""
        return len(self.etcd.calls)


class Cluster:
    def __init__(self) -> None:
        self.data = FakeStore()
        self.client = FakeEtcd(self.data)
        self.peers: dict[str, Peer] = {}

    async def register(self, number: int) -> Identity:
        node = Node(node_id(number), host_id(number), f"n{number}", Capacity(1, 1), "0", NOW)
        host = host_of(node, last_seen=NOW)
        puts = (
            Put(keys.node(node.id), codec.encode_node(node)),
            Put(keys.host_key(host.id), cluster_codec.encode_host(host)),
        )
        result = await self.client.txn(Txn((), puts))
        return Identity(node.id, node.host_id, result.revision)

    async def host(self, number: int) -> Host:
        (kv,) = (await self.client.range(Range(keys.host_key(host_id(number))))).kvs
        return cluster_codec.decode_host(kv.key, kv.value)

    def in_order(self, gone: str) -> list[Peer]:
        return [self.peers[peer] for peer in sweep_order(gone, self.peers)]


@asynccontextmanager
async def cluster_of(numbers: Iterable[int]) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        for number in numbers:
            etcd = await stack.enter_async_context(FakeEtcd(cluster.data))
            store = await stack.enter_async_context(open_store(etcd))
            identity = await cluster.register(number)
            sweeper = Sweeper(etcd, store, identity)
            sweeping = asyncio.create_task(sweeper.run())
            peer = cluster.peers[identity.node_id] = Peer(etcd, store, identity, sweeper, sweeping)
            stack.push_async_callback(peer.die)
        await wait_until(
            lambda: all(peer.sweeper.nodes.keys() == cluster.peers.keys() for peer in cluster.peers.values()),
            what="all see all",
        )
        yield cluster


def set_wall_clock(patch: pytest.MonkeyPatch, now_s: float) -> None:
    clock = SimpleNamespace(time=lambda: now_s, monotonic=now)
    patch.setattr("node.cluster.sweeper.time", clock)


def now() -> float:
    return asyncio.get_running_loop().time()


async def orphan_of(cluster: Cluster, number: int, tasks: int = 1) -> tuple[str, list[str]]:
    """A node without a sweeper that has claimed so many tasks."""
    identity = await cluster.register(number)
    async with open_store(cluster.client) as store:
        return identity.node_id, [(await claimed(store, identity)).task.id for _ in range(tasks)]


async def statuses(cluster: Cluster, task_ids: list[str]) -> set[Status]:
    async with open_store(cluster.client) as store:
        return {(await read_one(store, task_id)).task.status for task_id in task_ids}


@virtual_time
async def test_one_of_many_requeues_and_at_once() -> None:
    async with cluster_of(range(1, 13)) as cluster:
        gone, tasks = await orphan_of(cluster, 99, tasks=20)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        await asyncio.sleep(1)  # they have looked at their start
        before = {peer.id: peer.asked for peer in cluster.peers.values()}
        died_at = now()
        await leave(cluster.client, gone)
        await asyncio.sleep(DEFAULT_DELAY_S / 2)
        assert await statuses(cluster, tasks) == {Status.QUEUED}
        first, *others = cluster.in_order(gone)
        assert first.asked > before[first.id]
        assert [peer.asked - before[peer.id] for peer in others] == [0] * len(others)
        # Later the others ask once whether anything is left, and then no more.
        await asyncio.sleep(died_at + 4 * DEFAULT_DELAY_S + 0.1 - now())
        quiet = [peer for peer in others if peer.id not in sweep_order("tick", cluster.peers)[:2]]
        assert all(1 <= peer.asked - before[peer.id] <= 2 for peer in quiet)


@virtual_time
async def test_when_the_first_dies_in_between_the_next_does_it_after_the_delay() -> None:
    """The first is dead and its key still there: nobody knows of it yet."""
    async with cluster_of(range(1, 9)) as cluster:
        gone, tasks = await orphan_of(cluster, 99)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        first = cluster.in_order(gone)[0]
        await first.die()
        died_at = now()
        await leave(cluster.client, gone)
        await asyncio.sleep(died_at + DEFAULT_DELAY_S - 0.1 - now())
        assert await statuses(cluster, tasks) == {Status.RUNNING}
        await asyncio.sleep(0.2)
        assert await statuses(cluster, tasks) == {Status.QUEUED}


@virtual_time
async def test_when_the_first_is_known_dead_too_the_next_does_it_at_once() -> None:
    async with cluster_of(range(1, 9)) as cluster:
        gone, tasks = await orphan_of(cluster, 99)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        first = cluster.in_order(gone)[0]
        await first.die()
        await leave(cluster.client, gone)
        await asyncio.sleep(0.1)
        assert await statuses(cluster, tasks) == {Status.RUNNING}
        await leave(cluster.client, first.id)
        await asyncio.sleep(0.1)
        assert await statuses(cluster, tasks) == {Status.QUEUED}


@virtual_time
async def test_a_requeue_that_was_cut_short_is_finished_by_the_next() -> None:
    """The first goes after some of the tasks."""
    async with cluster_of(range(1, 6)) as cluster:
        gone, tasks = await orphan_of(cluster, 99, tasks=150)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        first = cluster.in_order(gone)[0]
        txns = 0

        def dies(method: str, argument: object) -> Fault | None:
            nonlocal txns
            if method == "txn" and isinstance(argument, Txn) and any(isinstance(op, Txn) for op in argument.success):
                txns += 1
                return LOST_BEFORE if txns > 1 else None
            return None

        first.etcd.faults = dies
        await leave(cluster.client, gone)
        await asyncio.sleep(0.5)
        await first.die()
        other = cluster.in_order(gone)[1]
        left = [task for task in tasks if (await read_one(other.store, task)).task.status is Status.RUNNING]
        assert 0 < len(left) < len(tasks), "the first was to be cut off in the middle"
        await asyncio.sleep(DEFAULT_DELAY_S)
        assert {(await read_one(other.store, task)).task.status for task in tasks} == {Status.QUEUED}


@virtual_time
async def test_a_death_that_nobody_heard_of_is_found_by_the_slow_tick() -> None:
    async with cluster_of(range(1, 9)) as cluster:
        identity = Identity(node_id(99), host_id(99), 0)
        result = await cluster.client.txn(Txn((), (Put(keys.node(identity.node_id), b"here"),)))  # nobody can read it
        async with open_store(cluster.client) as store:
            task = (await claimed(store, Identity(identity.node_id, identity.host_id, result.revision))).task.id
        await leave(cluster.client, identity.node_id)
        await asyncio.sleep(TICK_S + 4 * DEFAULT_DELAY_S)
        assert await statuses(cluster, [task]) == {Status.QUEUED}


@virtual_time
async def test_two_see_to_the_slow_tick_and_the_others_ask_nothing() -> None:
    async with cluster_of(range(1, 9)) as cluster:
        await asyncio.sleep(1)
        before = {peer.id: peer.asked for peer in cluster.peers.values()}
        await asyncio.sleep(5 * TICK_S)
        asked = {peer.id for peer in cluster.peers.values() if peer.asked > before[peer.id]}
        assert asked == set(sweep_order("tick", cluster.peers)[:2])


@virtual_time
async def test_the_hosts_record_tells_since_when_its_node_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster_of(range(1, 6)) as cluster:
        set_wall_clock(monkeypatch, NOW + 77)
        gone, _ = await orphan_of(cluster, 99)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        await leave(cluster.client, gone)
        await wait_until(lambda: not any(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        set_wall_clock(monkeypatch, NOW + 99)
        await asyncio.sleep(3 * DEFAULT_DELAY_S)
        host = await cluster.host(99)
        assert (host.node_id, host.last_seen) == (gone, NOW + 77)


@virtual_time
async def test_a_host_that_is_back_is_not_told_gone() -> None:
    """Its next node registers before the peer whose turn it is gets to note the end of the last one."""
    async with cluster_of(range(1, 6)) as cluster:
        gone, _ = await orphan_of(cluster, 99)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        await cluster.in_order(gone)[0].die()
        await leave(cluster.client, gone)
        again = Node(node_id(100), host_id(99), "n99", Capacity(1, 1), "0", NOW)
        record = cluster_codec.encode_host(host_of(again, last_seen=NOW + 1))
        await cluster.client.txn(Txn((), (Put(keys.host_key(host_id(99)), record),)))
        await asyncio.sleep(5 * DEFAULT_DELAY_S)
        assert (await cluster.host(99)).node_id == again.id


@virtual_time
async def test_an_unknown_outcome_of_the_note_is_settled() -> None:
    async with cluster_of(range(1, 4)) as cluster:
        gone, tasks = await orphan_of(cluster, 99)
        await wait_until(lambda: all(gone in peer.sweeper.nodes for peer in cluster.peers.values()))
        for peer in cluster.peers.values():
            peer.etcd.faults = lambda method, argument: (
                LOST_AFTER if method == "txn" and isinstance(argument, Txn) and len(argument.success) == 1 else None
            )
        await leave(cluster.client, gone)
        await asyncio.sleep(1)
        for peer in cluster.peers.values():
            peer.etcd.faults = lambda _method, _argument: None
        await asyncio.sleep(20)
        assert (await cluster.host(99)).last_seen != NOW
        assert await statuses(cluster, tasks) == {Status.QUEUED}
        assert not any(peer.sweeper._gone for peer in cluster.peers.values())
