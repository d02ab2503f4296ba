"""A hundred thousand tasks in one call: taken whole, while the node goes on answering others."""

from __future__ import annotations

import grpc
import pytest

from pilfer.v1 import records_pb2, tasks_pb2, tasks_pb2_grpc
from tests.support.node_process import live_node

# Up to half a minute on a quiet machine.
pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

COUNT = 100_000


def test_a_hundred_thousand_specs_in_one_call() -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with live_node("--cpu", "2") as node, grpc.insecure_channel(node.address, options=options) as channel:
        stub = tasks_pb2_grpc.TaskServiceStub(channel)
        # Too large for this node, so that they stay queued: what counts is that the call is taken whole.
        large = records_pb2.TaskSpec(command="true", requirements=records_pb2.Requirements(cpu=1000.0))
        request = tasks_pb2.SubmitRequest(tasks=[tasks_pb2.NewTask(spec=large)] * COUNT)
        ids = list(stub.Submit(request, timeout=240).ids)
        assert len(set(ids)) == COUNT
        assert node.cli("run", "--", "echo", "alive").stdout == "alive\n"
        some = [ids[0], ids[50_000], ids[-1]]
        tasks = stub.Status(tasks_pb2.StatusRequest(ids=some), timeout=30).tasks
        assert {task.status for task in tasks} == {records_pb2.TASK_STATUS_QUEUED}
        results = stub.Cancel(tasks_pb2.CancelRequest(ids=ids[:1000]), timeout=60).results
        assert {result.step for result in results} == {tasks_pb2.CANCEL_STEP_CANCELED}
