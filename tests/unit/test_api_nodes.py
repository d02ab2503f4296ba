"""ListNodes, Describe and Why: several nodes as real grpc servers over one fake etcd."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2

from etcd import cluster_codec, codec, keys
from etcd.port import Member, Put, Txn
from node.core.model import Capacity, Requirements, TaskSpec
from node.running.admission import Admission
from pilfer.v1 import nodes_pb2
from tests.support.api_node import (
    GIB,
    api_nodes,
    come,
    go,
    host_of,
    listed,
    no_quorum,
    node_record,
    refused,
    why,
)
from tests.support.fake_etcd import LOST_BEFORE
from tests.support.fake_membership import MEMBER_ID
from tests.support.fake_store import FakeStore
from tests.support.tasks import TIMEOUT_S, new_task, queued, task_id

N1, N2, N3 = node_record(1), node_record(2), node_record(3)


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


async def test_without_a_quorum_the_list_is_what_a_member_last_saw() -> None:
    """Reads that need a quorum fail; those that do not are answered."""
    async with api_nodes(FakeStore(), N1, N2) as (n1, n2):
        n1.etcd.faults = no_quorum
        n2.condition = replace(n2.condition, state="at_risk")
        views = await listed(n1)
        assert [*views["n1"].warnings] == ["etcd has no quorum: this list is what one of its members last saw"]
        assert views["n2"].state == "at_risk", "the node's own word"
        await n2.server.stop(None)
        assert (await listed(n1))["n2"].state == "unreachable"


async def test_without_a_quorum_a_member_says_who_votes() -> None:
    """Found by trying it out: of nodes that do not answer, which is when it matters, the list did not say it."""
    store = FakeStore()
    async with api_nodes(store, N1, N2, N3) as (n1, n2, n3):
        membership = store.membership
        only = membership.members[MEMBER_ID]
        for member_id, node in enumerate((N1, N2), start=MEMBER_ID):
            membership.members[member_id] = replace(only, id=member_id, name=node.host_id)
            membership.start(member_id, 0.0)
        n1.etcd.faults = no_quorum
        await n2.server.stop(None)
        await n3.server.stop(None)
        views = await listed(n1)
        assert [view.state for view in views.values()] == ["ready", "unreachable", "unreachable"]
        assert [view.role for view in views.values()] == ["voter", "voter", "client"]


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
