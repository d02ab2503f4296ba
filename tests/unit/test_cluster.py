"""The cluster's id in etcd: founded once, and read by a start that waits for as long as it takes."""

from __future__ import annotations

from node.cluster.founding import found_cluster, read_cluster, read_when_ready
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, FakeEtcd, Fault
from tests.support.fake_store import FakeStore
from tests.support.virtual_time import virtual_time

ID = "0b0bd4a0-1f6a-4d5c-9e0f-7d5d1f0c9a10"
OTHER = "5f0c7a4e-51d7-4f5f-8b66-0f3ce1b9f111"


@virtual_time
async def test_whoever_founds_second_finds_the_first() -> None:
    etcd = FakeEtcd(FakeStore())
    assert await read_cluster(etcd) is None
    assert (await found_cluster(etcd, ID)).id == ID
    assert (await found_cluster(etcd, OTHER)).id == ID


@virtual_time
async def test_founding_is_sent_again_until_it_is_answered() -> None:
    etcd = FakeEtcd(FakeStore())
    faults = [LOST_BEFORE, LOST_AFTER]
    etcd.faults = lambda _method, _argument: faults.pop() if faults else None
    assert (await found_cluster(etcd, ID)).id == ID
    assert faults == []


@virtual_time
async def test_a_quorum_that_is_lost_again_is_waited_for_again() -> None:
    """Otherwise a whole cluster that comes up at once loses the nodes that read at the wrong moment."""
    etcd = FakeEtcd(FakeStore())
    await found_cluster(etcd, ID)
    waits: list[int] = []

    async def wait_ready() -> None:
        waits.append(len(waits))

    def lost_twice(_method: str, _argument: object) -> Fault | None:
        return LOST_BEFORE if len(waits) < 3 else None

    etcd.faults = lost_twice
    found = await read_when_ready(etcd, wait_ready)
    assert found is not None
    assert (found.id, len(waits)) == (ID, 3)
