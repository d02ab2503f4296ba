"""ListNodes, Describe, Drain, Remove and Why: several nodes as real grpc servers over one fake etcd."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from etcd import cluster_codec, codec, keys
from etcd.port import Delete, Member, Put, Range, Txn
from node.admission import Admission
from node.core.model import Capacity, Drain, Requirements, TaskSpec
from pilfer.v1 import nodes_pb2
from tests.support.api_node import GIB, ApiNode, api_nodes, come, go, host_of, node_record
from tests.support.fake_etcd import LOST_AFTER, LOST_BEFORE, Fault
from tests.support.fake_membership import MEMBER_ID
from tests.support.fake_store import FakeStore
from tests.support.tasks import TIMEOUT_S, new_task, queued, task_id

N1, N2, N3 = node_record(1), node_record(2), node_record(3)


async def listed(node: ApiNode) -> dict[str, nodes_pb2.NodeView]:
    response = await node.stub.ListNodes(nodes_pb2.ListNodesRequest(), timeout=TIMEOUT_S)
    return {view.node.name: view for view in response.nodes}


async def drain(node: ApiNode, name: str, **options: bool) -> nodes_pb2.NodeView:
    return (await node.stub.Drain(nodes_pb2.DrainRequest(node=name, **options), timeout=TIMEOUT_S)).node


async def remove(node: ApiNode, name: str) -> nodes_pb2.RemoveResponse:
    return await node.stub.Remove(nodes_pb2.RemoveRequest(node=name), timeout=TIMEOUT_S)


async def why(node: ApiNode, task_id: str) -> nodes_pb2.WhyResponse:
    return await node.stub.Why(nodes_pb2.WhyRequest(id=task_id), timeout=TIMEOUT_S)


def is_there(store: FakeStore, key: bytes) -> bool:
    return bool(store.read(Range(key)).kvs)


def refused(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError], code: grpc.StatusCode, kind: type[Message]) -> Any:
    """The typed detail of a refusal."""
    assert caught.value.code() is code, caught.value.details()
    packed = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    (detail,) = status_pb2.Status.FromString(packed).details
    message = kind()
    assert detail.Unpack(message)
    return message


def once(
    fault: Fault, method: str, wanted: Callable[[Any], bool] = lambda _: True
) -> Callable[[str, object], Fault | None]:
    """The first such call fails."""
    left = [fault]
    return lambda name, argument: left.pop() if left and name == method and wanted(argument) else None


def writes(txn: Txn) -> bool:
    return any(isinstance(op, Put | Delete) for op in txn.success)


# -- list -----------------------------------------------------------------------------------------------------------


async def test_every_living_node_tells_how_it_is_doing() -> None:
    async with api_nodes(FakeStore(), N2, N1) as (n2, n1):
        n2.condition = replace(n2.condition, load=0.5, running=3, reserved_cpu=2.0, reserved_memory_bytes=GIB)
        views = await listed(n1)
        assert [*views] == ["n1", "n2"], "by name"
        busy = views["n2"]
        assert (busy.state, busy.load, busy.running) == ("ready", 0.5, 3)
        assert (busy.reserved.cpu, busy.reserved.memory_bytes) == (2.0, GIB)
        assert busy.node == codec.node_to_proto(n2.node)
        assert abs(busy.now.ToSeconds() - time.time()) < TIMEOUT_S
        assert [*views["n1"].warnings, *busy.warnings] == []
        for view in (*views.values(), *(others := await listed(n2)).values()):
            view.ClearField("now")
        assert others == views, "whichever node is asked"


async def test_describe_needs_no_etcd() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        n1.etcd.is_cut = True
        view = await n1.stub.Describe(nodes_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        assert (view.node.id, view.state, view.etcd_version) == (N1.id, "ready", "3.5.30")


async def test_a_node_that_does_not_answer_is_unreachable_and_its_tasks_are_counted_in_etcd() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        running = [Put(keys.running_key(N2.id, new_task().id)) for _ in range(3)]
        await n1.etcd.txn(Txn(success=(*running, Put(keys.running_key(N1.id, new_task().id)))))
        await n2.server.stop(None)
        view = (await listed(n1))["n2"]
        assert (view.state, view.running, view.HasField("reserved"), view.HasField("now")) == (
            "unreachable",
            3,
            False,
            False,
        )
        assert view.node.address == n2.node.address


async def test_a_node_that_hangs_costs_a_second() -> None:
    """It accepts connections and never answers, as one that is stopped does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
            await come(n1.etcd, replace(n2.node, address=f"127.0.0.1:{silent.getsockname()[1]}"))
            assert (await listed(n1))["n2"].state == "unreachable"


async def test_another_node_at_the_same_address_is_not_taken_for_it() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
        await come(n1.etcd, replace(N3, address=n2.node.address))
        views = await listed(n1)
        assert (views["n2"].state, views["n3"].state) == ("ready", "unreachable")


async def test_a_node_without_a_tcp_port_is_told_as_such() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        await come(n1.etcd, N2)
        view = (await listed(n1))["n2"]
        assert view.state == "unreachable"
        assert [*view.warnings] == ["it serves its unix socket alone: start it with --listen"]


async def test_a_host_without_a_living_node_is_gone_since() -> None:
    async with api_nodes(FakeStore(), N2) as (n2,):
        gone = replace(N1, address="10.0.0.1:7400")
        host = cluster_codec.encode_host(host_of(gone, last_seen=1_800_000_123.5))
        await n2.etcd.txn(Txn(success=(Put(keys.host_key(N1.host_id), host),)))
        views = await listed(n2)
        assert [*views] == ["n2", "n1"], "those that live come first"
        view = views["n1"]
        assert (view.state, view.last_seen.ToMilliseconds()) == ("gone", 1_800_000_123_500)
        assert (view.node.id, view.node.host_id, view.node.address) == (N1.id, N1.host_id, "10.0.0.1:7400")
        assert view.node.capacity.cpu == 4.0


async def test_a_node_that_came_back_is_listed_once() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        before = replace(N1, id=N3.id)
        await n1.etcd.txn(Txn(success=(Put(keys.host_key(N1.host_id), cluster_codec.encode_host(host_of(before))),)))
        (view,) = (await listed(n1)).values()
        assert view.state == "ready"


async def test_roles_are_those_of_the_member_list() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2, N3) as (n1, _, n3):
        store.membership.members = {
            MEMBER_ID: Member(MEMBER_ID, N1.host_id, (), ()),
            2: Member(2, N2.host_id, (), (), is_learner=True),
            3: Member(3, "", (), (), is_learner=True),  # added and not started: it has no name yet
        }
        n3.condition = replace(n3.condition, role="voter")  # it has not heard that it is none any more
        assert {name: view.role for name, view in (await listed(n1)).items()} == {
            "n1": "voter",
            "n2": "learner",
            "n3": "client",
        }


async def test_a_voter_that_is_gone_and_an_even_number_are_warned_of() -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, _):
        first, second = Member(MEMBER_ID, N1.host_id, (), ()), Member(2, N2.host_id, (), ())
        store.membership.members = {MEMBER_ID: first, 2: second}
        store.membership.start(2, time.monotonic())
        await go(n1.etcd, N2)
        views = await listed(n1)
        assert views["n2"].role == "voter"
        assert [*views["n1"].warnings] == [
            "etcd has 2 voters: an even number adds risk and no safety",
            "n2 has a vote in etcd and is gone: one more loss weighs more until it is back",
        ]


async def test_a_pause_is_told() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
        n2.condition = replace(n2.condition, pause="its spawner is being started again")
        views = await listed(n1)
        assert [*views["n2"].warnings] == ["claims nothing at this moment: its spawner is being started again"]
        seen = await queued(n1.store, TaskSpec("true"))
        assert [[*of.reasons] for of in (await why(n1, seen.task.id)).nodes] == [
            [],
            ["its spawner is being started again"],
        ]


async def test_a_clock_that_is_wrong_is_warned_of() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, _):
        n1.views._wall_clock = lambda: time.time() - 100.0
        (words,) = (await listed(n1))["n2"].warnings
        assert words.startswith("its clock is ")
        assert words.endswith("s ahead of that of n1: set it")


def no_quorum(method: str, argument: object) -> Fault | None:
    ops = argument.success if isinstance(argument, Txn) else (argument,)
    is_local = all(isinstance(op, Range) and op.serializable for op in ops)
    return None if is_local or method not in ("txn", "range", "members") else LOST_BEFORE


async def test_without_a_quorum_nothing_is_drained_or_removed() -> None:
    async with api_nodes(FakeStore(), N1, N2) as (n1, _):
        n1.etcd.faults = no_quorum
        for call in (drain, remove):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(n1, "n2")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "no quorum" in (caught.value.details() or "")


async def test_without_a_quorum_the_list_is_what_a_member_last_saw() -> None:
    """Reads that need a quorum fail; those that do not are answered."""
    async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
        n1.etcd.faults = no_quorum
        n2.condition = replace(n2.condition, state="at_risk", role="voter")
        views = await listed(n1)
        assert [*views["n1"].warnings] == ["etcd has no quorum: this list is what one of its members last saw"]
        assert (views["n2"].state, views["n2"].role) == ("at_risk", "voter"), "the node's own word"
        await n2.server.stop(None)
        assert (await listed(n1))["n2"].state == "unreachable"


async def test_without_any_etcd_the_list_is_unavailable() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        n1.etcd.faults = lambda _method, _argument: LOST_BEFORE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed(n1)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_strangers_keys_are_left_out() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        strange = (b"/node/somebody", keys.node(N2.id), keys.host_key(N2.host_id), b"/cluster/drained/x")
        await n1.etcd.txn(Txn(success=tuple(Put(key, b"\xff") for key in strange)))
        assert [*await listed(n1)] == ["n1"]


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


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
async def test_a_removal_that_was_not_answered_is_sent_again(fault: Fault) -> None:
    store = FakeStore()
    async with api_nodes(store, N1, N2) as (n1, n2):
        await go(n1.etcd, n2.node)
        n1.etcd.faults = once(fault, "txn", writes)
        assert (await remove(n1, "n2")).host_id == N2.host_id
        assert is_there(store, keys.removed_key(N2.host_id))


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


# -- why ------------------------------------------------------------------------------------------------------------


async def test_why_a_task_fits_nowhere() -> None:
    async with api_nodes(FakeStore(), N1, replace(N2, capacity=Capacity(8.0, GIB))) as (n1, _):
        seen = await queued(n1.store, TaskSpec("true", stdin=b"x", requirements=Requirements(cpu=64)))
        answer = await why(n1, seen.task.id[:-4])
        assert answer.summary == "fits nowhere: needs 64 CPUs, the largest node lends 8"
        assert answer.task.id == seen.task.id
        assert answer.task.spec.stdin == b"", "as in listings"
        assert [(of.name, of.fits, [*of.reasons]) for of in answer.nodes] == [
            ("n1", False, ["needs 64 CPUs, the node lends 4"]),
            ("n2", False, ["needs 64 CPUs, the node lends 8"]),
        ]


async def test_why_tells_what_each_node_says_of_itself() -> None:
    store = FakeStore()
    allowing = Admission(("/data",), (("/shared", True),), allow_host_network=True)
    async with api_nodes(store, N1, N2, N3, admission=allowing) as (n1, n2, n3):
        # Ids of one millisecond are in no order.
        older, younger = sorted((task_id(), task_id()))
        big = new_task(TaskSpec("true", requirements=Requirements(cpu=4)), id=older)
        for task in (big, new_task(id=younger)):
            await n1.store.submit(task, timeout_s=TIMEOUT_S)
        n1.condition = replace(n1.condition, reserved_cpu=3.5)
        n2.condition = replace(n2.condition, reserved_cpu=1.0, held_for=older)
        await n3.server.stop(None)
        answer = await why(n1, younger)
        assert {of.name: [*of.reasons] for of in answer.nodes} == {
            "n1": ["has no room now: needs 1 CPU, 0.5 CPUs free"],
            "n2": [f"holds what is free for an older task that needs more: {older}"],
            "n3": ["does not answer; its lease has not run out yet"],
        }
        view = await n2.stub.Describe(nodes_pb2.DescribeRequest(), timeout=TIMEOUT_S)
        assert view.allowed == nodes_pb2.Allowed(
            mount_prefixes=["/data"],
            shares=[nodes_pb2.Allowed.Share(path="/shared", read_only=True)],
            host_network=True,
        )


async def test_why_of_a_task_that_has_ended_asks_no_node() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        task = (await queued(n1.store)).task
        await n1.store.cancel(task.id, now=2.0, timeout_s=TIMEOUT_S)
        n1.etcd.calls.clear()
        answer = await why(n1, task.id)
        assert (answer.summary, len(answer.nodes)) == ("is canceled: was canceled (canceled while it was queued)", 0)
        assert "members" not in n1.etcd.calls


async def test_why_of_no_task() -> None:
    async with api_nodes(FakeStore(), N1) as (n1,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await why(n1, new_task().id)
        refused(caught, grpc.StatusCode.NOT_FOUND, error_details_pb2.ResourceInfo)
