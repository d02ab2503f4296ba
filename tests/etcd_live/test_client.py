"""The client against a real etcd that is killed, frozen and compacted under it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from etcd.client import EtcdClient
from etcd.errors import NoSpace, OutcomeUnknown, StoreUnavailable
from etcd.maintenance import Maintenance
from etcd.port import Compare, KeyRange, Put, Range, Relation, Target, Txn, WatchBatch
from etcd.watch import Listing, list_and_watch
from tests.support.etcd_process import EtcdProcess, etcd_running
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import wait_until

pytestmark = pytest.mark.etcd

ALL = KeyRange(b"/", b"0")


async def put(client: EtcdClient, key: bytes, value: bytes = b"", timeout_s: float = 3.0) -> int:
    return (await client.txn(Txn((), (Put(key, value),)), timeout_s=timeout_s)).revision


async def insert(client: EtcdClient, key: bytes) -> bool:
    """Puts a key that is not there; True when this call did it for sure."""
    absent = Compare(key, Target.CREATE, Relation.EQUAL, 0)
    return (await client.txn(Txn((absent,), (Put(key),)), timeout_s=1.0)).succeeded


class Follower:
    """Follows a range in the background and remembers every event, in order."""

    def __init__(self, batches: AsyncIterator[WatchBatch]) -> None:
        self.events: list[tuple[int, bytes]] = []
        self._batches = batches

    async def run(self) -> None:
        async for batch in self._batches:
            self.events += [(event.kv.mod_revision, event.kv.key) for event in batch.events]


async def test_kill_9_loses_nothing_that_was_acknowledged_and_the_watch_misses_nothing(own_etcd: EtcdProcess) -> None:
    acknowledged: list[bytes] = []
    unknown: list[bytes] = []
    stop = asyncio.Event()

    async def writer(client: EtcdClient, name: int) -> None:
        for i in range(100_000):
            if stop.is_set():
                return
            key = f"/w/{name}/{i:06}".encode()
            try:
                await insert(client, key)
                acknowledged.append(key)
            except OutcomeUnknown:
                unknown.append(key)
                await asyncio.sleep(0.02)

    async with own_etcd.client() as client, own_etcd.client() as watcher, watcher.watch([ALL]) as batches:
        follower = Follower(batches)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follower.run())
            writers = [group.create_task(writer(client, name)) for name in range(8)]
            for _ in range(3):
                so_far = len(acknowledged)
                await wait_until(lambda n=so_far: len(acknowledged) > n + 300, what="writes go through")
                own_etcd.kill()
                own_etcd.start()
            so_far = len(acknowledged)
            await wait_until(lambda: len(acknowledged) > so_far + 300, what="writes go through again")
            stop.set()
            await asyncio.wait(writers)
            await put(client, b"/end")
            await wait_until(lambda: any(key == b"/end" for _, key in follower.events), what="the watch is up to date")
            following.cancel()
        stored = {kv.key for kv in (await client.range(Range(b"/w/", b"/w0", keys_only=True))).kvs}
    assert unknown, "the kills hit no write: the test proves nothing"
    assert set(acknowledged) <= stored
    assert stored <= set(acknowledged) | set(unknown)
    seen = [key for _, key in follower.events if key != b"/end"]
    assert len(seen) == len(set(seen)), "an event came twice"
    assert set(seen) == stored
    revisions = [revision for revision, _ in follower.events]
    assert revisions == sorted(revisions)


async def test_a_frozen_etcd_is_noticed_in_seconds_and_the_watch_goes_on_after(own_etcd: EtcdProcess) -> None:
    async with own_etcd.client() as client, client.watch([ALL]) as batches:
        follower = Follower(batches)
        following = asyncio.create_task(follower.run())
        await put(client, b"/a")
        await wait_until(lambda: len(follower.events) == 1, what="the first event")
        own_etcd.freeze()
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await put(client, b"/b", timeout_s=1.0)
        with pytest.raises(StoreUnavailable):
            await client.range(Range(b"/a"), timeout_s=1.0)
        assert time.monotonic() - started < 8
        own_etcd.thaw()
        await put(client, b"/c")
        await wait_until(lambda: _count(follower, b"/c") == 1, what="the watch goes on")
        following.cancel()


def _count(follower: Follower, key: bytes) -> int:
    return sum(1 for _, seen in follower.events if seen == key)


async def test_an_idle_watch_notices_a_silent_network_and_goes_on_elsewhere(etcd_process: EtcdProcess) -> None:
    """keepalive_time 6 s and ping timeout 2 s end the stream; without these it would stay silent for minutes."""
    async with TcpProxy(etcd_process.address) as proxy:
        endpoints = [proxy.address, etcd_process.address]
        async with EtcdClient(endpoints, etcd_process.tls) as client, client.watch([ALL]) as batches:
            follower = Follower(batches)
            following = asyncio.create_task(follower.run())
            proxy.swallow()
            async with etcd_process.client() as other:
                await put(other, b"/while-cut")
            await wait_until(lambda: _count(follower, b"/while-cut") == 1, 20, what="it came by the other way")
            following.cancel()


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_a_dead_endpoint_is_passed_over(etcd_process: EtcdProcess) -> None:
    """Reads go on by themselves; a write is told as unknown once, and its repetition goes elsewhere."""
    endpoints = [unused_address(), etcd_process.address]
    async with EtcdClient(endpoints, etcd_process.tls) as client:
        assert (await client.range(Range(b"/a"))).count == 0
    async with EtcdClient(endpoints, etcd_process.tls) as client:
        with pytest.raises(OutcomeUnknown):
            await put(client, b"/a")
        await put(client, b"/a")
    async with EtcdClient(endpoints, etcd_process.tls) as client, client.watch([ALL]) as batches:
        async with etcd_process.client() as other:
            await put(other, b"/b")
        assert [event.kv.key for event in (await asyncio.wait_for(anext(batches), 20)).events] == [b"/b"]
    async with EtcdClient(endpoints, etcd_process.tls) as client:
        client.use_next_endpoint()
        await put(client, b"/c")


async def test_a_port_that_is_no_etcds_any_more_is_passed_over(etcd_process: EtcdProcess) -> None:
    """A node of ours may have the port on which a member was: grpc, the same authority, and no etcd."""
    tls = etcd_process.tls
    stranger = grpc.aio.server()
    papers = [(tls.key.read_bytes(), tls.cert.read_bytes())]
    port = stranger.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(papers, tls.ca.read_bytes(), True))
    await stranger.start()
    endpoints = [f"127.0.0.1:{port}", etcd_process.address]
    try:
        async with EtcdClient(endpoints, tls) as client:
            assert (await client.range(Range(b"/a"))).count == 0
        async with EtcdClient(endpoints, tls) as client:
            with pytest.raises(StoreUnavailable):  # definite: nothing was written
                await put(client, b"/a")
            await put(client, b"/a")
        async with EtcdClient(endpoints, tls) as client, client.watch([ALL]) as batches:
            async with etcd_process.client() as other:
                await put(other, b"/b")
            assert [event.kv.key for event in (await asyncio.wait_for(anext(batches), 20)).events] == [b"/b"]
    finally:
        await stranger.stop(None)


async def test_a_hundred_failures_at_once_rotate_once(etcd_process: EtcdProcess) -> None:
    """Otherwise an even number of failures would lead back to the dead member."""
    endpoints = [unused_address(), etcd_process.address]
    async with EtcdClient(endpoints, etcd_process.tls) as client:
        results = await asyncio.gather(*(put(client, b"/%d" % i) for i in range(100)), return_exceptions=True)
        assert all(isinstance(result, OutcomeUnknown) for result in results)
        await put(client, b"/a")


async def test_no_spinning_while_etcd_is_down(own_etcd: EtcdProcess) -> None:
    """A client that re-opens its watch in a loop without a pause takes a whole core (as others do)."""
    async with own_etcd.client() as client:
        async with contextlib.AsyncExitStack() as stack:
            followers = []
            for _ in range(5):
                watch = await stack.enter_async_context(client.watch([ALL]))
                followers.append(asyncio.create_task(Follower(watch).run()))
            own_etcd.kill()
            before, started = _cpu_s(), time.monotonic()
            await asyncio.sleep(3.0)  # the thing measured is what happens in this time
            used = (_cpu_s() - before) / (time.monotonic() - started)
            for follower in followers:
                assert not follower.done()
                follower.cancel()
        assert used < 0.5, f"{used:.2f} of a core while etcd is down"


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def test_a_replay_and_a_listing_over_4_mib_pass(etcd_process: EtcdProcess) -> None:
    async with etcd_process.client() as client:
        before = (await client.status()).revision
        for i in range(8):
            await client.txn(Txn((), tuple(Put(f"/big/{i}/{j}".encode(), bytes(10_000)) for j in range(100))))
        listed = await client.range(Range(b"/big/", b"/big0"))
        assert sum(len(kv.value) for kv in listed.kvs) == 8_000_000
        events = 0
        async with client.watch([ALL], start_revision=before + 1) as batches, asyncio.timeout(30):
            while events < 800:
                events += len((await anext(batches)).events)
        assert events == 800


async def test_a_follower_that_fell_behind_a_compaction_lists_again(etcd_process: EtcdProcess) -> None:
    news: list[Listing | WatchBatch] = []

    async def follow(client: EtcdClient) -> None:
        async for new in list_and_watch(client, ALL):
            news.append(new)

    async with (
        TcpProxy(etcd_process.address) as proxy,
        EtcdClient([proxy.address], etcd_process.tls) as client,
        etcd_process.client() as other,
    ):
        await put(other, b"/a")
        following = asyncio.create_task(follow(client))
        await wait_until(lambda: len(news) == 1, what="the first listing")
        await put(other, b"/b")
        await wait_until(lambda: len(news) == 2, what="the first event")
        proxy.refuse()
        await put(other, b"/c")
        newest = await put(other, b"/c")
        await other.compact(newest)
        proxy.pass_()
        await wait_until(lambda: _knows(news) == {b"/a", b"/b", b"/c"}, what="it knows all keys")
        await put(other, b"/d")
        await wait_until(lambda: b"/d" in _knows(news), what="and follows on")
        following.cancel()
    assert [type(new) for new in news] == [Listing, WatchBatch, Listing, WatchBatch]
    order = [new.revision for new in news]
    assert order == sorted(set(order))


def _knows(news: list[Listing | WatchBatch]) -> set[bytes]:
    keys: set[bytes] = set()
    for new in news:
        if isinstance(new, Listing):
            keys = {kv.key for kv in new.kvs}
        else:
            keys |= {event.kv.key for event in new.events}
    return keys


async def test_closing_the_client_ends_watches_and_calls_with_our_errors(own_etcd: EtcdProcess) -> None:
    client = own_etcd.client()
    async with client.watch([ALL]) as batches:
        waiting = asyncio.create_task(Follower(batches).run())
        own_etcd.freeze()
        calling = asyncio.create_task(put(client, b"/a", timeout_s=30))
        reading = asyncio.create_task(client.range(Range(b"/a"), timeout_s=30))
        await asyncio.sleep(0.1)  # all three are under way
        await client.close()
        for task, error in ((waiting, StoreUnavailable), (calling, OutcomeUnknown), (reading, StoreUnavailable)):
            with pytest.raises(error):
                await asyncio.wait_for(task, 10)
    with pytest.raises(StoreUnavailable):
        await client.range(Range(b"/a"))


async def test_canceling_a_call_cancels_the_caller(own_etcd: EtcdProcess) -> None:
    async with own_etcd.client() as client:
        own_etcd.freeze()
        for call in (put(client, b"/a", timeout_s=30), client.range(Range(b"/a"), timeout_s=30)):
            task = asyncio.create_task(call)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_entering_a_watch_without_etcd_ends_in_time(own_etcd: EtcdProcess) -> None:
    own_etcd.kill()
    async with own_etcd.client() as client:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            async with client.watch([ALL], timeout_s=1.0):
                pass
        assert time.monotonic() - started < 10


async def test_a_full_etcd_refuses_writes_and_the_upkeep_heals_it() -> None:
    quota = 16 << 20
    with etcd_running(quota_bytes=quota) as process:
        await process.wait_ready()
        async with process.client() as client:
            lease = await client.lease_grant(60)
            with pytest.raises(NoSpace):
                for _ in range(100):
                    await put(client, b"/same", bytes(1_000_000))
            assert [alarm.kind for alarm in await client.alarms()] == ["NOSPACE"]
            with pytest.raises(NoSpace):
                await put(client, b"/a")
            with pytest.raises(NoSpace):
                await client.lease_grant(60)
            async with client.keep_alive(lease.id) as stream:
                await stream.ping()
                assert (await stream.answer()).ttl_s == 60
            upkeep = Maintenance(client, quota_bytes=quota)
            duty = asyncio.create_task(upkeep.run())
            await wait_until(lambda: upkeep.status is not None and not upkeep.is_filling_up, 40, what="healed")
            duty.cancel()
            await put(client, b"/a")
            assert await client.alarms() == ()
            status = await client.status()
            assert status.db_size_bytes < quota // 2
