"""The codec: lossless both ways, the proto's defaults, and refusing what contradicts itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd import codec, keys
from etcd.errors import RecordCorrupt
from node.core import lifecycle, model
from node.core.model import (
    DEFAULT_REQUIREMENTS,
    Mount,
    Network,
    Node,
    Outcome,
    Reason,
    Requirements,
    Status,
    Task,
    TaskSpec,
    Usage,
)
from pilfer.v1 import records_pb2 as pb
from tests.support.tasks import DONE, HOST, NODE_A, NOW, new_task

INT64 = st.integers(-(2**63), 2**63 - 1)
SIZES = st.integers(1, 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(allow_nan=False)
TIMES = st.floats(1.0e9, 4.0e9)

REQUIREMENTS = st.builds(
    Requirements,
    cpu=FLOATS,
    memory_bytes=st.none() | INT64,
    pids=INT64,
    io_read_bytes_per_s=st.none() | INT64,
    io_write_bytes_per_s=st.none() | INT64,
    scratch_bytes=st.none() | INT64,
    require_limits=st.booleans(),
)
SPECS = st.builds(
    TaskSpec,
    command=TEXT,
    args=st.lists(TEXT, max_size=4).map(tuple),
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    cwd=st.none() | TEXT,
    stdin=st.binary(max_size=20),
    name=TEXT,
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    requirements=st.just(DEFAULT_REQUIREMENTS) | REQUIREMENTS,
    timeout_s=st.none() | FLOATS,
    grace_s=FLOATS,
    restart_on_node_loss=st.booleans(),
    max_attempts=INT32,
    network=st.sampled_from(Network),
    mounts=st.lists(st.builds(Mount, source=TEXT, target=TEXT, read_only=st.booleans()), max_size=2).map(tuple),
)
USAGES = st.builds(
    Usage, cpu_s=FLOATS, memory_peak_bytes=INT64, io_read_bytes=INT64, io_write_bytes=INT64, wall_s=FLOATS
)
OUTCOMES = st.builds(
    Outcome,
    reason=st.sampled_from([Reason.EXITED, Reason.SIGNALED, Reason.TIMED_OUT, Reason.OUT_OF_MEMORY]),
    exit_code=st.none() | INT32,
    signal=st.none() | INT32,
    step=TEXT,
    errno=st.none() | INT32,
    detail=TEXT,
    usage=st.none() | USAGES,
)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Records as the lifecycle makes them, of any spec and any history."""
    spec = replace(draw(SPECS), max_attempts=draw(st.integers(15, 2**31 - 1)), restart_on_node_loss=True)
    task = lifecycle.submit(draw(st.uuids().map(str)), spec, now=draw(TIMES))
    for _ in range(draw(st.integers(0, 13))):
        task = lifecycle.claim(task, node_id=NODE_A, host_id=HOST, now=draw(TIMES))
        outcome = replace(draw(OUTCOMES), reason=draw(st.sampled_from(Reason)))
        task = lifecycle.give_back(task, outcome, started_at=draw(st.none() | TIMES), now=draw(TIMES))
    match draw(st.sampled_from(Status)):
        case Status.QUEUED:
            return task
        case Status.CANCELED:
            return lifecycle.cancel(task, now=draw(TIMES))
        case status:
            task = lifecycle.claim(task, node_id=NODE_A, host_id=HOST, now=draw(TIMES))
            if draw(st.booleans()):
                task = lifecycle.request_cancel(task)
            if status is Status.RUNNING:
                return task
            outcome = draw(OUTCOMES)
            if status is Status.FAILED:
                outcome = replace(outcome, reason=Reason.SETUP_FAILED)
            return lifecycle.finish(task, outcome, started_at=draw(st.none() | TIMES), now=draw(TIMES))


@given(tasks())
def test_a_record_comes_back_as_it_was(task: Task) -> None:
    assert codec.decode_task(keys.task(task.id), codec.encode_task(task)) == task
    codec.check_index(task, keys.index_key(task))


@given(SPECS)
def test_a_spec_comes_back_as_it_was_whatever_is_in_it(spec: TaskSpec) -> None:
    """Also out of range: the API is to name what is wrong."""
    message = pb.TaskSpec()
    codec.spec_to_proto(spec, message)
    assert codec.spec_from_proto(pb.TaskSpec.FromString(message.SerializeToString())) == spec


@given(
    st.builds(
        Requirements,
        cpu=st.floats(0.001, 1e6),
        memory_bytes=st.none() | SIZES,
        pids=SIZES,
        io_read_bytes_per_s=st.none() | SIZES,
        io_write_bytes_per_s=st.none() | SIZES,
        scratch_bytes=st.none() | SIZES,
        require_limits=st.booleans(),
    )
)
def test_an_offer_comes_back_as_it_was(requirements: Requirements) -> None:
    assert codec.requirements_of_offer(codec.offer_value(requirements)) == requirements


def test_default_requirements_are_an_empty_offer() -> None:
    assert codec.offer_value(Requirements()) == b""
    assert codec.requirements_of_offer(b"") == DEFAULT_REQUIREMENTS
    assert codec.offer_value(Requirements(pids=1023)) != b""


@pytest.mark.parametrize("value", [b"\xff", pb.Offer(cpu=1).SerializeToString(), pb.Offer(pids=5).SerializeToString()])
def test_offers_that_offer_nothing_are_refused(value: bytes) -> None:
    with pytest.raises(RecordCorrupt):
        codec.requirements_of_offer(value)


@pytest.mark.parametrize("requirements", [Requirements(cpu=0), Requirements(pids=0), Requirements(cpu=-1)])
def test_requirements_that_cannot_be_offered(requirements: Requirements) -> None:
    with pytest.raises(RecordCorrupt):
        codec.offer_value(requirements)


def test_absent_fields_are_the_protos_defaults() -> None:
    """What the comments of records.proto promise to every client."""
    spec = codec.spec_from_proto(pb.TaskSpec(command="/bin/true"))
    assert spec == TaskSpec("/bin/true")
    assert spec.requirements == Requirements(cpu=1.0, memory_bytes=None, pids=1024)
    assert (spec.grace_s, spec.restart_on_node_loss, spec.max_attempts) == (5.0, True, 5)
    assert (spec.network, spec.timeout_s, spec.cwd) == (Network.NONE, None, None)
    assert codec.spec_from_proto(pb.TaskSpec(mounts=[pb.Mount(source="/a", target="/b")])).mounts[0].read_only


def test_defaults_said_aloud_are_the_same_spec() -> None:
    """Idempotent submits compare specs: a client that spells defaults out asks for the same."""
    spelled = pb.TaskSpec(
        command="/bin/true",
        requirements=pb.Requirements(cpu=1, pids=1024),
        grace_s=5,
        restart_on_node_loss=True,
        max_attempts=5,
        network=pb.NETWORK_NONE,
    )
    assert codec.spec_from_proto(spelled) == codec.spec_from_proto(pb.TaskSpec(command="/bin/true"))


def test_zero_said_aloud_is_not_absent() -> None:
    spec = codec.spec_from_proto(
        pb.TaskSpec(command="x", grace_s=0, max_attempts=0, timeout_s=0, requirements=pb.Requirements(memory_bytes=0))
    )
    assert (spec.grace_s, spec.max_attempts, spec.timeout_s, spec.requirements.memory_bytes) == (0, 0, 0, 0)


def test_a_network_of_a_later_version_is_refused() -> None:
    message = pb.TaskSpec.FromString(pb.TaskSpec(command="x").SerializeToString() + b"\x68\x09")  # field 13 = 9
    assert message.network == 9
    with pytest.raises(RecordCorrupt, match="network"):
        codec.spec_from_proto(message)


# -- what contradicts itself ----------------------------------------------------------------------------------------


def _running() -> Task:
    return lifecycle.claim(new_task(), node_id=NODE_A, host_id=HOST, now=NOW)


def _complete() -> Task:
    return lifecycle.finish(_running(), DONE, started_at=NOW, now=NOW)


UNSOUND = [
    replace(new_task(), attempt=1),
    replace(new_task(), status=Status.RUNNING),
    replace(_running(), status=Status.QUEUED),
    replace(_running(), attempt=2),
    replace(_running(), attempts=()),
    replace(_running(), finished_at=NOW),
    replace(_running(), outcome=DONE),
    replace(_complete(), outcome=None),
    replace(_complete(), finished_at=None),
    replace(_complete(), status=Status.RUNNING),
    replace(new_task(), cancel_requested=True),
]


@pytest.mark.parametrize("task", UNSOUND)
def test_an_unsound_record_is_neither_written_nor_read(task: Task) -> None:
    with pytest.raises(RecordCorrupt, match="not sound"):
        codec.encode_task(task)
    value = codec.task_to_proto(task).SerializeToString()
    with pytest.raises(RecordCorrupt, match=task.id):
        codec.decode_task(keys.task(task.id), value)


def test_a_record_under_anothers_key_is_refused() -> None:
    task, other = new_task(), new_task()
    with pytest.raises(RecordCorrupt, match=other.id):
        codec.decode_task(keys.task(other.id), codec.encode_task(task))


@pytest.mark.parametrize("value", [b"\xff\xff", b"", pb.Task(id="x").SerializeToString()])
def test_a_value_that_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(RecordCorrupt):
        codec.decode_task(keys.task(new_task().id), value)


def test_unknown_numbers_are_refused() -> None:
    """A later version's status or reason: better not acted upon than guessed."""
    message = codec.task_to_proto(_complete())
    status = pb.Task.FromString(message.SerializeToString() + b"\x18\x63")  # field 3 = 99
    with pytest.raises(RecordCorrupt, match="status 99"):
        codec.task_from_proto(status)
    outcome = pb.Outcome.FromString(b"\x08\x63")
    with pytest.raises(RecordCorrupt, match="reason 99"):
        codec.outcome_from_proto(outcome)
    assert codec.status_from_proto(0) is None
    assert codec.status_from_proto(99) is None


def test_a_wrong_index_key_is_noticed() -> None:
    task = _running()
    for key in (keys.queued_key(task.id), keys.running_key(HOST, task.id), keys.running_key(NODE_A, new_task().id)):
        with pytest.raises(RecordCorrupt):
            codec.check_index(task, key)


# -- the rest -------------------------------------------------------------------------------------------------------


def test_every_word_of_the_core_has_a_number_and_back() -> None:
    for status in Status:
        assert codec.status_from_proto(codec.status_to_proto(status)) is status
        assert pb.TaskStatus.Name(codec.status_to_proto(status)) == f"TASK_STATUS_{status.name}"
    for reason in Reason:
        message = pb.Outcome()
        codec.outcome_to_proto(Outcome(reason), message)
        assert codec.outcome_from_proto(message) == Outcome(reason)
        assert pb.Reason.Name(message.reason) == f"REASON_{reason.name}"


def test_without_stdin_for_lists() -> None:
    task = new_task(TaskSpec("/bin/cat", stdin=b"x" * 1000))
    assert codec.task_to_proto(task, with_stdin=False).spec.stdin == b""
    assert codec.task_to_proto(task).spec.stdin == task.spec.stdin


@given(TIMES)
def test_times_are_exact(at: float) -> None:
    message = pb.Task()
    codec.set_time(message.submitted_at, at)
    assert 0 <= message.submitted_at.nanos < 1_000_000_000
    assert codec.get_time(message.submitted_at) == at


def test_a_node_comes_back_as_it_was() -> None:
    node = Node(
        id=NODE_A,
        host_id=HOST,
        name="alpha",
        capacity=model.Capacity(2.5, 1 << 34),
        version="0.1",
        started_at=NOW + 0.25,
        address="h:7400",
        not_enforced=("memory", "io"),
        etcd_peer_url="https://10.0.0.1:7402",
        etcd_client_url="https://10.0.0.1:7401",
    )
    assert codec.decode_node(keys.node(node.id), codec.encode_node(node)) == node
    with pytest.raises(RecordCorrupt, match=HOST):
        codec.decode_node(keys.node(HOST), codec.encode_node(node))
    with pytest.raises(RecordCorrupt):
        codec.decode_node(keys.node(node.id), b"\xff")
