"""A duty: one node has it, its successor takes it when the node key is gone, and lost answers settle themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from etcd import keys
from etcd.duty import Duty
from etcd.errors import OutcomeUnknown, StoreUnavailable
from etcd.identity import Identity
from etcd.port import Delete, Put, Range, Txn
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault, applied_later
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import run_virtual, virtual_time

NODES = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)]
HOST = "10000000-0000-4000-8000-000000000000"


class Cluster:
    """Nodes of one fake etcd, each with a client and a hand on the duty "sweep"."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.quiet = FakeEtcd(self.store)
        self.etcds: list[FakeEtcd] = []

    async def join(self, node: str) -> Duty:
        await self.quiet.txn(Txn(success=(Put(keys.node(node)),)))
        (kv,) = (await self.quiet.range(Range(keys.node(node)))).kvs
        etcd = FakeEtcd(self.store)
        self.etcds.append(etcd)
        return Duty(etcd, "sweep", Identity(node, HOST, kv.create_revision))

    async def leave(self, node: str) -> None:
        await self.quiet.txn(Txn(success=(Delete(keys.node(node)),)))

    async def put_holder(self, value: bytes) -> None:
        await self.quiet.txn(Txn(success=(Put(keys.duty_key("sweep"), value),)))

    async def holder(self) -> str | None:
        kvs = (await self.quiet.range(Range(keys.duty_key("sweep")))).kvs
        return kvs[0].value.decode() if kvs else None


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        for etcd in (*made.etcds, made.quiet):
            await etcd.close()


@virtual_time
async def test_the_first_has_it_as_long_as_it_lives() -> None:
    async with cluster() as made:
        one, two = await made.join(NODES[0]), await made.join(NODES[1])
        assert await one.hold()
        assert not await two.hold()
        assert await one.hold()
        await made.leave(NODES[0])
        assert await two.hold()
        assert await made.holder() == NODES[1]


@virtual_time
async def test_a_fenced_node_neither_holds_nor_takes() -> None:
    async with cluster() as made:
        one = await made.join(NODES[0])
        await made.leave(NODES[0])
        assert not await one.hold()
        assert await made.holder() is None
        await made.put_holder(NODES[0].encode())
        assert not await one.hold()


@virtual_time
async def test_a_node_key_of_the_same_id_made_anew_is_not_this_incarnation() -> None:
    async with cluster() as made:
        one = await made.join(NODES[0])
        await made.leave(NODES[0])
        await made.join(NODES[0])
        assert not await one.hold()


@virtual_time
async def test_of_many_that_see_it_free_one_has_it() -> None:
    async with cluster() as made:
        duties = [await made.join(node) for node in NODES]
        await made.put_holder(NODES[3].encode())
        await made.leave(NODES[3])
        held = await asyncio.gather(*(duty.hold() for duty in duties[:3]))
        assert held.count(True) == 1
        assert await made.holder() == NODES[held.index(True)]


@virtual_time
async def test_the_holder_returns_between_look_and_take() -> None:
    """Its key is absent in the look and there at the take: not taken from it."""
    async with cluster() as made:
        one = await made.join(NODES[0])
        await made.put_holder(NODES[1].encode())

        def faults(method: str, argument: object) -> Fault | None:
            if method == "txn" and isinstance(argument, Txn) and argument.compares:
                made.store.transact(Txn(success=(Put(keys.node(NODES[1])),)), 0.0)
            return None

        made.etcds[0].faults = faults
        assert not await one.hold()
        assert await made.holder() == NODES[1]


@pytest.mark.parametrize("value", [b"", b"nobody", b"\xff\xfe"])
def test_a_holder_that_is_no_node_is_none(value: bytes) -> None:
    async def run() -> None:
        async with cluster() as made:
            one = await made.join(NODES[0])
            await made.put_holder(value)
            assert await one.hold()

    run_virtual(run())


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER, applied_later(0.05), applied_later(0.3)])
def test_a_lost_answer_settles_itself(fault: Fault) -> None:
    async def run() -> None:
        async with cluster() as made:
            one = await made.join(NODES[0])
            left = [fault]

            def faults(method: str, argument: object) -> Fault | None:
                is_take = method == "txn" and isinstance(argument, Txn) and bool(argument.compares)
                return left.pop() if is_take and left else None

            made.etcds[0].faults = faults
            # A late first take makes the second one lose; the turn after it finds its own id there.
            assert await one.hold() or await one.hold()
            assert await made.holder() == NODES[0]
            assert not left

    run_virtual(run())


@virtual_time
async def test_an_etcd_that_does_not_answer_is_told_in_time() -> None:
    async with cluster() as made:
        one = await made.join(NODES[0])
        made.etcds[0].is_cut = True
        loop = asyncio.get_running_loop()
        before = loop.time()
        with pytest.raises((OutcomeUnknown, StoreUnavailable)):
            await one.hold(timeout_s=5.0)
        assert loop.time() - before < 6


@virtual_time
async def test_a_duty_given_up_is_taken_at_once_and_anothers_is_not_given_up() -> None:
    async with cluster() as made:
        one, two = await made.join(NODES[0]), await made.join(NODES[1])
        assert await one.hold()
        await two.release()
        assert await made.holder() == NODES[0]
        await one.release()
        assert await two.hold()
