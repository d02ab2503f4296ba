"""The schema as an outsider sees it: the independent package etcd3 reads and watches while our store moves tasks.

Keys are written out here as the users of the schema know them, not built by etcd/keys.py, and records are read with the
public stubs alone. etcd3 does not import beside today's protobuf, so it has an environment of its own, `.venv/witness`,
which `make setup-tests` makes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from etcd.client import EtcdClient
from etcd.identity import Identity
from etcd.store import TaskStore
from node.core.model import Requirements, TaskSpec
from pilfer.v1 import records_pb2 as pb
from tests.support.etcd_process import EtcdProcess
from tests.support.require import require
from tests.support.tasks import (
    CANCELED,
    DONE,
    GIVEN_BACK,
    NODE_A,
    NOW,
    TIMEOUT_S,
    join,
    leave,
    new_task,
    open_store,
    read_one,
)

pytestmark = [pytest.mark.etcd, pytest.mark.witness]

EPOCH = "001800000009"
ENDED_AT = NOW + 9.5
#: What run_lives makes, with the node's join.
EVENTS_OF_LIVES = 34


@dataclass(frozen=True)
class Seen:
    """One event, as etcd3 told it."""

    key: str
    value: bytes
    is_delete: bool
    mod_revision: int
    create_revision: int
    version: int


class Witness:
    """The outsider's process, and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _line(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), TIMEOUT_S)
        assert line, "the witness has died"
        told: dict[str, object] = json.loads(line)
        return told

    async def ready(self) -> None:
        assert await self._line() == {"ready": True}

    async def revisions(self, event_count: int) -> list[tuple[Seen, ...]]:
        """The next so many events, by revision. Those of different watches may come in another order."""
        found: dict[int, list[Seen]] = {}
        for _ in range(event_count):
            told = await self._line()
            value = told.pop("value")
            assert isinstance(value, str)
            event = Seen(value=base64.b64decode(value), **told)  # type: ignore[arg-type]  # as the script writes them
            found.setdefault(event.mod_revision, []).append(event)
        return [tuple(found[revision]) for revision in sorted(found)]

    async def keys(self) -> dict[str, bytes]:
        """All keys as they are now; for when no events are on their way."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        told = await self._line()
        shown = told["keys"]
        assert isinstance(shown, dict)
        return {key: base64.b64decode(value) for key, value in shown.items()}


@pytest_asyncio.fixture
async def witness(etcd_process: EtcdProcess) -> AsyncIterator[Witness]:
    python = Path(sys.prefix) / "witness" / "bin" / "python"
    require("witness", is_there=python.exists(), reason="no .venv/witness: make setup-tests makes it")
    tls = etcd_process.tls
    process = await asyncio.create_subprocess_exec(
        *(python, "-W", "ignore", witness_script_path(), "127.0.0.1", str(etcd_process.ports.client)),
        *(tls.ca, tls.cert, tls.key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    )
    try:
        found = Witness(process)
        await found.ready()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def witness_script_path() -> Path:
    return Path(__file__).parents[1] / "support" / "witness.py"


@pytest_asyncio.fixture
async def store(etcd_client: EtcdClient) -> AsyncIterator[TaskStore]:
    async with open_store(etcd_client) as opened:
        yield opened


def record(event: Seen) -> pb.Task:
    return pb.Task.FromString(event.value)


def changes(events: tuple[Seen, ...]) -> dict[str, str]:
    """Key -> what happened to it, records by their status."""
    found = {}
    for event in events:
        if event.is_delete:
            found[event.key] = "deleted"
        elif event.key.startswith("/task/status/") or event.key.startswith("/node/"):
            found[event.key] = "put again" if event.version > 1 else "put"
        else:
            found[event.key] = pb.TaskStatus.Name(record(event).status)
    return found


async def run_lives(store: TaskStore, me: Identity, etcd: EtcdClient, ids: list[str]) -> None:
    """Three tasks: one given back and completed, one canceled while it ran, one requeued from a dead node."""
    first, second, third = ids
    spec = TaskSpec("/bin/echo", args=("hi",), requirements=Requirements(cpu=2, memory_bytes=1 << 30))
    await store.submit(new_task(spec, id=first), timeout_s=TIMEOUT_S)
    claim = await store.claim(await read_one(store, first), me, now=NOW + 1, timeout_s=TIMEOUT_S)
    assert claim is not None
    await store.give_back(claim, GIVEN_BACK, started_at=None, now=NOW + 2, timeout_s=TIMEOUT_S)
    claim = await store.claim(await read_one(store, first), me, now=NOW + 3, timeout_s=TIMEOUT_S)
    assert claim is not None
    await store.finish(claim, DONE, started_at=NOW + 3, now=ENDED_AT, timeout_s=TIMEOUT_S)

    await store.submit(new_task(id=second), timeout_s=TIMEOUT_S)
    claim = await store.claim(await read_one(store, second), me, now=NOW + 1, timeout_s=TIMEOUT_S)
    assert claim is not None
    await store.cancel(second, now=NOW + 2, timeout_s=TIMEOUT_S)
    await store.confirm_cancel(claim, CANCELED, started_at=NOW + 1, now=ENDED_AT, timeout_s=TIMEOUT_S)

    await store.submit(new_task(TaskSpec("/bin/true", max_attempts=1), id=third), timeout_s=TIMEOUT_S)
    claim = await store.claim(await read_one(store, third), me, now=NOW + 1, timeout_s=TIMEOUT_S)
    assert claim is not None
    await leave(etcd, me.node_id)
    await store.requeue(third, me.node_id, now=ENDED_AT, timeout_s=TIMEOUT_S)


async def test_an_outsider_sees_the_schema(witness: Witness, store: TaskStore, etcd_client: EtcdClient) -> None:
    ids = [f"0000000{n}-0000-4000-8000-000000000000" for n in (1, 2, 3)]
    first, second, third = ids
    me = await join(etcd_client, NODE_A)
    await run_lives(store, me, etcd_client, ids)

    running = f"/task/status/running/{NODE_A}"
    expected: list[dict[str, str]] = [
        {f"/node/{NODE_A}": "put"},
        {f"/task/status/queued/{first}": "put", f"/task/{first}": "TASK_STATUS_QUEUED"},
        {
            f"/task/status/queued/{first}": "deleted",
            f"{running}/{first}": "put",
            f"/task/{first}": "TASK_STATUS_RUNNING",
        },
        {
            f"{running}/{first}": "deleted",
            f"/task/status/queued/{first}": "put",
            f"/task/{first}": "TASK_STATUS_QUEUED",
        },
        {
            f"/task/status/queued/{first}": "deleted",
            f"{running}/{first}": "put",
            f"/task/{first}": "TASK_STATUS_RUNNING",
        },
        {
            f"{running}/{first}": "deleted",
            f"/task/status/complete/{EPOCH}/{first}": "put",
            f"/task/{first}": "TASK_STATUS_COMPLETE",
        },
        {f"/task/status/queued/{second}": "put", f"/task/{second}": "TASK_STATUS_QUEUED"},
        {
            f"/task/status/queued/{second}": "deleted",
            f"{running}/{second}": "put",
            f"/task/{second}": "TASK_STATUS_RUNNING",
        },
        {f"{running}/{second}": "put again", f"/task/{second}": "TASK_STATUS_RUNNING"},
        {
            f"{running}/{second}": "deleted",
            f"/task/status/canceled/{EPOCH}/{second}": "put",
            f"/task/{second}": "TASK_STATUS_CANCELED",
        },
        {f"/task/status/queued/{third}": "put", f"/task/{third}": "TASK_STATUS_QUEUED"},
        {
            f"/task/status/queued/{third}": "deleted",
            f"{running}/{third}": "put",
            f"/task/{third}": "TASK_STATUS_RUNNING",
        },
        {f"/node/{NODE_A}": "deleted"},
        {
            f"{running}/{third}": "deleted",
            f"/task/status/failed/{EPOCH}/{third}": "put",
            f"/task/{third}": "TASK_STATUS_FAILED",
        },
    ]
    revisions = await witness.revisions(EVENTS_OF_LIVES)
    assert [changes(events) for events in revisions] == expected

    # Values: index keys are empty, but for the offer of a queued task whose requirements are not the default.
    index = [event for events in revisions for event in events if event.key.startswith("/task/status/")]
    assert {event.value for event in index if "/queued/" not in event.key} == {b""}
    offers = [event.value for event in index if event.key == f"/task/status/queued/{first}" and not event.is_delete]
    assert [(o.cpu, o.memory_bytes) for o in map(pb.Offer.FromString, offers)] == [(2.0, 1 << 30)] * 2
    assert {event.value for event in index if event.key == f"/task/status/queued/{second}"} == {b""}
    # The request touched the running key and left its create_revision, the claim's identity, alone.
    claimed, touched = (event for event in index if event.key == f"{running}/{second}" and not event.is_delete)
    assert touched.create_revision == claimed.create_revision == claimed.mod_revision < touched.mod_revision


async def test_an_outsider_reads_the_records(witness: Witness, store: TaskStore, etcd_client: EtcdClient) -> None:
    ids = [f"0000000{n}-0000-4000-8000-000000000000" for n in (1, 2, 3)]
    me = await join(etcd_client, NODE_A)
    await run_lives(store, me, etcd_client, ids)
    await witness.revisions(EVENTS_OF_LIVES)
    shown = await witness.keys()
    assert sorted(shown) == sorted(
        [
            *(f"/task/{id_}" for id_ in ids),
            f"/task/status/complete/{EPOCH}/{ids[0]}",
            f"/task/status/canceled/{EPOCH}/{ids[1]}",
            f"/task/status/failed/{EPOCH}/{ids[2]}",
        ]
    )
    done, canceled, failed = (pb.Task.FromString(shown[f"/task/{id_}"]) for id_ in ids)
    assert (done.id, done.spec.command, list(done.spec.args)) == (ids[0], "/bin/echo", ["hi"])
    assert (done.status, done.attempt, done.attempts_used) == (pb.TASK_STATUS_COMPLETE, 2, 1)
    assert (done.outcome.reason, done.outcome.exit_code) == (pb.REASON_EXITED, 0)
    assert [attempt.outcome.reason for attempt in done.attempts] == [pb.REASON_GIVEN_BACK, pb.REASON_EXITED]
    assert (done.submitted_at.ToSeconds(), done.finished_at.ToMilliseconds()) == (int(NOW), int(ENDED_AT * 1000))
    assert (canceled.status, canceled.cancel_requested) == (pb.TASK_STATUS_CANCELED, True)
    assert (failed.status, failed.outcome.reason) == (pb.TASK_STATUS_FAILED, pb.REASON_NODE_LOST)
