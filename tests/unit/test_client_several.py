"""A client that knows several nodes of one cluster: one dies, freezes, comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from itertools import islice
from pathlib import Path

import grpc
import pytest

import pilfer
from pilfer._choice import SILENCE_S
from tests.support.aside import Aside
from tests.support.fake_service import FakeCluster, FakeNode
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import wait_until, wait_until_sync

#: Longer than any of these tests may take: what passes does so because another node was asked.
PATIENCE_S = 60.0


class Two:
    """Two nodes of one cluster. Their calls are counted apart; what they store is the same."""

    def __init__(self, directory: Path) -> None:
        self.cluster = FakeCluster()
        self.nodes = [FakeNode(self.cluster, f"unix:{directory}/{name}.sock") for name in "ab"]
        self.addresses = ",".join(node.address for node in self.nodes)

    def client(self, *, patience_s: float = PATIENCE_S) -> pilfer.Client:
        return pilfer.Client(self.addresses, patience_s=patience_s)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    two = Two(tmp_path)
    with ExitStack() as stack:
        for node in two.nodes:
            stack.enter_context(node)
        yield two


def test_the_first_that_answers_is_used_and_kept(two: Two) -> None:
    first, second = two.nodes
    with two.client() as client:
        task_id = client.submit("true")
        first.stop()
        began = time.monotonic()
        assert client.status(task_id).id == task_id
        assert time.monotonic() - began < PATIENCE_S / 4, "the next one is asked at once"
        first.start()
        second.stop()
        assert client.status(task_id).id == task_id, "one that came back is asked again"


def test_the_first_may_be_down_from_the_beginning(two: Two) -> None:
    two.nodes[0].stop()
    with two.client(patience_s=0.0) as client:
        assert client.status(client.submit("true")).status == "queued"


def test_a_submit_whose_answer_was_lost_is_repeated_at_the_next_node_and_makes_one_task(two: Two) -> None:
    two.cluster.lose_answer_next("Submit")
    with two.client() as client:
        task_id = client.submit("true")
    assert [*two.cluster.tasks] == [task_id]
    assert two.cluster.calls["Submit"] == 2


def test_a_node_without_a_quorum_is_left_for_another(two: Two) -> None:
    two.cluster.fail_next("Status", grpc.StatusCode.UNAVAILABLE)
    with two.client(patience_s=0.0) as client:
        assert client.status(client.submit("true")).status == "queued"


def test_an_answer_that_is_an_error_is_not_asked_for_again(two: Two) -> None:
    with two.client() as client, pytest.raises(pilfer.NotFound):
        client.status("ffff")
    assert two.cluster.calls["Status"] == 1


def test_when_none_answers_all_are_named_with_what_they_said(two: Two, tmp_path: Path) -> None:
    two.nodes[1].stop()
    two.cluster.fail_next("Submit", *[grpc.StatusCode.UNAVAILABLE] * 50)
    address = f"{two.addresses},unix:{tmp_path}/nowhere.sock"
    with pilfer.Client(address, patience_s=0.3) as client, pytest.raises(pilfer.Unavailable) as caught:
        client.submit("true")
    message = caught.value.message
    assert message.startswith("none of the 3 nodes named could answer: ")
    assert f"unix:{tmp_path}/a.sock: the test wants UNAVAILABLE" in message
    assert f"unix:{tmp_path}/b.sock: " in message
    assert f"unix:{tmp_path}/nowhere.sock: No such file or directory" in message
    assert "no node answers at" not in message, "each address is said once"
    assert "may or may not have been stored" in caught.value.__notes__[0]


def test_a_wait_goes_on_at_another_node(two: Two) -> None:
    with two.client() as client:
        task_id = client.submit("true")

        def act() -> None:
            wait_until_sync(lambda: two.cluster.calls["Watch"] >= 1, what="it waits")
            two.nodes[0].stop()
            two.cluster.start(task_id)
            two.cluster.end(task_id)

        with Aside(act):
            assert client.wait(task_id).succeeded


def test_a_watch_that_goes_from_node_to_node_loses_and_repeats_nothing(two: Two) -> None:
    cluster, (first, second) = two.cluster, two.nodes
    with two.client() as client, closing(client.watch(from_revision=1)) as events:
        ids = client.submit_many([pilfer.TaskSpec("true")] * 4)
        found = [(event.revision, event.task.id) for event in islice(events, 4)]
        first.stop()
        cluster.same_revision(*(lambda task_id=task_id: cluster.start(task_id) for task_id in ids[:3]))
        found += [(event.revision, event.task.id) for event in islice(events, 2)]
        first.start()
        second.stop()
        cluster.end(ids[0])
        found += [(event.revision, event.task.id) for event in islice(events, 2)]
        assert found == [(revision, task.id) for revision, task, _ in cluster.events]


def test_a_followed_log_goes_from_node_to_node_with_every_byte_once(two: Two) -> None:
    cluster, (first, second) = two.cluster, two.nodes
    with two.client() as client:
        task_id = client.submit("true")
        cluster.start(task_id)
        cluster.write(task_id, b"one ")
        with closing(client.log(task_id, follow=True)) as chunks:
            received = [next(chunks)]
            first.stop()
            cluster.write(task_id, b"two ")
            received.append(next(chunks))
            first.start()
            second.stop()
            cluster.requeue(task_id)
            cluster.start(task_id)
            cluster.write(task_id, b"anew")
            cluster.end(task_id)
            received += chunks
    assert [(chunk.attempt, chunk.data) for chunk in received] == [(1, b"one "), (1, b"two "), (2, b"anew")]


def test_what_waits_at_a_node_that_is_cut_off_from_the_others_goes_to_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its streams stand and tell nothing; what is begun anew there is refused."""
    monkeypatch.setattr("pilfer._reach._RENEW_S", 0.2)
    cut_off, rest = FakeCluster(), FakeCluster()
    with (
        FakeNode(cut_off, f"unix:{tmp_path}/a.sock") as a,
        FakeNode(rest, f"unix:{tmp_path}/b.sock") as b,
        pilfer.Client(f"{a.address},{b.address}", patience_s=PATIENCE_S) as client,
    ):
        task_id = client.submit("true")
        rest.add(cut_off.submits[0].tasks[0])
        for cluster in (cut_off, rest):
            cluster.start(task_id)
            cluster.write(task_id, b"before ")
        chunks = client.log(task_id, follow=True)
        assert next(chunks).data == b"before "

        def act() -> None:
            wait_until_sync(lambda: cut_off.calls["Watch"] > 2, what="the watch was begun again at the same node")
            assert rest.calls["Watch"] == 0
            for call in ("Watch", "Log"):
                cut_off.fail_next(call, *[grpc.StatusCode.UNAVAILABLE] * 1000)
            rest.write(task_id, b"after")
            rest.end(task_id)

        with Aside(act):
            assert client.wait(task_id).succeeded
        assert b"".join(chunk.data for chunk in chunks) == b"after"


# --- frozen: the connection stands, and nothing answers


@pytest.fixture
async def freezable(tmp_path: Path) -> AsyncIterator[tuple[FakeCluster, TcpProxy, str]]:
    """A cluster, a node's way that can be cut without a word, and the addresses of that node and of another."""
    two = Two(tmp_path)
    first = FakeNode(two.cluster, "127.0.0.1:0")
    async with AsyncExitStack() as stack:
        # Servers end after the proxy, whose connections they would wait for.
        stack.enter_context(two.nodes[1])
        stack.enter_context(first)
        proxy = await stack.enter_async_context(TcpProxy(first.address))
        yield two.cluster, proxy, f"{proxy.address},{two.nodes[1].address}"


@pytest.mark.parametrize("kind", ["quick", "long"])
async def test_a_call_leaves_a_node_that_froze_on_a_standing_connection(
    freezable: tuple[FakeCluster, TcpProxy, str], kind: str
) -> None:
    cluster, proxy, addresses = freezable
    async with pilfer.AsyncClient(addresses, insecure=True, patience_s=PATIENCE_S) as client:
        task_id = await client.submit("true")
        proxy.swallow()
        began = time.monotonic()
        if kind == "quick":
            assert (await client.status(task_id)).id == task_id
        else:
            assert [task.id async for task in client.list()] == [task_id]
        assert SILENCE_S * 0.9 <= time.monotonic() - began < PATIENCE_S / 4
        began = time.monotonic()
        await client.status(task_id)
        assert time.monotonic() - began < SILENCE_S, "the frozen one is asked no more"
        assert cluster.calls["Submit"] == 1


async def test_a_client_that_comes_to_a_frozen_node_turns_to_the_next(
    freezable: tuple[FakeCluster, TcpProxy, str],
) -> None:
    _, proxy, addresses = freezable
    proxy.swallow()

    def blocking() -> str:
        with pilfer.Client(addresses, insecure=True, patience_s=0.0) as client:
            return client.submit("true")

    began = time.monotonic()
    assert await asyncio.to_thread(blocking)
    assert time.monotonic() - began < PATIENCE_S / 4


async def test_streams_leave_a_node_that_freezes(freezable: tuple[FakeCluster, TcpProxy, str]) -> None:
    """The connection's pings tell; a new stream begins with a sign of life."""
    cluster, proxy, addresses = freezable
    async with pilfer.AsyncClient(addresses, insecure=True, patience_s=PATIENCE_S) as client:
        task_id = await client.submit("true")
        cluster.start(task_id)
        cluster.write(task_id, b"before ")
        async with aclosing(client.log(task_id, follow=True)) as chunks:
            assert (await anext(chunks)).data == b"before "
            waiting = asyncio.ensure_future(client.wait(task_id, timeout_s=PATIENCE_S))
            await wait_until(lambda: cluster.calls["Watch"] > 0, what="it waits")
            proxy.swallow()
            cluster.write(task_id, b"after")
            cluster.end(task_id)
            assert [chunk.data async for chunk in chunks] == [b"after"]
        assert (await waiting).succeeded


async def test_all_frozen_is_told_at_the_deadline(freezable: tuple[FakeCluster, TcpProxy, str]) -> None:
    _, proxy, addresses = freezable
    frozen = addresses.partition(",")[0]
    async with pilfer.AsyncClient(
        f"{frozen},localhost:{proxy.address.rpartition(':')[2]}", insecure=True, timeout_s=1.0, patience_s=0.0
    ) as client:
        await client.nodes()
        proxy.swallow()
        with pytest.raises(pilfer.TimedOut) as caught:
            await client.status("0")
    assert f"{frozen}: no answer within 1 s; 1 not asked yet" in caught.value.message
