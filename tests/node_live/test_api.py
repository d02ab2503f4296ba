"""The gRPC API of a real node, by its generated stubs: bad input, codes, sizes, clients that go away, services."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from pilfer.v1 import nodes_pb2, nodes_pb2_grpc, records_pb2, tasks_pb2, tasks_pb2_grpc
from tests.support.node_process import LiveNode, live_node
from tests.support.wait import wait_until_sync

pytestmark = pytest.mark.node

Stub = tasks_pb2_grpc.TaskServiceStub


@pytest.fixture(scope="module")
def node() -> Iterator[LiveNode]:
    with live_node("--cpu", "2") as started:
        yield started


@pytest.fixture(scope="module")
def channel(node: LiveNode) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(node.address, options=options) as opened:
        # Connected before the first test, which is checked for leaks.
        grpc.channel_ready_future(opened).result(30)
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def spec(**changes: Any) -> records_pb2.TaskSpec:
    return records_pb2.TaskSpec(**({"command": "true"} | changes))


def submit(stub: Stub, *specs: records_pb2.TaskSpec, **options: bool) -> list[str]:
    tasks = [tasks_pb2.NewTask(spec=one) for one in specs]
    return list(stub.Submit(tasks_pb2.SubmitRequest(tasks=tasks, **options), timeout=60).ids)


def refused(call: Callable[[], object]) -> grpc.Call:
    """The status of a call that must not succeed."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return cast("grpc.Call", raised.value)  # what a stub raises is both


def violations(error: grpc.Call) -> list[str]:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    status = rpc_status.from_call(error)
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert all(violation.description for violation in bad.field_violations)
    return [violation.field for violation in bad.field_violations]


NEEDS = records_pb2.Requirements


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (spec(command=""), "tasks[0].spec.command"),
        (spec(command="a\0b"), "tasks[0].spec.command"),
        (spec(args=["x" * 131_072]), "tasks[0].spec.args[0]"),
        (spec(env={"A=B": "c"}), 'tasks[0].spec.env["A=B"]'),
        (spec(cwd="relative"), "tasks[0].spec.cwd"),
        (spec(requirements=NEEDS(memory_bytes=-1)), "tasks[0].spec.requirements.memory_bytes"),
        (spec(requirements=NEEDS(cpu=0)), "tasks[0].spec.requirements.cpu"),
        (spec(requirements=NEEDS(cpu=float("nan"))), "tasks[0].spec.requirements.cpu"),
        (spec(requirements=NEEDS(pids=0)), "tasks[0].spec.requirements.pids"),
        (spec(requirements=NEEDS(io_read_bytes_per_s=-5)), "tasks[0].spec.requirements.io_read_bytes_per_s"),
        (spec(timeout_s=-1.0), "tasks[0].spec.timeout_s"),
        (spec(grace_s=-1.0), "tasks[0].spec.grace_s"),
        (spec(max_attempts=0), "tasks[0].spec.max_attempts"),
        (spec(network=7), "tasks[0].spec.network"),
        (spec(network=records_pb2.NETWORK_HOST), "tasks[0].spec.network"),
        (spec(mounts=[records_pb2.Mount(source="/etc", target="/x")]), "tasks[0].spec.mounts[0].source"),
        (spec(mounts=[records_pb2.Mount(source="/etc", target="/proc")]), "tasks[0].spec.mounts[0].target"),
        (spec(stdin=b"x" * (1 << 20)), "tasks[0].spec"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_stored(stub: Stub, bad: records_pb2.TaskSpec, field: str) -> None:
    fields = violations(refused(lambda: submit(stub, bad)))
    assert any(found == field or found.startswith(field) for found in fields), fields
    good_id = str(uuid.uuid4())
    tasks = [tasks_pb2.NewTask(id=good_id, spec=spec()), tasks_pb2.NewTask(spec=bad)]
    named = violations(refused(lambda: stub.Submit(tasks_pb2.SubmitRequest(tasks=tasks), timeout=30)))
    assert all(found.startswith("tasks[1].") for found in named)
    gone = refused(lambda: stub.Status(tasks_pb2.StatusRequest(ids=[good_id]), timeout=30))
    assert gone.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("task_id", ["../../etc/passwd", "not-a-uuid", "A" * 36, "0" * 1000, "a/b"])
def test_an_id_that_is_none_is_refused_everywhere(stub: Stub, task_id: str) -> None:
    tasks = [tasks_pb2.NewTask(id=task_id, spec=spec())]
    assert violations(refused(lambda: stub.Submit(tasks_pb2.SubmitRequest(tasks=tasks), timeout=30))) == ["tasks[0].id"]
    for call in (
        lambda: stub.Status(tasks_pb2.StatusRequest(ids=[task_id]), timeout=30),
        lambda: stub.Cancel(tasks_pb2.CancelRequest(ids=[task_id]), timeout=30),
        lambda: list(stub.Log(tasks_pb2.LogRequest(id=task_id), timeout=30)),
        lambda: list(stub.Watch(tasks_pb2.WatchRequest(ids=[task_id]), timeout=30)),
    ):
        assert violations(refused(call))


def test_unknown_tasks_are_not_found(stub: Stub) -> None:
    missing = str(uuid.uuid4())
    for call in (
        lambda: stub.Status(tasks_pb2.StatusRequest(ids=[missing]), timeout=30),
        lambda: list(stub.Log(tasks_pb2.LogRequest(id=missing), timeout=30)),
        lambda: list(stub.Watch(tasks_pb2.WatchRequest(ids=[missing]), timeout=30)),
    ):
        assert refused(call).code() is grpc.StatusCode.NOT_FOUND


def test_submit_is_idempotent_and_an_id_is_for_one_spec(stub: Stub) -> None:
    task = tasks_pb2.NewTask(id=str(uuid.uuid4()), spec=spec(args=["x"]))
    request = tasks_pb2.SubmitRequest(tasks=[task])
    for _ in range(3):
        assert list(stub.Submit(request, timeout=30).ids) == [task.id]
    task.spec.args.append("y")
    other = refused(lambda: stub.Submit(tasks_pb2.SubmitRequest(tasks=[task]), timeout=30))
    assert other.code() is grpc.StatusCode.ALREADY_EXISTS
    twice = [task, task]
    assert violations(refused(lambda: stub.Submit(tasks_pb2.SubmitRequest(tasks=twice), timeout=30))) == ["tasks[1].id"]


def test_validate_only_stores_nothing(stub: Stub) -> None:
    task = tasks_pb2.NewTask(id=str(uuid.uuid4()), spec=spec())
    stub.Submit(tasks_pb2.SubmitRequest(tasks=[task], validate_only=True), timeout=30)
    gone = refused(lambda: stub.Status(tasks_pb2.StatusRequest(ids=[task.id]), timeout=30))
    assert gone.code() is grpc.StatusCode.NOT_FOUND
    assert violations(refused(lambda: submit(stub, spec(command=""), validate_only=True)))


def test_a_call_over_the_size_limit_is_refused_with_its_code(stub: Stub) -> None:
    large = spec(args=["x" * 100_000] * 9)
    error = refused(lambda: submit(stub, *[large] * 80))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_goes_away_leaves_nothing_open(stub: Stub, node: LiveNode) -> None:
    (task_id,) = submit(stub, spec(command="sleep", args=["100"]))
    process = psutil.Process(node.pid)
    wait_until_sync(lambda: stub.Status(tasks_pb2.StatusRequest(ids=[task_id])).tasks[0].attempt == 1)
    before = process.num_fds()
    for _ in range(20):
        log = stub.Log(tasks_pb2.LogRequest(id=task_id, follow=True), timeout=30)
        watch = stub.Watch(tasks_pb2.WatchRequest(ids=[task_id]), timeout=30)
        assert next(watch).ready
        log.cancel()
        watch.cancel()
    wait_until_sync(lambda: process.num_fds() <= before + 2, what="descriptors of abandoned followers are closed")
    stub.Cancel(tasks_pb2.CancelRequest(ids=[task_id]), timeout=30)


def test_watch_tells_every_transition_in_order(stub: Stub) -> None:
    (task_id,) = submit(stub, spec(command="sleep", args=["0.3"]))
    seen: list[int] = []
    revisions: list[int] = []
    watch = stub.Watch(tasks_pb2.WatchRequest(ids=[task_id]), timeout=30)
    for response in watch:
        if response.ready:
            continue
        seen.append(response.task.status)
        revisions.append(response.revision)
        if response.task.status == records_pb2.TASK_STATUS_COMPLETE:
            watch.cancel()
            break
    order = [records_pb2.TASK_STATUS_QUEUED, records_pb2.TASK_STATUS_RUNNING, records_pb2.TASK_STATUS_COMPLETE]
    assert seen == order[-len(seen) :]
    assert revisions == sorted(revisions)
    # From a revision on: the whole story again.
    first = stub.Watch(tasks_pb2.WatchRequest(from_revision=1), timeout=30)
    stories = []
    for response in first:
        if response.task.id == task_id:
            stories.append(response.task.status)
            if response.task.status == records_pb2.TASK_STATUS_COMPLETE:
                break
    first.cancel()
    assert stories == order


def test_log_follows_until_the_end_and_tails(stub: Stub) -> None:
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.2; done"
    (task_id,) = submit(stub, spec(command="sh", args=["-c", script]))
    got: dict[int, bytes] = {}
    for response in stub.Log(tasks_pb2.LogRequest(id=task_id, follow=True), timeout=30):
        got[response.stream] = got.get(response.stream, b"") + response.data
        assert response.attempt == 1
        assert len(response.data) <= 64 * 1024
    assert got[tasks_pb2.LOG_STREAM_STDOUT] == b"out 1\nout 2\nout 3\n"
    assert got[tasks_pb2.LOG_STREAM_STDERR] == b"err 1\nerr 2\nerr 3\n"
    # The end of a followed stream comes only after the end of the task.
    assert stub.Status(tasks_pb2.StatusRequest(ids=[task_id])).tasks[0].status == records_pb2.TASK_STATUS_COMPLETE
    tail = stub.Log(tasks_pb2.LogRequest(id=task_id, stream=tasks_pb2.LOG_STREAM_STDOUT, tail_lines=1), timeout=30)
    assert b"".join(response.data for response in tail) == b"out 3\n"
    missing = refused(lambda: list(stub.Log(tasks_pb2.LogRequest(id=task_id, attempt=9), timeout=30)))
    assert missing.code() is grpc.StatusCode.NOT_FOUND


def test_log_has_the_exact_bytes(stub: Stub) -> None:
    (task_id,) = submit(stub, spec(command="sh", args=["-c", "head -c 3000000 /dev/urandom | tee /dev/stderr"]))
    got: dict[int, bytes] = {}
    for response in stub.Log(tasks_pb2.LogRequest(id=task_id, follow=True), timeout=60):
        got[response.stream] = got.get(response.stream, b"") + response.data
    assert got[tasks_pb2.LOG_STREAM_STDOUT] == got[tasks_pb2.LOG_STREAM_STDERR]
    assert len(got[tasks_pb2.LOG_STREAM_STDOUT]) == 3_000_000


def test_list_filters_and_pages(stub: Stub) -> None:
    labels = {"test": uuid.uuid4().hex}
    ids = submit(stub, *[spec(labels=labels, name=f"n{i % 2}") for i in range(25)])
    wait_until_sync(
        lambda: all(task.HasField("outcome") for task in stub.Status(tasks_pb2.StatusRequest(ids=ids)).tasks)
    )

    def pages(**filters: Any) -> list[str]:
        found, token = [], ""
        while True:
            request = tasks_pb2.ListRequest(labels=labels, page_size=7, page_token=token, **filters)
            page = stub.List(request, timeout=30)
            found += [task.id for task in page.tasks]
            token = page.next_page_token
            if not token:
                return found

    assert sorted(pages()) == sorted(ids)
    assert pages() == list(reversed(pages(newest_first=True)))
    assert len(pages(name="n1")) == 12
    assert sorted(pages(status=records_pb2.TASK_STATUS_COMPLETE)) == sorted(ids)
    assert pages(status=records_pb2.TASK_STATUS_QUEUED) == []
    assert violations(refused(lambda: stub.List(tasks_pb2.ListRequest(page_token="rubbish"), timeout=30)))
    assert violations(refused(lambda: stub.List(tasks_pb2.ListRequest(page_size=-1), timeout=30)))


def test_prefixes(stub: Stub) -> None:
    first, second = (f"{head}-0000-4000-8000-000000000000" for head in ("facade01", "facade02"))
    tasks = [tasks_pb2.NewTask(id=task_id, spec=spec()) for task_id in (first, second)]
    stub.Submit(tasks_pb2.SubmitRequest(tasks=tasks), timeout=30)
    assert stub.Status(tasks_pb2.StatusRequest(ids=["facade01"]), timeout=30).tasks[0].id == first
    assert violations(refused(lambda: stub.Status(tasks_pb2.StatusRequest(ids=["facade0"]), timeout=30)))


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "pilfer.v1.TaskService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
    )
    names = {service.name for service in next(iter(reflected)).list_services_response.service}
    assert {"pilfer.v1.TaskService", "pilfer.v1.NodeService", "grpc.health.v1.Health"} <= names


def test_nodes_lists_this_one(channel: grpc.Channel, node: LiveNode) -> None:
    (view,) = nodes_pb2_grpc.NodeServiceStub(channel).ListNodes(nodes_pb2.ListNodesRequest(), timeout=10).nodes
    assert view.node.host_id == node.host_id
    assert view.node.capacity.cpu == 2
    assert view.state == "ready"
    assert view.role == "voter"


def test_a_watch_tells_the_revision_that_it_goes_on_from(stub: Stub) -> None:
    """A client whose stream breaks before the first transition loses none between the two streams."""
    watch = stub.Watch(tasks_pb2.WatchRequest())
    ready = next(watch)
    watch.cancel()
    (task_id,) = submit(stub, spec(command="true"))
    again = stub.Watch(tasks_pb2.WatchRequest(from_revision=ready.revision))
    assert next(again).revision == ready.revision
    assert next(response for response in again if response.task.id == task_id).task.status == (
        records_pb2.TASK_STATUS_QUEUED
    )
    again.cancel()


def test_calls_that_watch_together_are_told_the_same(stub: Stub) -> None:
    """In groups or one by one, of some ids or of all that has a label; through one watch of the node."""
    labels = {"watched": uuid.uuid4().hex}
    tasks = [tasks_pb2.NewTask(id=str(uuid.uuid4()), spec=spec(command="true", labels=labels)) for _ in range(100)]
    wanted = [task.id for task in tasks]
    calls = [
        stub.Watch(tasks_pb2.WatchRequest(labels=labels, grouped=grouped), timeout=60) for grouped in (True, False)
    ]
    assert all(next(call).ready for call in calls)
    stub.Submit(tasks_pb2.SubmitRequest(tasks=tasks), timeout=30)
    for count in (3, 80):
        some = tasks_pb2.WatchRequest(ids=wanted[:count], ended_only=True, grouped=True)
        calls.append(stub.Watch(some, timeout=60))
    told = []
    for call, count in zip(calls, (100, 100, 3, 80), strict=True):
        ends: dict[str, int] = {}
        for message in call:
            for response in message.group or (message,):
                if response.task.status == records_pb2.TASK_STATUS_COMPLETE:
                    assert response.task.id not in ends
                    ends[response.task.id] = response.revision
            if len(ends) == count:
                break
        call.cancel()
        told.append(ends)
    assert told[0] == told[1]
    assert sorted(told[0]) == sorted(wanted)
    assert all(ends.items() <= told[0].items() for ends in told[2:])
