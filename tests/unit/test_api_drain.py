"""Drain and Remove: several nodes as real grpc servers over one fake etcd."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2

from etcd import cluster_codec, codec, keys
from etcd.port import Delete, Put, Range, Txn
from node.core.model import Drain, Node
from pilfer.v1 import nodes_pb2
from tests.support.api_node import (
    api_nodes,
    come,
    drain,
    go,
    host_of,
    is_there,
    listed,
    no_quorum,
    node_record,
    once,
    refused,
    remove,
    writes,
)
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, Fault
from tests.support.fake_membership import MEMBER_ID
from tests.support.fake_store import FakeStore
from tests.support.tasks import TIMEOUT_S

N1, N2, N3 = node_record(1), node_record(2), node_record(3)


# -- drain ----------------------------------------------------------------------------------------------------------


async def test_drain_and_undo_by_any_node() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        view = await drain(n1, "n2")
        assert (view.node.id, view.state) == (N2.id, "draining"), "it has not heard of it yet"
        key = keys.drained_key(N2.host_id)
        written = cluster_codec.decode_drain(key, store.read(Range(key)).kvs[0].value)
        assert not written.let_finish
        assert abs(written.since - time.time()) < TIMEOUT_S
        assert (await drain(n2, "n2", undo=True)).state == "ready"
        assert not is_there(store, key)
        assert (await drain(n1, "n2", undo=True)).state == "ready", "repeating it is harmless"


async def test_a_drained_node_says_itself_when_it_is_done() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
        following = asyncio.create_task(n2.drains.run())
        n2.condition = replace(n2.condition, running=1)
        heard = asyncio.Event()
        await n2.drains.wait_known()
        n2.drains.on_change = heard.set
        await drain(n1, "n2", let_finish=True)
        await asyncio.wait_for(heard.wait(), TIMEOUT_S)
        assert (await listed(n1))["n2"].state == "draining"
        n2.condition = replace(n2.condition, running=0)
        assert (await listed(n1))["n2"].state == "drained"
        n2.condition = replace(n2.condition, state="at_risk")
        assert (await listed(n1))["n2"].state == "at_risk"
        following.cancel()


async def test_a_drain_may_change_its_mind_and_keeps_its_time() -> None:
    store = FakeStore()
    async with api_nodes(store, N1) as (n1,):
        key = keys.drained_key(N1.host_id)
        await n1.etcd.txn(Txn(success=(Put(key, cluster_codec.encode_drain(Drain(5.0, let_finish=True))),)))
        await drain(n1, "n1")
        assert cluster_codec.decode_drain(key, store.read(Range(key)).kvs[0].value) == Drain(5.0, let_finish=False)
        before = store.revision
        await drain(n1, "n1")
        assert store.revision == before, "what is so already is not written again"


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
async def test_a_drain_that_was_not_answered_is_sent_again(fault: Fault) -> None:
    store = FakeStore()
    async with api_nodes(store, N1) as (n1,):
        for undo in (False, True):
            n1.etcd.faults = once(fault, "txn", writes)
            await drain(n1, "n1", undo=undo)
            assert is_there(store, keys.drained_key(N1.host_id)) is not undo


async def test_a_node_that_is_gone_may_be_drained() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
        await go(n1.etcd, n2.node)
        view = await drain(n1, "n2")
        assert view.state == "gone"
        assert [*view.warnings] == ["it is drained: when it comes back it claims nothing until node drain --undo"]


async def test_a_node_that_is_not_there() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        for call in (drain, remove):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(n1, "n7")
            info = refused(caught, grpc.StatusCode.NOT_FOUND, error_details_pb2.ResourceInfo)
            assert (info.resource_type, info.resource_name) == ("node", "n7")


async def test_a_prefix_of_several_nodes_names_them() -> None:
    twin = replace(N2, host_id=N1.host_id[:-1] + "e")
    async with api_nodes(FakeStore(), N1, twin) as (n1, _):
        for call in (drain, remove):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(n1, "1111")
            bad = refused(caught, grpc.StatusCode.INVALID_ARGUMENT, error_details_pb2.BadRequest)
            (violation,) = bad.field_violations
            assert violation.field == "node"
            assert N1.host_id in violation.description
            assert twin.host_id in violation.description


async def test_a_few_digits_of_an_id_name_nobody() -> None:
    """Found by trying it out: `drain 3`, meant for n3, drained n1, whose host id begins with 3; the same removes."""
    store = FakeStore()
    unlucky = replace(N1, host_id="3735" + N1.host_id[4:])
    async with api_nodes(store, unlucky, N2) as (n1, n2):
        await go(n1.etcd, n1.node)
        for call in (drain, remove):
            for given in ("3", "373"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(n2, given)
                bad = refused(caught, grpc.StatusCode.INVALID_ARGUMENT, error_details_pb2.BadRequest)
                (violation,) = bad.field_violations
                assert violation.field == "node"
                assert f"{given} is no node's name" in violation.description
                assert f"n1 (host {unlucky.host_id}, gone)" in violation.description
        assert not is_there(store, keys.drained_key(unlucky.host_id))
        assert not is_there(store, keys.removed_key(unlucky.host_id))
        assert (await drain(n2, "3735")).node.host_id == unlucky.host_id
        assert (await remove(n2, "3735")).host_id == unlucky.host_id
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remove(n2, "3")  # a few digits name no removed host either
        refused(caught, grpc.StatusCode.INVALID_ARGUMENT, error_details_pb2.BadRequest)


@pytest.mark.parametrize(
    "request_", [nodes_pb2.DrainRequest(), nodes_pb2.DrainRequest(node="n1", undo=True, let_finish=True)]
)
async def test_a_drain_that_means_nothing(request_: nodes_pb2.DrainRequest) -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await n1.stub.Drain(request_, timeout=TIMEOUT_S)
        refused(caught, grpc.StatusCode.INVALID_ARGUMENT, error_details_pb2.BadRequest)


# -- remove ---------------------------------------------------------------------------------------------------------


async def test_a_node_that_lives_is_not_removed() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remove(n1, "n2")
        failure = refused(caught, grpc.StatusCode.FAILED_PRECONDITION, error_details_pb2.PreconditionFailure)
        assert (failure.violations[0].type, failure.violations[0].subject) == ("NODE_ALIVE", N2.host_id)
        assert "drain it (node drain n2 --wait)" in (caught.value.details() or "")
        assert is_there(store, keys.host_key(N2.host_id))
        assert not is_there(store, keys.removed_key(N2.host_id))


async def test_a_host_that_is_gone_is_forgotten_and_barred() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        await drain(n1, "n2")
        await go(n1.etcd, n2.node)
        for given in (N2.host_id[:5], "n2", N2.host_id):  # repeating it is harmless
            answer = await remove(n1, given)
            assert (answer.host_id, answer.name) == (N2.host_id, "n2")
        key = keys.removed_key(N2.host_id)
        removal = cluster_codec.decode_removal(key, store.read(Range(key)).kvs[0].value)
        assert removal.name == "n2"
        assert abs(removal.at - time.time()) < TIMEOUT_S
        assert not is_there(store, keys.host_key(N2.host_id))
        assert not is_there(store, keys.drained_key(N2.host_id))
        assert [*await listed(n1)] == ["n1"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(n1, "n2")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def vote(store: FakeStore, *nodes: Node) -> None:
    """These are the voters, and all of their members of etcd run."""
    membership = store.membership
    first = membership.members[MEMBER_ID]
    membership.members.clear()
    for number, node in enumerate(nodes):
        member_id = MEMBER_ID + number
        membership.members[member_id] = replace(first, id=member_id, name=node.host_id)
        membership.start(member_id, 0.0)


async def test_a_voter_is_not_removed_where_the_rest_could_not_take_its_vote() -> None:
    """Found by the simulation: two of three voters were removed within the same seconds, and the third was left with
    three votes of which it had one."""
    store = FakeStore()
    async with api_nodes(store, N1, N2, N3) as (n1, n2, n3):
        vote(store, N1, N2, N3)
        await go(n1.etcd, n2.node)
        await go(n1.etcd, n3.node)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remove(n1, "n2")
        failure = refused(caught, grpc.StatusCode.FAILED_PRECONDITION, error_details_pb2.PreconditionFailure)
        assert (failure.violations[0].type, failure.violations[0].subject) == ("VOTES_MISSING", N2.host_id)
        words = caught.value.details() or ""
        assert "one of 3 votes in etcd, which the others can take away only while the nodes of 2 live: 1 do" in words
        assert not is_there(store, keys.removed_key(N2.host_id))
        await come(n1.etcd, n3.node)
        assert (await remove(n1, "n2")).host_id == N2.host_id


@pytest.mark.parametrize("moment", ["before the votes are read", "before it is written"])
async def test_of_two_removals_beside_each_other_one_is_refused(moment: str) -> None:
    """While n3 is being removed, n2 goes and its removal is tried: the later look counts neither, wherever the other
    removal is."""
    store = FakeStore()
    async with api_nodes(store, N1, N2, N3) as (n1, n2, n3):
        vote(store, N1, N2, N3)
        await go(n1.etcd, n3.node)
        first: list[asyncio.Task[nodes_pb2.RemoveResponse]] = []

        async def the_other_one() -> nodes_pb2.RemoveResponse:
            await go(n2.etcd, n2.node)
            return await remove(n2, "n2")

        def meanwhile(method: str, argument: object) -> Fault | None:
            is_write = isinstance(argument, Txn) and writes(argument)
            if not first and (method == "members" if moment == "before the votes are read" else is_write):
                first.append(asyncio.create_task(the_other_one()))
            return None

        n1.etcd.faults = meanwhile
        await asyncio.gather(remove(n1, "n3"), return_exceptions=True)
        await asyncio.gather(*first, return_exceptions=True)
        assert first
        removed = [one for one in (N2, N3) if is_there(store, keys.removed_key(one.host_id))]
        assert len(removed) <= 1, "n1 alone cannot take both of their votes"


async def test_a_node_that_came_and_went_between_look_and_write_is_looked_at_again() -> None:
    """n3 is gone at the look, comes back, n2 is removed beside it, n3 goes again: its record is a new one, and the
    votes that were counted are no more."""
    store = FakeStore()
    async with api_nodes(store, N1, N2, N3) as (n1, n2, n3):
        vote(store, N1, N2, N3)
        await go(n1.etcd, n3.node)
        again = replace(n3.node, id="3" * 8 + "-0000-4000-8000-000000000002")
        came: list[bool] = []

        def meanwhile(_method: str, argument: object) -> Fault | None:
            if argument == Range(keys.host_key(N3.host_id)) and not came:
                came.append(True)
                now = time.monotonic()
                host = Put(keys.host_key(again.host_id), cluster_codec.encode_host(host_of(again)))
                store.transact(Txn(success=(Delete(keys.node(n2.node.id)), host)), now)
                store.transact(Txn(success=(Put(keys.removed_key(N2.host_id)),)), now)
            return None

        n1.etcd.faults = meanwhile
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remove(n1, "n3")
        failure = refused(caught, grpc.StatusCode.FAILED_PRECONDITION, error_details_pb2.PreconditionFailure)
        assert failure.violations[0].type == "VOTES_MISSING"
        assert not is_there(store, keys.removed_key(N3.host_id))


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
async def test_a_removal_that_was_not_answered_is_sent_again(fault: Fault) -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        await go(n1.etcd, n2.node)
        n1.etcd.faults = once(fault, "txn", writes)
        assert (await remove(n1, "n2")).host_id == N2.host_id
        assert is_there(store, keys.removed_key(N2.host_id))


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
async def test_a_removal_that_is_repeated_hits_no_host_whose_id_begins_with_the_name(fault: Fault) -> None:
    """The name is gone with the first try, and the same text begins another host's id."""
    store = FakeStore()
    named = replace(N2, name=N3.host_id[:4])
    async with api_nodes(store, N1, named, N3) as (n1, n2, n3):
        await go(n1.etcd, n2.node)
        await go(n1.etcd, n3.node)
        n1.etcd.faults = once(fault, "txn", writes)
        for _ in range(2):
            assert (await remove(n1, named.name)).host_id == named.host_id
        assert not is_there(store, keys.removed_key(N3.host_id))


@pytest.mark.parametrize("moment", ["before the record is read", "before it is written"])
async def test_a_node_that_comes_back_in_the_middle_of_a_removal_stays(moment: str) -> None:
    """One guard each: a record read too late names the new node, whose key is there; one read before has changed."""
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        await go(n1.etcd, n2.node)
        back = replace(n2.node, id=N3.id)
        came: list[bool] = []

        def come_back(method: str, argument: object) -> Fault | None:
            is_moment = (
                argument == Range(keys.host_key(N2.host_id))
                if moment == "before the record is read"
                else isinstance(argument, Txn) and writes(argument)
            )
            if is_moment and not came:
                came.append(True)
                put = (
                    Put(keys.node(back.id), codec.encode_node(back)),
                    Put(keys.host_key(back.host_id), cluster_codec.encode_host(host_of(back))),
                )
                store.transact(Txn(success=put), time.monotonic())
            return None

        n1.etcd.faults = come_back
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remove(n1, "n2")
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert came
        assert not is_there(store, keys.removed_key(N2.host_id))


async def test_a_drain_that_comes_after_a_removal_leaves_nothing() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        await go(n1.etcd, n2.node)

        def remove_it(_method: str, argument: object) -> Fault | None:
            if isinstance(argument, Txn) and writes(argument):
                gone = (Put(keys.removed_key(N2.host_id), b""), Delete(keys.host_key(N2.host_id)))
                store.transact(Txn(success=gone), time.monotonic())
            return None

        n1.etcd.faults = remove_it
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(n1, "n2")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert not is_there(store, keys.drained_key(N2.host_id))


async def test_a_strangers_key_among_the_removals_harms_nothing() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        store.transact(Txn(success=(Put(keys.all_removed().key + b"somebody", b"?"),)), time.monotonic())
        await go(n1.etcd, n2.node)
        assert (await remove(n1, "n2")).host_id == N2.host_id
        assert (await remove(n1, "n2")).host_id == N2.host_id, "repeated, it is found among the removed"


async def test_without_a_quorum_nothing_is_drained_or_removed() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, _):
        n1.etcd.faults = no_quorum
        for call in (drain, remove):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(n1, "n2")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "no quorum" in (caught.value.details() or "")
