"""Keys: the schema as the design states it, parsing refuses the rest, ids sort by time."""

from __future__ import annotations

from random import Random
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd import keys
from etcd.errors import RecordCorrupt
from etcd.port import KeyRange
from node.core import lifecycle
from node.core.model import Status
from tests.support.tasks import DONE, HOST, NODE_A, NODE_B, NOW, new_task

TASK = "01234567-89ab-7cde-8f01-23456789abcd"
UUIDS = st.uuids().map(str)


def inside(key: bytes, range_: KeyRange) -> bool:
    return range_.key <= key < range_.range_end


def test_the_schema_is_the_users() -> None:
    assert keys.task(TASK) == b"/task/01234567-89ab-7cde-8f01-23456789abcd"
    assert keys.queued_key(TASK) == b"/task/status/queued/01234567-89ab-7cde-8f01-23456789abcd"
    assert keys.running_key(NODE_A, TASK) == f"/task/status/running/{NODE_A}/{TASK}".encode()
    assert keys.terminal_key(Status.COMPLETE, 1.9, TASK) == f"/task/status/complete/000000000001/{TASK}".encode()
    assert keys.terminal_key(Status.CANCELED, NOW, TASK) == f"/task/status/canceled/001800000000/{TASK}".encode()
    assert keys.terminal_key(Status.FAILED, NOW, TASK) == f"/task/status/failed/001800000000/{TASK}".encode()
    assert keys.node(NODE_A) == f"/node/{NODE_A}".encode()
    assert keys.cluster_id() == b"/cluster/id"
    assert keys.cluster_epoch() == b"/cluster/epoch"
    assert keys.host_key(HOST) == f"/cluster/hosts/{HOST}".encode()
    assert keys.duty_key("compaction") == b"/cluster/duty/compaction"


def test_the_index_key_of_each_status() -> None:
    task = new_task()
    running = lifecycle.claim(task, node_id=NODE_A, host_id=HOST, now=NOW)
    done = lifecycle.finish(running, DONE, started_at=NOW, now=NOW + 7.5)
    assert keys.index_key(task) == keys.queued_key(task.id)
    assert keys.index_key(running) == keys.running_key(NODE_A, task.id)
    assert keys.index_key(done) == keys.terminal_key(Status.COMPLETE, NOW + 7, task.id)


@given(UUIDS, UUIDS, st.integers(0, keys.EPOCH_END - 1))
def test_what_is_built_is_parsed(task_id: str, node_id: str, epoch_s: int) -> None:
    assert keys.parse_task(keys.task(task_id)) == task_id
    assert keys.parse_node(keys.node(node_id)) == node_id
    assert keys.parse_queued(keys.queued_key(task_id)) == task_id
    assert keys.parse_index_key(keys.queued_key(task_id)) == keys.IndexKey(Status.QUEUED, task_id)
    running = keys.parse_index_key(keys.running_key(node_id, task_id))
    assert running == keys.IndexKey(Status.RUNNING, task_id, node_id=node_id)
    for status in (Status.COMPLETE, Status.CANCELED, Status.FAILED):
        parsed = keys.parse_index_key(keys.terminal_key(status, epoch_s, task_id))
        assert parsed == keys.IndexKey(status, task_id, epoch_s=epoch_s)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/",
        b"/task/",
        b"/task/status/",
        b"/task/status/queued/",
        b"/task/status/queued/xyz",
        b"/task/status/queued/" + TASK.upper().encode(),
        b"/task/status/queued/" + TASK.encode() + b"/",
        b"/task/status/queued/" + TASK.encode() + b"\n",
        b"/task/status/paused/" + TASK.encode(),
        b"/task/status/running/" + TASK.encode(),
        b"/task/status/running/x/" + TASK.encode(),
        b"/task/status/complete/12/" + TASK.encode(),
        b"/task/status/complete/00000000000x/" + TASK.encode(),
        b"/task/status/complete/000000000001/" + TASK.encode() + b"/x",
        b"/node/" + TASK.encode(),
    ],
)
def test_other_keys_are_refused(key: bytes) -> None:
    with pytest.raises(RecordCorrupt):
        keys.parse_index_key(key)
    with pytest.raises(RecordCorrupt):
        keys.parse_task(key)
    if key != b"/node/" + TASK.encode():
        with pytest.raises(RecordCorrupt):
            keys.parse_node(key)


@pytest.mark.parametrize("text", ["", "x", TASK.upper(), TASK + "/..", TASK[:-1], f"{{{TASK}}}", TASK.replace("-", "")])
def test_only_canonical_ids_become_keys(text: str) -> None:
    for build in (keys.task, keys.node, keys.queued_key, keys.running_of, keys.host_key):
        with pytest.raises(ValueError, match="UUID"):
            build(text)
    assert not keys.is_task_id(text)


@pytest.mark.parametrize("parts", [(), ("",), ("a/b",), ("a", "")])
def test_cluster_keys_have_whole_parts(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="parts"):
        keys.cluster_key(*parts)


@pytest.mark.parametrize("at", [-1.0, 1e12])
def test_a_time_that_fits_no_key_is_refused(at: float) -> None:
    with pytest.raises(RecordCorrupt):
        keys.terminal_key(Status.COMPLETE, at, TASK)


@given(UUIDS, UUIDS)
def test_ranges_hold_their_own_and_nothing_else(task_id: str, node_id: str) -> None:
    record, queued, running = keys.task(task_id), keys.queued_key(task_id), keys.running_key(node_id, task_id)
    complete, node = keys.terminal_key(Status.COMPLETE, NOW, task_id), keys.node(node_id)
    every = (record, queued, running, complete, node, keys.cluster_id())
    for range_, held in (
        (keys.all_tasks(), record),
        (keys.queued(), queued),
        (keys.running(), running),
        (keys.running_of(node_id), running),
        (keys.terminal(Status.COMPLETE), complete),
        (keys.all_nodes(), node),
    ):
        assert [key for key in every if inside(key, range_)] == [held]
    assert not inside(running, keys.running_of(NODE_B))


def test_terminal_ranges_end_before_their_second() -> None:
    for at, held in ((NOW - 1, True), (NOW, False), (NOW + 1, False)):
        key = keys.terminal_key(Status.FAILED, at, TASK)
        assert inside(key, keys.terminal(Status.FAILED, until_s=NOW)) is held
        assert not inside(key, keys.terminal(Status.COMPLETE, until_s=NOW + 9))


@given(UUIDS, st.integers(0, 36))
def test_prefixes_find_their_task(task_id: str, length: int) -> None:
    prefix = task_id[:length]
    found = keys.find_tasks(prefix)
    assert found is not None
    assert inside(keys.task(task_id), found)
    assert not inside(keys.queued_key(task_id), found)
    assert keys.is_id_prefix(prefix) is bool(prefix)
    assert keys.is_id_prefix(prefix.upper()) is bool(prefix)


@pytest.mark.parametrize("text", ["g", "s", "status", "-", "0123456-", "012345678", "0" * 40, "é", "0\n", TASK + "0"])
def test_no_prefix_of_an_id(text: str) -> None:
    assert keys.find_tasks(text) is None
    assert not keys.is_id_prefix(text)


def test_new_ids_are_uuid7_and_sort_by_time() -> None:
    random = Random(3)
    made = [keys.new_task_id(NOW + number * 1e-6, random) for number in range(2_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    for id_ in made[:50]:
        parsed = UUID(id_)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, "specified in RFC 4122", id_)
        assert keys.uuid7_time(id_) == pytest.approx(NOW, abs=0.002)
    assert keys.uuid7_time(str(uuid4())) is None
    assert keys.uuid7_time("nonsense") is None


def test_ids_of_one_moment_come_sorted() -> None:
    made = keys.new_task_ids(100, NOW, Random(4))
    assert made == sorted(set(made))
    assert len(made) == 100
