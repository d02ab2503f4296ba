"""What is done to a copy of a cluster's data before anybody may talk to it, on a fake etcd and in virtual time."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from etcd import keys
from etcd.client import EtcdClient
from etcd.errors import Compacted, NoSpace
from etcd.port import KeyRange, Put, Range, Txn
from node.cluster.founding import WrongCluster, found_cluster
from node.recovery.begin_again import REVISIONS_PASSED, begin_again, look
from tests.support.fake_etcd import FakeEtcd, Fault
from tests.support.virtual_time import virtual_time

CLUSTER = "00000000-0000-4000-8000-00000000c000"
NODE = "11111111-0000-4000-8000-000000000001"
TTL_S = 5.0


def _say(_words: str) -> None:
    """Nobody listens."""


async def _begin_again(etcd: FakeEtcd, *, lease_ttl_s: float = TTL_S) -> int:
    client = cast(EtcdClient, etcd)
    return await begin_again(client, await look(client), lease_ttl_s=lease_ttl_s, say=_say)


@virtual_time
async def test_leases_have_run_out_and_watches_list_again() -> None:
    loop = asyncio.get_running_loop()
    async with FakeEtcd() as etcd:
        await found_cluster(etcd, CLUSTER)
        lease = await etcd.lease_grant(20.0)
        await etcd.txn(Txn(success=(Put(keys.node(NODE), b"", lease.id),)))
        seen = (await look(cast(EtcdClient, etcd))).revision
        began = loop.time()
        epoch = await _begin_again(etcd)
        assert loop.time() - began >= 20.0
        assert epoch > 1
        nodes = keys.all_nodes()
        assert not (await etcd.range(Range(nodes.key, nodes.range_end))).kvs
        # Whoever had seen more than the copy, by less than what was passed over, is told to list.
        with pytest.raises(Compacted):
            async with etcd.watch([KeyRange(keys.node(NODE))], start_revision=seen + REVISIONS_PASSED // 2) as watch:
                await anext(aiter(watch))


@virtual_time
async def test_a_node_whose_lease_is_not_in_the_copy_is_waited_for_too() -> None:
    loop = asyncio.get_running_loop()
    async with FakeEtcd() as etcd:
        await found_cluster(etcd, CLUSTER)
        began = loop.time()
        await _begin_again(etcd, lease_ttl_s=7.0)
        assert loop.time() - began >= 7.0


@virtual_time
async def test_a_strangers_key_that_never_goes_is_named() -> None:
    async with FakeEtcd() as etcd:
        await found_cluster(etcd, CLUSTER)
        await etcd.txn(Txn(success=(Put(keys.node(NODE), b""),)))
        with pytest.raises(WrongCluster, match=f"{NODE}: no node wrote these"):
            await _begin_again(etcd)


@virtual_time
async def test_a_full_copy_makes_room_first() -> None:
    async with FakeEtcd() as etcd:
        await found_cluster(etcd, CLUSTER)
        etcd.store.has_no_space_alarm = True
        assert await _begin_again(etcd) > 1
        assert not etcd.store.has_no_space_alarm


@virtual_time
async def test_one_that_stays_full_says_what_to_do() -> None:
    async with FakeEtcd() as etcd:
        await found_cluster(etcd, CLUSTER)

        def is_full(method: str, argument: object) -> Fault | None:
            if method == "txn" and isinstance(argument, Txn) and any(isinstance(op, Put) for op in argument.success):
                etcd.store.has_no_space_alarm = True
            return None

        etcd.faults = is_full
        with pytest.raises(NoSpace, match="larger etcd_quota"):
            await _begin_again(etcd)
