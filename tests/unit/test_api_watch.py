"""Watch with ids: opened before the present state is read, so that nothing is missed, told twice, or late."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from etcd import codec, keys
from etcd.port import KeyRange, Put, Txn, TxnResult, WatchBatch
from node.api.watch import WatchCall
from node.core import lifecycle
from node.core.model import TaskSpec
from pilfer.v1 import records_pb2, tasks_pb2
from tests.support.fake_etcd import FakeEtcd

TASK = "01930000-0000-7000-8000-000000000001"
NODE = "01930000-0000-4000-8000-000000000002"
QUEUED = lifecycle.submit(TASK, TaskSpec("true"), now=1.0)
RUNNING = lifecycle.claim(QUEUED, node_id=NODE, host_id=NODE, now=2.0)


class Spied(FakeEtcd):
    """Notes how watches begin, and lets the task be claimed between the watch and the read."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[int | None] = []

    def watch(
        self, ranges: Sequence[KeyRange], *, start_revision: int | None = None, timeout_s: float = 10.0
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        self.starts.append(start_revision)
        return super().watch(ranges, start_revision=start_revision, timeout_s=timeout_s)

    async def txn(self, txn: Txn, *, timeout_s: float = 3.0) -> TxnResult:
        if self.starts and not any(isinstance(op, Put) for op in txn.success):
            await super().txn(Txn(success=(Put(keys.task(TASK), codec.encode_task(RUNNING)),)))
        return await super().txn(txn, timeout_s=timeout_s)


async def test_a_transition_between_watch_and_read_is_told_once_and_no_watch_begins_in_the_past() -> None:
    etcd = Spied()
    await etcd.txn(Txn(success=(Put(keys.task(TASK), codec.encode_task(QUEUED)),)))
    stream = WatchCall(etcd).Watch(tasks_pb2.WatchRequest(ids=[TASK]), None)
    ready, present = await anext(stream), await anext(stream)
    assert ready.ready
    assert ready.revision == present.revision + 1
    assert present.task.status == records_pb2.TASK_STATUS_RUNNING
    # etcd serves a watch from a revision that has passed only every 100 ms.
    assert etcd.starts == [None]
    ended = codec.encode_task(lifecycle.cancel(RUNNING, now=3.0))
    await etcd.txn(Txn(success=(Put(keys.task(TASK), ended),)))
    told = await anext(stream)
    assert told.task.status == records_pb2.TASK_STATUS_CANCELED
    assert told.revision > present.revision
    await stream.aclose()
