"""The client against a real node that is killed and comes back: nothing doubled, nothing lost."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing

import pytest

import pilfer
from tests.support.node_process import LiveNode, live_node

pytestmark = pytest.mark.node

SMALL = pilfer.TaskSpec("true", requirements=pilfer.Requirements(cpu=0.05))
#: A node on a busy machine may take longer to come back than the client's default patience.
PATIENCE_S = 60.0


class Restart:
    """kill -9 of the node and a new start, in a thread, when `now` is called."""

    def __init__(self, node: LiveNode) -> None:
        self._node = node
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def _run(self) -> None:
        try:
            self._node.kill()
            self._node.start()
        except BaseException as error:  # brought back by `done`
            self._error = error

    def now(self) -> None:
        self._thread.start()

    def done(self) -> None:
        self._thread.join(60)
        assert self._error is None, self._error


def test_a_submit_through_the_death_of_the_node_doubles_and_loses_nothing() -> None:
    with live_node("--cpu", "2") as node, node.client(patience_s=PATIENCE_S) as client:
        restart = Restart(node)

        def on_progress(stored: int) -> None:
            if stored == 200:
                restart.now()

        ids = client.submit_many([SMALL] * 600, batch=50, on_progress=on_progress)
        restart.done()
        tasks = client.wait(ids, timeout_s=60)
        assert [task.id for task in tasks] == ids
        assert all(task.succeeded for task in tasks)
        assert [task.id for task in client.list()] == ids


def test_a_watch_through_the_death_of_the_node_tells_every_transition() -> None:
    with live_node("--cpu", "2") as node, node.client(patience_s=PATIENCE_S) as client:
        restart = Restart(node)
        story: dict[str, list[tuple[str, int]]] = {}
        revisions: list[int] = []
        ids = client.submit_many([SMALL] * 50)
        with closing(client.watch(from_revision=1)) as events:
            for event in events:
                story.setdefault(event.task.id, []).append((str(event.task.status), event.task.attempt))
                revisions.append(event.revision)
                if len(revisions) == 60:
                    restart.now()
                if len(story) == 50 and all(steps[-1][0] == "complete" for steps in story.values()):
                    break
        restart.done()
        assert revisions == sorted(revisions)
        assert sorted(story) == ids
        for steps in story.values():
            assert steps[0] == ("queued", 0)
            # Each step follows from the one before it: none is missing, none comes twice.
            for (before, number), (after, next_number) in itertools.pairwise(steps):
                assert (before, after) in {("queued", "running"), ("running", "queued"), ("running", "complete")}
                assert next_number == number + (after == "running")


async def test_the_async_client_at_work() -> None:
    with live_node("--cpu", "2") as node:
        async with pilfer.AsyncClient(node.address, patience_s=PATIENCE_S) as client:
            ids = await client.submit_many([SMALL] * 100)
            ended = [task.id async for task in client.as_ended(ids, timeout_s=60)]
            assert sorted(ended) == ids
            task_id = await client.submit("sh", "-c", "cat; echo to stderr >&2", stdin=b"\0\xff")
            chunks = [chunk async for chunk in client.log(task_id, follow=True)]
            assert {str(chunk.stream): chunk.data for chunk in chunks} == {
                "stdout": b"\0\xff",
                "stderr": b"to stderr\n",
            }
            (view,) = await client.nodes()
            assert view.state == "ready"
