"""The session against a real etcd: the deadline moves, stops, and the loss is noticed."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from etcd.client import EtcdClient
from etcd.errors import StoreError
from etcd.port import Compare, Delete, Put, Range, Relation, Target, Txn
from node.cluster.host_record import HostInUse
from node.cluster.session import LINGER_S, NodeHung, Session, boottime
from node.core.fence import MARGIN_S
from node.core.model import Capacity, Host
from tests.support.etcd_process import EtcdProcess
from tests.support.tasks import HOST, NOW
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import wait_until

pytestmark = pytest.mark.etcd

TTL_S = 3.0


class Deadlines:
    """Collects what the session tells, and in which thread."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.threads: set[int] = set()

    def __call__(self, deadline: float) -> None:
        self.told.append(deadline)
        self.threads.add(threading.get_ident())

    @property
    def newest(self) -> float:
        return self.told[-1]


def key(node_id: str) -> bytes:
    return f"/node/{node_id}".encode()


def make_session(
    make_etcd: Callable[[], EtcdClient], deadlines: Callable[[float], None], ttl_s: float = TTL_S
) -> Session:
    return Session(
        make_etcd,
        ttl_s=ttl_s,
        host_id=HOST,
        record=lambda node_id: b"record of " + node_id.encode(),
        host=lambda node_id: Host(HOST, "a", "", node_id, "0", Capacity(1, 1), NOW),
        key=key,
        on_deadline=deadlines,
    )


@asynccontextmanager
async def opened(
    process: EtcdProcess, deadlines: Callable[[float], None], ttl_s: float = TTL_S
) -> AsyncIterator[Session]:
    session = make_session(process.client, deadlines, ttl_s)
    await session.open(10)
    try:
        yield session
    finally:
        await session.close()


async def test_opens_with_a_leased_key_and_closes_without(etcd_process: EtcdProcess, etcd_client: EtcdClient) -> None:
    deadlines = Deadlines()
    before = boottime()
    session = make_session(etcd_process.client, deadlines)
    identity = await session.open(10)
    (kv,) = (await etcd_client.range(Range(key(identity.node_id)))).kvs
    assert kv.create_revision == identity.node_key_revision
    assert kv.lease == session.lease_id
    assert kv.value == b"record of " + identity.node_id.encode()
    assert identity.host_id == HOST
    assert before + TTL_S - MARGIN_S <= deadlines.told[0] <= boottime() + TTL_S - MARGIN_S
    assert not session.is_at_risk
    await session.close()
    assert (await etcd_client.range(Range(key(identity.node_id)))).kvs == ()
    await session.close()


async def test_close_without_revoking_leaves_the_key_to_its_lease(
    etcd_process: EtcdProcess, etcd_client: EtcdClient
) -> None:
    session = make_session(etcd_process.client, Deadlines())
    identity = await session.open(10)
    await session.close(revoke=False)
    assert (await etcd_client.range(Range(key(identity.node_id)))).count == 1
    await etcd_client.lease_revoke(session.lease_id)


async def test_an_event_that_comes_just_after_the_client_was_closed_is_heard(
    etcd_process: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As grpc's of a cancelled call does: one for a loop that is closed would hold up those of the node's."""
    heard = threading.Event()
    close = EtcdClient.close

    async def close_before_the_event(client: EtcdClient) -> None:
        await close(client)
        asyncio.get_running_loop().call_later(LINGER_S / 2, heard.set)

    monkeypatch.setattr(EtcdClient, "close", close_before_the_event)
    session = make_session(etcd_process.client, Deadlines())
    await session.open(10)
    await session.close()
    assert heard.is_set()


async def test_every_incarnation_has_an_id_of_its_own(etcd_process: EtcdProcess) -> None:
    seen = set()
    for _ in range(2):
        session = make_session(etcd_process.client, Deadlines())
        seen.add((await session.open(10)).node_id)
        await session.close()
    assert len(seen) == 2


async def test_the_deadline_moves_with_the_pings_and_never_runs_ahead(etcd_process: EtcdProcess) -> None:
    deadlines = Deadlines()
    async with opened(etcd_process, deadlines) as session:
        first = deadlines.newest
        await wait_until(lambda: deadlines.newest > first + TTL_S, what="the deadline moves on")
        assert deadlines.newest <= boottime() + TTL_S - MARGIN_S
        assert not session.is_at_risk
    assert deadlines.told == sorted(deadlines.told)
    assert threading.get_ident() not in deadlines.threads


async def test_a_busy_node_does_not_cost_the_lease(etcd_process: EtcdProcess) -> None:
    """The node's own loop stands still for longer than the TTL; the session has its own."""
    deadlines = Deadlines()
    async with opened(etcd_process, deadlines, ttl_s=3) as session:
        end = boottime() + 4.5
        while boottime() < end:
            sum(range(1000))  # holds this loop; gives the interpreter's lock away as any Python code does
        assert not session.is_at_risk
        assert deadlines.newest > boottime()


async def test_a_deleted_key_is_a_lost_lease(etcd_process: EtcdProcess, etcd_client: EtcdClient) -> None:
    async with opened(etcd_process, Deadlines(), ttl_s=30) as session:
        (kv,) = (await etcd_client.range(Range(b"/node/", b"/node0"))).kvs
        await etcd_client.txn(Txn((), (Delete(kv.key),)))
        assert "deleted" in await asyncio.wait_for(session.wait_lost(), 5)
        assert session.is_at_risk


async def test_a_revoked_lease_is_lost(etcd_process: EtcdProcess, etcd_client: EtcdClient) -> None:
    async with opened(etcd_process, Deadlines(), ttl_s=30) as session:
        await etcd_client.lease_revoke(session.lease_id)
        assert await asyncio.wait_for(session.wait_lost(), 5)


async def test_giving_up_waiting_for_the_loss_does_not_spoil_it(
    etcd_process: EtcdProcess, etcd_client: EtcdClient
) -> None:
    async with opened(etcd_process, Deadlines(), ttl_s=30) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.wait_lost(), 0.05)
        await etcd_client.lease_revoke(session.lease_id)
        assert await asyncio.wait_for(session.wait_lost(), 5)


async def test_a_frozen_etcd_stops_the_deadline_and_a_thawed_one_moves_it(own_etcd: EtcdProcess) -> None:
    """At risk, not lost: etcd's own clock of leases stood still with it."""
    deadlines = Deadlines()
    async with opened(own_etcd, deadlines) as session:
        first = deadlines.newest
        await wait_until(lambda: deadlines.newest > first, what="pings are answered")
        own_etcd.freeze()
        frozen_at = boottime()
        await wait_until(lambda: session.is_at_risk, TTL_S + 5, what="the session is at risk")
        assert deadlines.newest <= frozen_at + TTL_S - MARGIN_S
        own_etcd.thaw()
        lost = asyncio.create_task(session.wait_lost())
        # Either its lease lived on, or etcd ended it first: both must show, and soon.
        await wait_until(lambda: lost.done() or not session.is_at_risk, 20, what="alive again, or lost")
        lost.cancel()


async def test_a_silent_connection_is_made_up_by_another_before_the_deadline(
    etcd_process: EtcdProcess,
) -> None:
    """TCP would notice nothing, and grpc only after 8 s, which is later than the lease lives."""
    deadlines = Deadlines()
    async with TcpProxy(etcd_process.address) as proxy:
        endpoints = [proxy.address, etcd_process.address]
        session = make_session(lambda: EtcdClient(endpoints, etcd_process.tls), deadlines, ttl_s=6)
        await session.open(10)
        try:
            first = deadlines.newest
            await wait_until(lambda: deadlines.newest > first, what="pings are answered")
            proxy.swallow()
            cut_at = boottime()
            while boottime() < cut_at + 12:
                assert not session.is_at_risk
                await asyncio.sleep(0.05)
            assert deadlines.newest > boottime()
        finally:
            await session.close()


async def test_the_lease_outlives_a_killed_and_restarted_etcd(own_etcd: EtcdProcess) -> None:
    deadlines = Deadlines()
    async with opened(own_etcd, deadlines, ttl_s=8) as session:
        own_etcd.kill()
        own_etcd.start()
        restarted = boottime()
        await wait_until(lambda: deadlines.newest > restarted + 8 - MARGIN_S, 20, what="pings are answered again")
        assert not session.is_at_risk


async def test_opening_without_etcd_says_so_in_time(own_etcd: EtcdProcess) -> None:
    own_etcd.kill()
    session = make_session(own_etcd.client, Deadlines())
    with pytest.raises(StoreError):
        await asyncio.wait_for(session.open(1.0), 15)
    assert not [thread for thread in threading.enumerate() if thread.name == "session"]


def open_descriptors() -> int:
    gc.collect()  # grpc's channels are in reference cycles; their sockets go with them
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_leaves_no_thread_and_no_descriptor(etcd_process: EtcdProcess) -> None:
    async def round_() -> None:
        async with opened(etcd_process, Deadlines()):
            pass

    await round_()
    before = open_descriptors()
    for _ in range(3):
        await round_()
    await wait_until(lambda: open_descriptors() <= before, what="descriptors are closed")
    assert not [thread for thread in threading.enumerate() if thread.name == "session"]


async def test_nobody_can_write_as_a_lost_incarnation(etcd_process: EtcdProcess, etcd_client: EtcdClient) -> None:
    """The guard that every owner's write carries: it holds while the key is there and not after."""
    session = make_session(etcd_process.client, Deadlines())
    identity = await session.open(10)
    guard = Compare(key(identity.node_id), Target.CREATE, Relation.EQUAL, identity.node_key_revision)
    assert (await etcd_client.txn(Txn((guard,), (Put(b"/x"),)))).succeeded
    await session.close()
    assert not (await etcd_client.txn(Txn((guard,), (Put(b"/y"),)))).succeeded


@pytest.mark.parametrize("revoke", [False, True])
async def test_a_session_that_breaks_revokes_nothing_until_it_is_told_to(
    etcd_process: EtcdProcess, etcd_client: EtcdClient, *, revoke: bool
) -> None:
    """Tasks may run under the lease: with the key gone, peers would start them a second time."""

    told = Deadlines()

    def breaks(deadline: float) -> None:
        told(deadline)
        if len(told.told) > 1:
            raise ZeroDivisionError

    session = make_session(etcd_process.client, breaks, ttl_s=30)
    identity = await session.open(10)
    with pytest.raises(BaseExceptionGroup):
        await asyncio.wait_for(session.wait_lost(), 30)
    node_key = Range(key(identity.node_id), count_only=True)
    assert (await etcd_client.range(node_key)).count == 1
    lease_id = session.lease_id
    await session.close(revoke)
    assert (await etcd_client.range(node_key)).count == (0 if revoke else 1)
    await etcd_client.lease_revoke(lease_id)


async def test_a_living_copy_of_the_data_directory_is_refused(etcd_process: EtcdProcess) -> None:
    async with opened(etcd_process, Deadlines(), ttl_s=2):
        copy = make_session(etcd_process.client, Deadlines(), ttl_s=2)
        with pytest.raises(HostInUse, match="copied"):
            await asyncio.wait_for(copy.open(1), 60)
    assert not [thread for thread in threading.enumerate() if thread.name == "session"]


async def test_a_node_that_hangs_for_good_loses_its_lease(
    etcd_process: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session has a thread of its own; it must not speak for a loop that never comes back."""
    monkeypatch.setattr("node.cluster.session.HUNG_AFTER_S", 2)
    deadlines = Deadlines()
    session = make_session(etcd_process.client, deadlines, ttl_s=3)
    await session.open(10)
    hung_until = boottime() + 9
    while boottime() < hung_until:
        time.sleep(0.05)  # noqa: ASYNC251  (the loop hangs: that is the point)
    assert session.is_at_risk
    assert deadlines.newest < hung_until - 1
    with pytest.raises(BaseExceptionGroup) as raised:
        await asyncio.wait_for(session.wait_lost(), 5)
    assert raised.group_contains(NodeHung)
    await session.close()
