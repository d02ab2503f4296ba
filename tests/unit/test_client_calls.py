"""The client's unary calls, both clients alike: what is sent, what comes back, errors, retries."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import pilfer
from pilfer.v1 import records_pb2, tasks_pb2
from tests.support.fake_service import FakeCluster, FakeNode

Call = Callable[[pilfer.AsyncClient], object]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(FakeCluster(), f"unix:{tmp_path}/node.sock") as node:
        yield node


@pytest.fixture
def client(node: FakeNode) -> Iterator[pilfer.Client]:
    with pilfer.Client(node.address, patience_s=5.0) as client:
        yield client


def test_a_task_goes_through_whole(node: FakeNode, client: pilfer.Client) -> None:
    spec = pilfer.TaskSpec(
        "gzip",
        ("-9", "ü"),
        env={"A": "1"},
        cwd="/tmp",
        stdin=b"\0\xff",
        name="pack",
        labels={"run": "7"},
        requirements=pilfer.Requirements(0.5, 2**20, 7, 1000, 2000),
        timeout_s=1.5,
        grace_s=0.0,
        restart_on_node_loss=False,
        max_attempts=2,
        network=pilfer.Network.HOST,
        mounts=(pilfer.Mount("/a", "/b", read_only=False),),
    )
    task_id = client.submit(spec)
    task = client.status(task_id)
    assert task.spec == spec
    assert (task.id, task.status, task.attempt, task.exit_code, task.succeeded) == (task_id, "queued", 0, None, False)
    assert task.submitted_at is not None
    assert task.submitted_at.utcoffset() is not None


def test_absent_fields_stay_absent(node: FakeNode, client: pilfer.Client) -> None:
    client.submit("true")
    message = node.cluster.submits[0].tasks[0].spec
    assert message == records_pb2.TaskSpec(command="true")
    assert not message.HasField("requirements")


def test_zero_is_not_absent(node: FakeNode, client: pilfer.Client) -> None:
    client.submit("true", grace_s=0.0, pids=0, max_attempts=0)
    message = node.cluster.submits[0].tasks[0].spec
    assert message.HasField("grace_s")
    assert message.requirements.HasField("pids")
    assert message.HasField("max_attempts")


def test_the_end_of_a_task_is_told(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("false")
    node.cluster.start(task_id)
    outcome = records_pb2.Outcome(reason=records_pb2.REASON_EXITED, exit_code=3)
    outcome.usage.cpu_s = 0.25
    node.cluster.end(task_id, outcome)
    task = client.status(task_id[:20])
    assert (task.status, task.reason, task.exit_code, task.signal, task.attempt) == ("complete", "exited", 3, None, 1)
    assert task.usage is not None
    assert task.usage.cpu_s == 0.25
    assert not task.succeeded
    assert task.started_at is not None
    assert task.finished_at is not None
    assert task.node_id == task.attempts[0].node_id


def test_flat_options_and_a_spec_are_the_same(node: FakeNode, client: pilfer.Client) -> None:
    flat = client.submit("gzip", "-9", Path("/x"), cpu=0.5, memory_bytes=7, name="n", network="none")
    spec = client.submit(pilfer.TaskSpec.of("gzip", "-9", "/x", cpu=0.5, memory_bytes=7, name="n", network="none"))
    assert client.status(flat).spec == client.status(spec).spec


def test_options_beside_a_spec_are_refused(client: pilfer.Client) -> None:
    with pytest.raises(TypeError):
        client.submit(pilfer.TaskSpec("true"), "more")
    with pytest.raises(TypeError):
        client.submit("true", no_such_option=1)  # type: ignore[call-arg]  # that is the point


def test_ids_are_made_in_order_and_are_uuid7(client: pilfer.Client) -> None:
    ids = client.submit_many(pilfer.TaskSpec("true") for _ in range(3000))
    assert ids == sorted(ids)
    assert len({*ids}) == 3000
    assert {uuid.UUID(task_id).version for task_id in ids} == {7}


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
)
def test_a_submit_that_no_node_answered_is_repeated_with_the_same_id(
    node: FakeNode, client: pilfer.Client, code: grpc.StatusCode
) -> None:
    node.cluster.fail_next("Submit", code, code)
    task_id = client.submit("true")
    assert [*node.cluster.tasks] == [task_id]
    assert {request.tasks[0].id for request in node.cluster.submits} == {task_id}
    assert node.cluster.calls["Submit"] == 3


def test_a_submit_whose_answer_was_lost_makes_one_task(node: FakeNode, client: pilfer.Client) -> None:
    node.cluster.lose_answer_next("Submit")
    ids = client.submit_many([pilfer.TaskSpec("true")] * 5)
    assert [*node.cluster.tasks] == ids
    assert node.cluster.calls["Submit"] == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.NOT_FOUND, pilfer.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, pilfer.AlreadyExists),
        (grpc.StatusCode.PERMISSION_DENIED, pilfer.NotAllowed),
        (grpc.StatusCode.UNAUTHENTICATED, pilfer.NotAllowed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, pilfer.ResourceExhausted),
        (grpc.StatusCode.INVALID_ARGUMENT, pilfer.InvalidRequest),
        (grpc.StatusCode.INTERNAL, pilfer.ServerFailure),
        (grpc.StatusCode.UNIMPLEMENTED, pilfer.ServerFailure),
    ],
)
def test_other_codes_are_errors_at_once(
    node: FakeNode, client: pilfer.Client, code: grpc.StatusCode, error: type[pilfer.PilferError]
) -> None:
    node.cluster.fail_next("Submit", code)
    with pytest.raises(error, match="the test wants"):
        client.submit("true")
    assert node.cluster.calls["Submit"] == 1


def test_a_node_without_a_quorum_is_told_from_a_connection_that_failed(node: FakeNode, tmp_path: Path) -> None:
    """By what the answer carries, not by its words: the code is the same."""
    node.cluster.has_quorum = False
    with pilfer.Client(node.address, patience_s=0) as client, pytest.raises(pilfer.NoQuorum) as answered:
        next(client.list())
    assert (answered.value.code, answered.value.is_from_node) == ("UNAVAILABLE", True)
    with pilfer.Client(f"unix:{tmp_path}/no.sock", patience_s=0) as client, pytest.raises(pilfer.Unavailable) as failed:
        next(client.list())
    assert type(failed.value) is pilfer.Unavailable
    assert (failed.value.code, failed.value.is_from_node) == ("UNAVAILABLE", False)


def test_patience_ends_and_says_that_it_may_be_stored(node: FakeNode) -> None:
    node.cluster.fail_next("Submit", *[grpc.StatusCode.UNAVAILABLE] * 100)
    with pilfer.Client(node.address, patience_s=0.3) as client, pytest.raises(pilfer.Unavailable) as caught:
        client.submit("true")
    (note,) = caught.value.__notes__
    assert node.cluster.submits == []
    assert "may or may not have been stored" in note
    assert uuid.UUID(note.split()[1]).version == 7


def test_the_deadline_ends_a_call_that_is_never_answered(node: FakeNode) -> None:
    with node.cluster.changed, pilfer.Client(node.address, timeout_s=0.3) as client, pytest.raises(pilfer.TimedOut):
        client.status("0")  # the fake cannot answer while the test holds its state


def test_a_node_that_comes_back_is_found_again(node: FakeNode, client: pilfer.Client) -> None:
    task_id = client.submit("true")
    node.stop()
    node.start()
    assert client.status(task_id).id == task_id


def test_violations_name_their_fields(client: pilfer.Client) -> None:
    with pytest.raises(pilfer.InvalidRequest) as caught:
        client.submit("true", cpu=-1.0)
    assert caught.value.violations == (pilfer.FieldViolation("tasks[0].spec.requirements.cpu", "must be more than 0"),)


def test_violations_count_from_the_first_of_all_batches(node: FakeNode, client: pilfer.Client) -> None:
    specs = [pilfer.TaskSpec("true")] * 5 + [pilfer.TaskSpec("")]
    with pytest.raises(pilfer.InvalidRequest) as caught:
        client.submit_many(specs, batch=2)
    assert [v.field for v in caught.value.violations] == ["tasks[5].spec.command"]
    assert len(node.cluster.tasks) == 4, "the batches before"


def test_validate_only_stores_nothing(node: FakeNode, client: pilfer.Client) -> None:
    client.submit_many([pilfer.TaskSpec("true")] * 3, validate_only=True)
    assert node.cluster.tasks == {}


def test_batches_are_bounded_in_number_and_bytes(node: FakeNode, client: pilfer.Client) -> None:
    told: list[int] = []
    client.submit_many([pilfer.TaskSpec("true")] * 7, batch=3, on_progress=told.append)
    assert [len(request.tasks) for request in node.cluster.submits] == [3, 3, 1]
    assert told == [3, 6, 7]
    node.cluster.submits.clear()
    client.submit_many([pilfer.TaskSpec("true", stdin=bytes(2**20))] * 40)
    sizes = [request.ByteSize() for request in node.cluster.submits]
    assert len(sizes) > 1
    assert max(sizes) <= 16 * 2**20 + 1024


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (pilfer.TaskSpec("true", ("\udcff",)), "spec.args"),
        (pilfer.TaskSpec("\udcff"), "spec.command"),
        (pilfer.TaskSpec("true", network="wifi"), "spec.network"),
        (
            pilfer.TaskSpec("true", requirements=pilfer.Requirements(memory_bytes=2**63)),
            "spec.requirements.memory_bytes",
        ),
        (pilfer.TaskSpec("true", env={"A": 1}), "spec.env"),  # type: ignore[dict-item]  # that is the point
    ],
)
def test_what_no_message_can_hold_is_an_error_with_its_field(
    node: FakeNode, client: pilfer.Client, spec: pilfer.TaskSpec, field: str
) -> None:
    with pytest.raises(pilfer.InvalidRequest) as caught:
        client.submit(spec)
    assert [v.field for v in caught.value.violations] == [field]
    with pytest.raises(pilfer.InvalidRequest) as caught:
        client.submit_many([pilfer.TaskSpec("true"), spec])
    assert [v.field for v in caught.value.violations] == [f"tasks[1].{field}"]
    assert node.cluster.tasks == {}


def test_unknown_and_ambiguous_ids(client: pilfer.Client) -> None:
    ids = client.submit_many([pilfer.TaskSpec("true")] * 2)
    common = ids[0][: next(n for n, (a, b) in enumerate(zip(*ids, strict=True)) if a != b)]
    with pytest.raises(pilfer.NotFound):
        client.status("ffffffff")
    with pytest.raises(pilfer.InvalidRequest, match="ambiguous"):
        client.status(common)
    assert [task.id for task in client.status(ids)] == ids


def test_cancel_says_how_far_it_came(node: FakeNode, client: pilfer.Client) -> None:
    queued, running, ended = client.submit_many([pilfer.TaskSpec("true")] * 3)
    node.cluster.start(running)
    node.cluster.end(ended)
    steps = [result.step for result in client.cancel([queued, running, ended, "ffff"])]
    assert steps == ["canceled", "requested", "already_ended", "not_found"]
    assert client.cancel(queued).step is pilfer.CancelStep.ALREADY_ENDED


def test_list_goes_through_all_pages_and_filters(node: FakeNode, client: pilfer.Client) -> None:
    ids = client.submit_many(pilfer.TaskSpec("true", labels={"n": str(n % 2)}) for n in range(2500))
    assert [task.id for task in client.list()] == ids
    assert [task.id for task in client.list(labels={"n": "1"})] == ids[1::2]
    assert [task.id for task in client.list(newest_first=True, limit=1200)] == ids[::-1][:1200]
    assert [*client.list(name="nobody")] == []
    node.cluster.end(ids[7])
    assert [task.id for task in client.list(status="complete")] == [ids[7]]
    with pytest.raises(ValueError, match="nonsense"):
        [*client.list(status="nonsense")]


def test_a_listing_survives_a_lost_page(node: FakeNode, client: pilfer.Client) -> None:
    ids = client.submit_many([pilfer.TaskSpec("true")] * 2500)
    listing = client.list()
    first = next(listing)
    node.cluster.fail_next("List", grpc.StatusCode.UNAVAILABLE)
    assert [first.id, *(task.id for task in listing)] == ids


def test_messages_travel_as_they_are(node: FakeNode, client: pilfer.Client) -> None:
    task_id = str(uuid.uuid4())
    message = tasks_pb2.NewTask(id=task_id, spec=records_pb2.TaskSpec(command="true"))
    assert client.submit(message) == task_id
    assert client.submit(message) == task_id, "repeating makes no second"
    with pytest.raises(pilfer.AlreadyExists):
        client.submit("false", task_id=task_id)


def test_a_long_socket_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 90) / ("e" * 90)
    directory.mkdir(parents=True)
    fd = os.open(directory, os.O_PATH)
    try:
        with FakeNode(FakeCluster(), f"unix:/proc/self/fd/{fd}/node.sock"):
            with pilfer.Client(f"unix:{directory}/node.sock") as client:
                assert client.status(client.submit("true")).status == "queued"
            assert not [link for link in Path("/proc/self/fd").iterdir() if _is_extra(link, directory, fd)]
    finally:
        os.close(fd)


def _is_extra(link: Path, directory: Path, fd: int) -> bool:
    try:
        return int(link.name) != fd and link.readlink() == directory
    except OSError:
        return False


async def test_the_async_client_does_the_same(node: FakeNode) -> None:
    async with pilfer.AsyncClient(node.address) as client:
        node.cluster.fail_next("Submit", grpc.StatusCode.UNAVAILABLE)
        ids = await client.submit_many([pilfer.TaskSpec("true")] * 1500)
        assert ids == [*node.cluster.tasks]
        assert [task.id async for task in client.list()] == ids
        assert (await client.cancel(ids[0])).step == "canceled"
        assert (await client.status(ids[1])).status == "queued"
        with pytest.raises(pilfer.NotFound):
            await client.status("ffff")
        with pytest.raises(pilfer.InvalidRequest):
            await client.submit("")


async def test_many_coroutines_share_one_client(node: FakeNode) -> None:
    async with pilfer.AsyncClient(node.address) as client:
        ids = await asyncio.gather(*(client.submit("true", name=str(n)) for n in range(50)))
        tasks = await asyncio.gather(*(client.status(task_id) for task_id in ids))
        assert [task.spec.name for task in tasks] == [str(n) for n in range(50)]


async def test_a_canceled_coroutine_leaves_the_client_usable(node: FakeNode) -> None:
    async with pilfer.AsyncClient(node.address) as client:
        with node.cluster.changed:
            waiting = asyncio.ensure_future(client.status("0"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.2)
        assert await client.submit("true") == node.cluster.only_task_id()


def test_the_sync_client_works_inside_a_running_loop(node: FakeNode) -> None:
    """It needs no loop of its own, so it is not disturbed by one."""

    async def main() -> list[str]:
        with pilfer.Client(node.address) as client:
            client.submit("true")
            return [task.id for task in client.list()]

    assert asyncio.run(main()) == [*node.cluster.tasks]


def test_nodes(node: FakeNode, client: pilfer.Client) -> None:
    view = node.cluster.nodes
    assert client.nodes() == []
    from pilfer.v1 import nodes_pb2

    view.append(nodes_pb2.NodeView(state="ready", role="voter", load=0.5, running=2, etcd_version="3.5.30"))
    view[0].node.id = "n"
    view[0].node.capacity.cpu = 4
    (found,) = client.nodes()
    assert (found.id, found.state, found.role, found.load, found.cpu, found.running) == (
        "n",
        "ready",
        "voter",
        0.5,
        4.0,
        2,
    )
