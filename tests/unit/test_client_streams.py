"""Watch, wait and log: exactly every event and every byte, also through broken connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import grpc
import pytest

import pilfer
from pilfer.v1 import records_pb2
from tests.support.aside import Aside
from tests.support.fake_service import FakeCluster, FakeNode
from tests.support.wait import wait_until_sync

TRUE = pilfer.TaskSpec("true")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(FakeCluster(), f"unix:{tmp_path}/node.sock") as node:
        yield node


@pytest.fixture
def client(node: FakeNode) -> Iterator[pilfer.Client]:
    with pilfer.Client(node.address, patience_s=5.0) as client:
        yield client


def live(cluster: FakeCluster, task_id: str) -> None:
    cluster.start(task_id)
    cluster.end(task_id)


def when_called(cluster: FakeCluster, call: str, times: int) -> None:
    wait_until_sync(lambda: cluster.calls[call] >= times, what=f"{times} calls of {call}")


def test_waiting_for_what_has_ended_returns_at_once(node: FakeNode, client: pilfer.Client) -> None:
    ids = client.submit_many([TRUE] * 3)
    for task_id in ids:
        live(node.cluster, task_id)
    assert [task.id for task in client.wait(ids[::-1])] == ids[::-1]
    assert node.cluster.calls["Watch"] == 1
    assert client.wait(ids[0]).succeeded
    assert client.wait(ids[0][:-2]).id == ids[0], "a prefix will do"
    assert client.wait([]) == []


def test_waiting_sees_the_end_and_does_not_poll(node: FakeNode, client: pilfer.Client) -> None:
    ids = client.submit_many([TRUE] * 3)
    ends = [lambda task_id=task_id: live(node.cluster, task_id) for task_id in ids]
    with Aside(lambda: when_called(node.cluster, "Watch", 1), *ends):
        tasks = client.wait(ids)
    assert [task.status for task in tasks] == ["complete"] * 3
    assert (node.cluster.calls["Watch"], node.cluster.calls["Status"]) == (1, 0)


def test_waiting_twice_for_the_same_id(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    live(node.cluster, task_id)
    assert [task.id for task in client.wait([task_id, task_id])] == [task_id, task_id]


def test_as_ended_gives_each_once_in_the_order_of_their_ends(node: FakeNode, client: pilfer.Client) -> None:
    ids = client.submit_many([TRUE] * 4)
    live(node.cluster, ids[2])
    with closing(client.as_ended(ids)) as tasks:
        assert next(tasks).id == ids[2]
        for task_id in (ids[3], ids[0], ids[1]):
            live(node.cluster, task_id)
        assert [task.id for task in tasks] == [ids[3], ids[0], ids[1]]


def test_waiting_is_limited(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    before = time.monotonic()
    with pytest.raises(pilfer.TimedOut):
        client.wait(task_id, timeout_s=0.2)
    assert time.monotonic() - before >= 0.2
    with pytest.raises(TimeoutError):
        client.wait([task_id], timeout_s=0)


def test_waiting_for_the_unknown(node: FakeNode, client: pilfer.Client) -> None:
    with pytest.raises(pilfer.NotFound):
        client.wait("00000000-0000-4000-8000-000000000000")
    task_id = client.submit("true")
    with (
        Aside(lambda: when_called(node.cluster, "Watch", 2), lambda: node.cluster.delete(task_id)),
        pytest.raises(pilfer.NotFound),
    ):
        client.wait(task_id)


@pytest.mark.parametrize("tells_revision", [True, False])
def test_waiting_goes_on_after_each_break(node: FakeNode, client: pilfer.Client, tells_revision: bool) -> None:
    """Each stream breaks after its first message: the end of one task."""
    node.cluster.tells_ready_revision = tells_revision
    node.cluster.break_streams_after = 1
    ids = client.submit_many([TRUE] * 3)
    for task_id in ids:
        live(node.cluster, task_id)
    assert [task.id for task in client.wait(ids)] == ids
    assert node.cluster.calls["Watch"] >= 3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ends_that_come_in_groups(node: FakeNode, client: pilfer.Client, size: int) -> None:
    """Some before the wait, the others during it, and the stream breaks, later each time."""
    cluster = node.cluster
    cluster.group_size = size
    ids = client.submit_many([TRUE] * 6)
    for task_id in ids[:3]:
        live(cluster, task_id)

    def end_others() -> None:
        when_called(cluster, "Watch", 1)
        cluster.same_revision(*(lambda task_id=task_id: live(cluster, task_id) for task_id in ids[3:]))

    with Aside(end_others), Breaker(cluster, "Watch", 0), closing(client.as_ended(ids)) as tasks:
        assert sorted(task.id for task in tasks) == sorted(ids)


def test_waiting_outlives_a_restart_of_the_node(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")

    def restart() -> None:
        when_called(node.cluster, "Watch", 1)
        node.stop()
        live(node.cluster, task_id)
        node.start()

    with Aside(restart):
        assert client.wait(task_id).succeeded


def test_patience_with_a_stream_ends(node: FakeNode) -> None:
    with pilfer.Client(node.address, patience_s=0.3) as client:
        task_id = client.submit("true")
        with Aside(lambda: when_called(node.cluster, "Watch", 1), node.stop), pytest.raises(pilfer.Unavailable):
            client.wait(task_id)


def test_watching_all_tasks(node: FakeNode, client: pilfer.Client) -> None:
    seen: list[pilfer.TaskEvent] = []
    before = client.submit("true")

    def act() -> None:
        when_called(node.cluster, "Watch", 1)
        live(node.cluster, client.submit("true"))
        node.cluster.delete(before)

    with Aside(act), closing(client.watch()) as events:
        seen = [*islice(events, 4)]
    assert [event.task.status for event in seen[:3]] == ["queued", "running", "complete"]
    assert [event.revision for event in seen] == sorted({event.revision for event in seen})
    assert (seen[3].task.id, seen[3].deleted) == (before, True)


def test_watching_some_tasks_begins_with_their_state(node: FakeNode, client: pilfer.Client) -> None:
    ids = client.submit_many([TRUE] * 2)
    node.cluster.start(ids[1])
    with closing(client.watch(ids)) as events:
        assert [(event.task.id, event.task.status) for event in islice(events, 2)] == [
            (ids[0], "queued"),
            (ids[1], "running"),
        ]
        client.submit("true")
        node.cluster.end(ids[1])
        assert next(events).task.id == ids[1]


def test_watching_by_label_and_from_a_revision(node: FakeNode, client: pilfer.Client) -> None:
    wanted = pilfer.TaskSpec("true", labels={"a": "1"})
    first, _, second = client.submit_many([wanted, TRUE, wanted])
    with closing(client.watch(labels={"a": "1"}, from_revision=1)) as events:
        assert [event.task.id for event in islice(events, 2)] == [first, second]


@pytest.mark.parametrize("tells_revision", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("group_size", [0, 2])
def test_a_watch_through_breaks_loses_and_repeats_nothing(
    node: FakeNode, client: pilfer.Client, group_size: int, limit: int, tells_revision: bool
) -> None:
    """Also where a stream breaks between two events of one revision."""
    cluster = node.cluster
    cluster.group_size = group_size
    cluster.tells_ready_revision = tells_revision
    with ExitStack() as stack:
        events = stack.enter_context(closing(client.watch(from_revision=1)))
        ids = client.submit_many([TRUE] * 6)
        cluster.same_revision(*(lambda task_id=task_id: cluster.start(task_id) for task_id in ids[:3]))
        cluster.same_revision(*(lambda task_id=task_id: cluster.end(task_id) for task_id in ids))
        stack.enter_context(Breaker(cluster, "Watch", limit))
        found = [(event.revision, event.task.id) for event in islice(events, 15)]
        assert found == [(revision, task.id) for revision, task, _ in cluster.events]


def test_a_watch_of_ids_that_breaks_before_its_first_transition(node: FakeNode, client: pilfer.Client) -> None:
    cluster = node.cluster
    ids = client.submit_many([TRUE] * 2)
    with closing(client.watch(ids)) as events:
        assert [event.task.id for event in islice(events, 2)] == ids
        cluster.break_streams()
        live(cluster, ids[0])
        assert [event.task.status for event in islice(events, 2)] == ["running", "complete"]


def test_a_watch_of_all_that_cannot_go_on_says_so(node: FakeNode, client: pilfer.Client) -> None:
    node.cluster.compacted = 50
    with closing(client.watch(from_revision=10)) as events, pytest.raises(pilfer.RevisionGone):
        next(events)


def test_a_wait_goes_on_after_compaction(node: FakeNode, client: pilfer.Client) -> None:
    cluster = node.cluster
    task_id = client.submit("true")

    def compact() -> None:
        when_called(cluster, "Watch", 1)
        with cluster.changed:
            cluster.start(task_id)
            cluster.end(task_id)
            cluster.compacted = cluster.revision
            cluster.break_streams()

    with Aside(compact):
        assert client.wait(task_id).succeeded


def test_a_closed_iterator_ends_its_call(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    events = client.watch(task_id)
    next(events)
    events.close()
    assert [*events] == []
    # The fake's thread notices that its caller is gone, which the end of the server waits for.
    node.stop()


def test_the_log_is_the_exact_bytes_of_each_stream(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    assert [*client.log(task_id)] == []
    node.cluster.start(task_id)
    blob = bytes(range(256)) * 1000
    node.cluster.write(task_id, blob)
    node.cluster.write(task_id, b"no newline", stderr=True)
    assert b"".join(chunk.data for chunk in client.log(task_id, stream="stdout")) == blob
    assert [chunk.data for chunk in client.log(task_id, stream=pilfer.Stream.STDERR)] == [b"no newline"]
    assert {(chunk.stream, chunk.attempt) for chunk in client.log(task_id)} == {("stdout", 1), ("stderr", 1)}
    assert max(len(chunk.data) for chunk in client.log(task_id)) <= 64 * 1024


def test_tail(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    node.cluster.start(task_id)
    node.cluster.write(task_id, b"a\nb\nc\n")
    assert b"".join(chunk.data for chunk in client.log(task_id, tail_lines=2)) == b"b\nc\n"
    assert [*client.log(task_id, tail_lines=0)] == []


def test_following_from_the_queue_through_attempts_to_the_end(node: FakeNode, client: pilfer.Client) -> None:
    cluster = node.cluster
    task_id = client.submit("true")

    def act() -> None:
        when_called(cluster, "Log", 1)
        cluster.start(task_id)
        cluster.write(task_id, b"one ")
        cluster.requeue(task_id)
        cluster.start(task_id)
        cluster.write(task_id, b"two")
        cluster.end(task_id)

    with Aside(act):
        chunks = [*client.log(task_id, follow=True)]
    assert [(chunk.attempt, chunk.data) for chunk in chunks] == [(1, b"one "), (2, b"two")]
    assert [chunk.data for chunk in client.log(task_id, attempt=1, follow=True)] == [b"one "]
    with pytest.raises(pilfer.NotFound):
        [*client.log(task_id, attempt=3)]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_followed_log_through_breaks_has_every_byte_once(node: FakeNode, client: pilfer.Client, limit: int) -> None:
    """The connection breaks after a few chunks, over and over, also between and within attempts."""
    cluster = node.cluster
    task_id = client.submit("true")
    written: dict[int, bytes] = {1: b"", 2: b""}
    for attempt in written:
        cluster.start(task_id)
        for number in range(3):
            piece = bytes([attempt, number]) * 40_000
            cluster.write(task_id, piece)
            cluster.write(task_id, b"to stderr", stderr=True)
            written[attempt] += piece
        if attempt == 1:
            # From the first attempt on, as a follower that came in time.
            chunks = client.log(task_id, follow=True)
            received = [next(chunks)]
            cluster.requeue(task_id)
    cluster.end(task_id)
    with Breaker(cluster, "Log", limit):
        received += chunks
    for attempt, data in written.items():
        got = b"".join(c.data for c in received if c.attempt == attempt and c.stream is pilfer.Stream.STDOUT)
        assert got == data
        errors = b"".join(c.data for c in received if c.attempt == attempt and c.stream is pilfer.Stream.STDERR)
        assert errors == b"to stderr" * 3
    assert cluster.calls["Log"] > 2


def test_a_notice_is_told_once_however_often_the_log_breaks(node: FakeNode, client: pilfer.Client) -> None:
    cluster = node.cluster
    task_id = client.submit("true")
    cluster.start(task_id)
    cluster.write(task_id, b"one ")
    cluster.tell(task_id, "something happened")
    cluster.write(task_id, b"two")
    chunks = client.log(task_id, follow=True)
    received = [next(chunks), next(chunks)]
    cluster.break_streams()
    cluster.end(task_id)
    received += chunks
    assert [chunk.notice for chunk in received if chunk.notice] == ["something happened"]
    assert b"".join(chunk.data for chunk in received) == b"one two"


class Breaker:
    """Lets each new stream of a call live for one message more than the last, so that the end can be reached."""

    def __init__(self, cluster: FakeCluster, call: str, first: int) -> None:
        self._cluster = cluster
        self._call = call
        self._limit = first
        self._enter = cluster.enter

    def __enter__(self) -> None:
        def enter(call: str, context: grpc.ServicerContext) -> int:
            if call == self._call:
                self._limit += 1
                self._cluster.break_streams_after = self._limit
            return self._enter(call, context)

        self._cluster.break_streams_after = self._limit
        self._cluster.enter = enter  # type: ignore[method-assign]  # the fake's own hook

    def __exit__(self, *_: object) -> None:
        self._cluster.enter = self._enter  # type: ignore[method-assign]  # as above
        self._cluster.break_streams_after = None


def test_a_tail_that_breaks_goes_on_at_the_byte(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    node.cluster.start(task_id)
    node.cluster.write(task_id, b"a\nb\n")
    chunks = client.log(task_id, tail_lines=1, follow=True)
    assert next(chunks).data == b"b\n"
    node.cluster.break_streams()
    node.cluster.write(task_id, b"c\nd\n")
    node.cluster.end(task_id)
    assert b"".join(chunk.data for chunk in chunks) == b"c\nd\n"


def test_what_was_had_is_not_sent_again(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    node.cluster.start(task_id)
    node.cluster.write(task_id, b"12345")
    node.cluster.write(task_id, b"123", stderr=True)
    chunks = client.log(task_id, follow=True)
    assert [next(chunks).data, next(chunks).data] == [b"12345", b"123"]
    node.cluster.break_streams()
    node.cluster.end(task_id)
    assert [*chunks] == []
    first, again = node.cluster.logs_asked_for
    assert not first.HasField("attempt")
    assert (again.attempt, again.stdout_offset, again.stderr_offset, again.through_attempts) == (1, 5, 3, True)


def test_outcomes_of_all_kinds_are_told(node: FakeNode, client: pilfer.Client) -> None:
    for reason in pilfer.Reason:
        task_id = client.submit("true")
        node.cluster.start(task_id)
        number = records_pb2.Reason.Value(f"REASON_{reason.name}")
        outcome = records_pb2.Outcome(reason=number, detail="why")  # type: ignore[arg-type]  # the stubs want the enum
        node.cluster.end(task_id, outcome)
        assert client.wait(task_id).reason is reason


async def test_the_async_client_waits_watches_and_follows(node: FakeNode) -> None:
    async with pilfer.AsyncClient(node.address) as client:
        task_id = await client.submit("true")

        def act() -> None:
            when_called(node.cluster, "Log", 1)
            node.cluster.start(task_id)
            node.cluster.write(task_id, b"hello")
            node.cluster.break_streams()
            node.cluster.end(task_id)

        with Aside(act):
            assert [chunk.data async for chunk in client.log(task_id, follow=True)] == [b"hello"]
        assert (await client.wait(task_id)).succeeded
        events = client.watch(task_id)
        assert (await anext(events)).task.status is pilfer.Status.COMPLETE
        await events.aclose()
        with pytest.raises(pilfer.TimedOut):
            await client.wait(await client.submit("true"), timeout_s=0.1)
