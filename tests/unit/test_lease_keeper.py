"""The lease keeper on a fake etcd that loses answers, falls silent, and forgets.

Time is virtual: the loop's, and so the fake's and the keeper's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from etcd import cluster_codec, keys
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.port import Delete, Put, Range, Txn
from node.cluster.host_record import HostInUse, NodeRemoved
from node.cluster.lease_keeper import LeaseKeeper
from node.core.fence import MARGIN_S
from node.core.model import Capacity, Host, Removal
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault, applied_later
from tests.support.fake_store import FakeStore
from tests.support.tasks import HOST, NODE_A, NOW
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until

TTL_S = 2.0


class Cluster:
    """One store; every client the keeper makes is remembered, in order."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.clients: list[FakeEtcd] = []
        self.deadlines: list[float] = []
        #: Unix time, as the host's record has it.
        self.wall_s = NOW
        self.faults: Callable[[str, object], Fault | None] = lambda _method, _argument: None

    def make(self) -> FakeEtcd:
        client = FakeEtcd(self.store)
        client.faults = self._fault
        self.clients.append(client)
        return client

    def _fault(self, method: str, argument: object) -> Fault | None:
        return self.faults(method, argument)

    def keeper(self, ttl_s: float = TTL_S) -> LeaseKeeper:
        return LeaseKeeper(
            self.make,
            ttl_s=ttl_s,
            host_id=HOST,
            record=lambda node_id: node_id.encode(),
            host=lambda node_id: Host(HOST, "a", "a:1", node_id, "0", Capacity(1, 1), self.wall_s),
            key=keys.node,
            on_deadline=self.deadlines.append,
            clock=lambda: asyncio.get_running_loop().time(),
        )

    async def nodes(self) -> list[str]:
        async with FakeEtcd(self.store) as client:
            return [kv.value.decode() for kv in (await client.range(Range(b"/node/", b"/node0"))).kvs]


@asynccontextmanager
async def kept(keeper: LeaseKeeper) -> AsyncIterator[asyncio.Task[str]]:
    """Keeps a joined lease in the background, and leaves at the end."""
    task = asyncio.create_task(keeper.keep())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        await keeper.leave(revoke=True)


def once(method: str, fault: Fault, times: int = 1) -> Callable[[str, object], Fault | None]:
    """That fault for the first calls of that method."""
    left = [times]

    def faults(called: str, _argument: object) -> Fault | None:
        if called != method or not left[0]:
            return None
        left[0] -= 1
        return fault

    return faults


@pytest.mark.parametrize("method", ["lease_grant", "txn"])
@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER, applied_later(0.01), applied_later(0.2)], ids=str)
@pytest.mark.parametrize("times", [1, 3])
@virtual_time
async def test_joining_settles_every_unknown_outcome(method: str, fault: Fault, times: int) -> None:
    """Whatever was lost on the way: one key, ours, on our lease, with the create_revision that is told."""
    cluster = Cluster()
    cluster.faults = once(method, fault, times)
    keeper = cluster.keeper(ttl_s=30)
    identity = await keeper.join(10)
    await asyncio.sleep(0.25)  # what was to be applied later has been
    assert await cluster.nodes() == [identity.node_id]
    async with FakeEtcd(cluster.store) as client:
        (kv,) = (await client.range(Range(b"/node/", b"/node0"))).kvs
    assert (kv.create_revision, kv.mod_revision, kv.lease) == (
        identity.node_key_revision,
        identity.node_key_revision,
        keeper.lease_id,
    )
    await keeper.leave(revoke=True)
    assert await cluster.nodes() == []


@virtual_time
async def test_joining_begins_anew_when_its_lease_ran_out_meanwhile() -> None:
    cluster = Cluster()
    down_until = asyncio.get_running_loop().time() + TTL_S + 0.3

    def faults(method: str, _argument: object) -> Fault | None:
        return LOST_BEFORE if method == "txn" and asyncio.get_running_loop().time() < down_until else None

    cluster.faults = faults
    keeper = cluster.keeper()
    identity = await keeper.join(20)
    assert await cluster.nodes() == [identity.node_id]
    assert not keeper.is_at_risk
    await keeper.leave(revoke=True)


@virtual_time
async def test_joining_gives_up_in_time() -> None:
    cluster = Cluster()
    cluster.faults = once("lease_grant", LOST_BEFORE, 10_000)
    keeper = cluster.keeper()
    with pytest.raises(StoreError):
        await asyncio.wait_for(keeper.join(0.3), 5)
    await keeper.leave(revoke=True)


async def joined(cluster: Cluster, ttl_s: float = TTL_S) -> tuple[LeaseKeeper, Identity]:
    keeper = cluster.keeper(ttl_s)
    return keeper, await keeper.join(10)


@virtual_time
async def test_the_lease_outlives_its_ttl_and_the_deadline_moves() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster)
    async with kept(keeper):
        first = cluster.deadlines[0]
        await wait_until(lambda: cluster.deadlines[-1] > first + TTL_S, what="the deadline moves on")
        assert await cluster.nodes() == [identity.node_id]
        assert not keeper.is_at_risk
        assert len(cluster.clients) == 1, "no second connection while all is well"
    assert await cluster.nodes() == []


@virtual_time
async def test_silence_of_the_first_connection_is_made_up_by_a_second_one() -> None:
    """The network swallows what goes over the first connection; new ones work. The lease never comes near its end."""
    cluster = Cluster()
    keeper, identity = await joined(cluster)
    async with kept(keeper) as keeping:
        first = cluster.clients[0]
        await wait_until(lambda: "txn" in first.calls and len(first.lease_streams) == 1, what="its stream")
        first.is_cut = True
        cut_at = asyncio.get_running_loop().time()
        at_risk = []
        while asyncio.get_running_loop().time() < cut_at + 3 * TTL_S:
            at_risk.append(keeper.is_at_risk)
            await asyncio.sleep(0.02)
        assert not any(at_risk)
        assert not keeping.done()
        assert await cluster.nodes() == [identity.node_id]
        assert len(cluster.clients) > 1
        first.is_cut = False
        made = len(cluster.clients)
        await wait_until(lambda: not cluster.clients[made - 1].lease_streams, what="the second stream is given up")


@virtual_time
async def test_all_silent_puts_it_at_risk_and_the_first_answer_tells_the_loss() -> None:
    cluster = Cluster()
    keeper, _ = await joined(cluster)
    async with kept(keeper) as keeping:
        cut = [True]

        def faults(method: str, _argument: object) -> Fault | None:
            return LOST_BEFORE if cut[0] and method in ("ping", "watch") else None

        await wait_until(lambda: len(cluster.clients[0].watches) == 1, what="the watch stands")
        for client in cluster.clients:
            client.is_cut = True
        cluster.faults = faults
        deadline = cluster.deadlines[-1]
        await wait_until(lambda: keeper.is_at_risk, 10, what="at risk")
        assert asyncio.get_running_loop().time() >= deadline
        assert not keeping.done()
        await wait_until(lambda: not cluster.store._leases, 10, what="etcd has ended the lease")
        cut[0] = False
        for client in cluster.clients:
            client.is_cut = False
        assert await asyncio.wait_for(keeping, 10)
        assert keeper.is_at_risk


@virtual_time
async def test_a_deleted_key_ends_it_though_the_pings_are_answered() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster, ttl_s=30)
    async with kept(keeper) as keeping:
        async with FakeEtcd(cluster.store) as other:
            await other.txn(Txn((), (Delete(f"/node/{identity.node_id}".encode()),)))
        assert "deleted" in await asyncio.wait_for(keeping, 5)


@virtual_time
async def test_a_key_deleted_and_compacted_away_unseen_is_noticed() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster, ttl_s=30)
    async with FakeEtcd(cluster.store) as other:
        key = f"/node/{identity.node_id}".encode()
        await other.txn(Txn((), (Delete(key),)))
        newest = await other.txn(Txn((), (Put(key, b"somebody else's"),)))
        await other.compact(newest.revision)
    async with kept(keeper) as keeping:
        assert "deleted" in await asyncio.wait_for(keeping, 5)


@virtual_time
async def test_compaction_alone_is_no_loss() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster, ttl_s=30)
    async with FakeEtcd(cluster.store) as other:
        newest = await other.txn(Txn((), (Put(b"/other"),)))
        await other.compact(newest.revision)
    async with kept(keeper) as keeping:
        await wait_until(lambda: bool(cluster.clients[0].watches), what="the watch stands again")
        assert not keeping.done()
        async with FakeEtcd(cluster.store) as other:
            await other.txn(Txn((), (Delete(f"/node/{identity.node_id}".encode()),)))
        assert await asyncio.wait_for(keeping, 5)


@virtual_time
async def test_broken_streams_are_opened_again() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster)
    async with kept(keeper) as keeping:
        for _ in range(5):
            await wait_until(lambda: bool(cluster.clients[0].lease_streams), what="a stream")
            cluster.clients[0].break_streams()
            await asyncio.sleep(0.05)
        broken_until = asyncio.get_running_loop().time()
        await wait_until(lambda: cluster.deadlines[-1] > broken_until + TTL_S - MARGIN_S, what="pings are answered")
        assert not keeping.done()
        assert await cluster.nodes() == [identity.node_id]


@virtual_time
async def test_leaving_without_etcd_ends_in_time() -> None:
    cluster = Cluster()
    keeper, _ = await joined(cluster)
    for client in cluster.clients:
        client.is_cut = True
    await asyncio.wait_for(keeper.leave(revoke=True), 10)


@virtual_time
async def test_canceling_at_any_moment_leaves_nothing_running() -> None:
    for pause_s in (0.0, 0.001, 0.01, 0.1, 0.6):
        cluster = Cluster()
        keeper, _ = await joined(cluster)
        before = asyncio.all_tasks()
        keeping = asyncio.create_task(keeper.keep())
        await asyncio.sleep(pause_s)
        keeping.cancel()
        await asyncio.wait({keeping})
        assert keeping.cancelled()
        assert asyncio.all_tasks() == before
        assert not any(client.lease_streams or client.watches for client in cluster.clients)
        await keeper.leave(revoke=True)


# -- one node per host


async def host_in(cluster: Cluster) -> Host:
    async with FakeEtcd(cluster.store) as client:
        (kv,) = (await client.range(Range(keys.host_key(HOST)))).kvs
        return cluster_codec.decode_host(kv.key, kv.value)


async def put(cluster: Cluster, key: bytes, value: bytes, lease: int = 0) -> None:
    async with FakeEtcd(cluster.store) as client:
        await client.txn(Txn((), (Put(key, value, lease),)))


def last_run(node_id: str) -> bytes:
    return cluster_codec.encode_host(Host(HOST, "a", "a:1", node_id, "0", Capacity(1, 1), NOW - 100))


@virtual_time
async def test_joining_writes_the_hosts_record_at_the_revision_of_the_key() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster)
    async with FakeEtcd(cluster.store) as client:
        (kv,) = (await client.range(Range(keys.host_key(HOST)))).kvs
    assert (kv.mod_revision, kv.lease) == (identity.node_key_revision, 0)
    assert (await host_in(cluster)).node_id == identity.node_id
    await keeper.leave(revoke=True)


@virtual_time
async def test_an_ordered_end_notes_when_the_host_was_last_seen() -> None:
    cluster = Cluster()
    keeper, identity = await joined(cluster)
    cluster.wall_s += 500
    await keeper.leave(revoke=True)
    host = await host_in(cluster)
    assert (host.node_id, host.last_seen) == (identity.node_id, NOW + 500)


@virtual_time
async def test_an_ordered_end_leaves_the_record_of_the_hosts_next_node_alone() -> None:
    cluster = Cluster()
    keeper, _ = await joined(cluster)
    await put(cluster, keys.host_key(HOST), last_run(NODE_A))
    await keeper.leave(revoke=True)
    assert (await host_in(cluster)).node_id == NODE_A


@virtual_time
async def test_a_removed_host_gets_no_lease() -> None:
    cluster = Cluster()
    await put(cluster, keys.removed_key(HOST), cluster_codec.encode_removal(Removal("a", NOW)))
    keeper = cluster.keeper()
    with pytest.raises(NodeRemoved, match="removed"):
        await keeper.join(10)
    assert await cluster.nodes() == []
    await keeper.leave(revoke=True)


@virtual_time
async def test_a_removal_between_look_and_registration_keeps_the_node_out() -> None:
    cluster = Cluster()

    def removes(method: str, _argument: object) -> Fault | None:
        if method == "lease_grant":
            removal = cluster_codec.encode_removal(Removal("a", NOW))
            cluster.store.transact(Txn((), (Put(keys.removed_key(HOST), removal),)), 0)
        return None

    cluster.faults = removes
    keeper = cluster.keeper()
    with pytest.raises(NodeRemoved):
        await keeper.join(10)
    assert await cluster.nodes() == []
    await keeper.leave(revoke=True)


@virtual_time
async def test_a_copied_data_directory_is_refused_when_a_last_runs_lease_must_have_run_out() -> None:
    cluster = Cluster()
    first, identity = await joined(cluster)
    async with kept(first):
        second = cluster.keeper()
        began = asyncio.get_running_loop().time()
        with pytest.raises(HostInUse, match="a:1"):
            await second.join(1)
        assert asyncio.get_running_loop().time() - began >= second.in_use_patience_s
        assert await cluster.nodes() == [identity.node_id]
        assert (await host_in(cluster)).node_id == identity.node_id
        await second.leave(revoke=True)


@virtual_time
async def test_the_next_start_waits_for_the_lease_of_a_run_that_was_killed() -> None:
    cluster = Cluster()
    first, old = await joined(cluster)
    await first.leave(revoke=False)
    second, new = await joined(cluster)
    assert await cluster.nodes() == [new.node_id]
    assert new.node_id != old.node_id
    assert (await host_in(cluster)).node_id == new.node_id
    await second.leave(revoke=True)


@virtual_time
async def test_of_two_copies_that_start_together_one_gets_in() -> None:
    """Both look, and find the host free; one registration loses to the other's."""
    cluster = Cluster()
    await put(cluster, keys.host_key(HOST), last_run(NODE_A))
    keepers = [cluster.keeper() for _ in range(2)]

    async def live(keeper: LeaseKeeper) -> None:
        await keeper.join(10)
        await keeper.keep()

    lives = [asyncio.create_task(live(keeper)) for keeper in keepers]
    (refused,), (living,) = await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(refused.exception(), HostInUse)
    assert await cluster.nodes() == [(await host_in(cluster)).node_id]
    living.cancel()
    await asyncio.wait({living})
    for keeper in keepers:
        await keeper.leave(revoke=True)


@virtual_time
async def test_a_record_that_nobody_can_read_is_written_anew() -> None:
    cluster = Cluster()
    await put(cluster, keys.host_key(HOST), b"\xff\xff")
    keeper, identity = await joined(cluster)
    assert (await host_in(cluster)).node_id == identity.node_id
    await keeper.leave(revoke=True)
