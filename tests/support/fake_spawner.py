"""A spawner without processes, and a node's shell around it: for tests of interleavings in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from etcd import codec, keys
from etcd.identity import Identity
from etcd.port import Put, Txn
from etcd.store import TaskStore
from isolation.errors import NotLaunched, SpawnerDied
from isolation.spec import Ended, HostReport, SandboxSpec, Started
from node.cluster.session import Session
from node.core.model import Capacity, Node
from node.incarnation import Incarnation, Surroundings
from node.running.admission import Admission
from node.running.logs import LogStore
from node.running.runner import RunContext
from node.running.supervised_spawner import SupervisedSpawner
from tests.support.fake_etcd import FakeEtcd
from tests.support.tasks import HOST, NODE_A, NOW, open_store


class FakeSandbox:
    """Ends when it is told to by the test, or asked to by the node."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self.started = Started(spec.id, 1, NOW)
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())
        #: On version 1 of control groups a frozen process takes no signal, SIGKILL neither, until it is thawed.
        self.is_frozen = False

    async def wait(self) -> Ended:
        return await asyncio.shield(self.ended)

    def stop(self, grace_s: float) -> None:
        if not self.is_frozen:
            self.end(ended_by="stop", signal=15)

    def kill(self) -> None:
        self.stop(0)

    def end(self, *, ended_by: str = "", exit_code: int | None = None, signal: int | None = None) -> None:
        if not self.ended.done():
            code = 0 if exit_code is None and signal is None else exit_code
            self.ended.set_result(Ended(self.spec.id, code, signal, False, ended_by, NOW, NOW))


@dataclass
class FakeSpawner:
    """What the runner and the incarnation use of a SupervisedSpawner."""

    launch_takes_s: float = 0.0
    is_up: bool = True
    report: HostReport = field(default_factory=lambda: HostReport(2, (), 1))
    #: All that were ever started, by task id.
    sandboxes: dict[str, FakeSandbox] = field(default_factory=dict)
    clean: asyncio.Event = field(default_factory=asyncio.Event)
    #: Launches that came while it was down.
    refused: int = 0

    def __post_init__(self) -> None:
        self.clean.set()

    def supervised(self) -> SupervisedSpawner:
        return cast("SupervisedSpawner", self)

    @property
    def alive(self) -> list[str]:
        return [task_id for task_id, sandbox in self.sandboxes.items() if not sandbox.ended.done()]

    async def launch(self, spec: SandboxSpec, *, stdin: int, stdout: int, stderr: int) -> FakeSandbox:
        if not self.is_up:
            self.refused += 1
            raise NotLaunched("the spawner is not running")
        await asyncio.sleep(self.launch_takes_s)
        if not self.is_up:
            raise SpawnerDied("killed after it was asked")
        sandbox = self.sandboxes[spec.id.partition(".")[0]] = FakeSandbox(spec)
        return sandbox

    async def wait_clean(self) -> None:
        await self.clean.wait()

    def fence(self) -> None:
        for sandbox in self.sandboxes.values():
            sandbox.end(ended_by="fence", signal=9)

    def die(self) -> None:
        """And does not come back until `clean` is set."""
        self.is_up = False
        self.clean.clear()
        for sandbox in self.sandboxes.values():
            if not sandbox.ended.done():
                sandbox.ended.set_exception(SpawnerDied("killed"))


class FakeSession:
    """A lease that lives until the test says otherwise."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.is_at_risk = False
        self.lease_id = 1
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        #: The argument of each close.
        self.closed: list[bool] = []

    async def open(self, timeout_s: float) -> Identity:
        await asyncio.sleep(0)
        return self.identity

    async def wait_lost(self) -> str:
        return await asyncio.shield(self.lost)

    async def close(self, revoke: bool = True) -> None:
        self.closed.append(revoke)

    def session(self) -> Session:
        return cast("Session", self)


@dataclass
class Shell:
    """One incarnation on a fake etcd and a fake spawner."""

    etcd: FakeEtcd
    store: TaskStore
    spawner: FakeSpawner
    session: FakeSession
    around: Surroundings
    incarnation: Incarnation
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


def use_the_loops_clock(patch: pytest.MonkeyPatch) -> None:
    """The shell's monotonic clock is the running loop's, which may be virtual."""
    clock = SimpleNamespace(time=time.time, monotonic=lambda: asyncio.get_running_loop().time())
    for module in ("running.claimer", "running.runner", "cluster.sweeper"):
        patch.setattr(f"node.{module}.time", clock)


@asynccontextmanager
async def open_shell(tmp_path: Path, *, cpu: float = 1.0, stop_wait_s: float = 2.0) -> AsyncIterator[Shell]:
    """A node that has joined and does not live yet: `shell.incarnation.live(shell.stop, shell.hurry)`."""
    capacity = Capacity(cpu, 1 << 30)
    async with FakeEtcd() as etcd, open_store(etcd) as store:
        record = codec.encode_node(Node(NODE_A, HOST, "a", capacity, "0", NOW))
        result = await etcd.txn(Txn(success=(Put(keys.node(NODE_A), record),)))
        session, spawner = FakeSession(Identity(NODE_A, HOST, result.revision)), FakeSpawner()
        context = RunContext(capacity.memory_bytes, Admission((), (), allow_host_network=False))
        logs = LogStore(tmp_path)
        around = Surroundings(etcd, store, spawner.supervised(), logs, context, capacity, 1000, stop_wait_s)
        incarnation = Incarnation(around, session.session(), session.identity)
        yield Shell(etcd, store, spawner, session, around, incarnation)


@asynccontextmanager
async def living(shell: Shell) -> AsyncIterator[asyncio.Task[str | None]]:
    """The incarnation lives meanwhile; cut short at the end."""
    life = asyncio.create_task(shell.incarnation.live(shell.stop, shell.hurry))
    try:
        yield life
    finally:
        life.cancel()
        await asyncio.wait({life})
        if not life.cancelled():
            life.exception()
