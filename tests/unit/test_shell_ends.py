"""The ends of a life: stops while etcd or the spawner is down, second signals, broken starts of the next life."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
from pathlib import Path
from typing import cast

import pytest

from etcd import keys
from etcd.identity import Identity
from etcd.port import Put, Txn
from isolation.client import Spawner
from isolation.config import SpawnerConfig
from isolation.errors import SandboxFailed, SpawnerDied
from isolation.spec import HostReport, Limits, SandboxSpec
from node.cluster.session import Session
from node.cluster.sweeper import Sweeper
from node.core.model import Status, TaskSpec
from node.datadir import DataDirError
from node.lives import Lives
from node.running.supervised_spawner import SupervisedSpawner
from tests.support.fake_etcd import Fault
from tests.support.fake_spawner import FakeSession, living, open_shell, use_the_loops_clock
from tests.support.tasks import NODE_A, queued, read_one
from tests.support.virtual_time import virtual_time
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_loops_clock(monkeypatch)


@virtual_time
async def test_a_stop_ends_while_etcd_is_down(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        task_id = (await queued(shell.store)).task.id
        async with living(shell) as life:
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            shell.etcd.is_cut = True
            shell.stop.set()
            await wait_until(life.done, 120, what="the stop ends")


@virtual_time
async def test_a_stop_ends_while_what_runs_is_frozen_for_want_of_etcd(tmp_path: Path) -> None:
    """The quorum is lost: nothing hears a signal, no lease is known lost, and nobody sends a second signal."""
    async with open_shell(tmp_path, stop_wait_s=10.0) as shell:
        task_id = (await queued(shell.store)).task.id
        async with living(shell) as life:
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            shell.etcd.is_cut = True
            shell.session.is_at_risk = True
            shell.spawner.sandboxes[task_id].is_frozen = True
            shell.stop.set()
            await wait_until(life.done, 120, what="the stop ends")
            assert shell.spawner.alive == []


@virtual_time
async def test_a_stop_gives_frozen_tasks_the_time_in_which_etcd_may_answer(tmp_path: Path) -> None:
    async with open_shell(tmp_path, stop_wait_s=10.0) as shell:
        task_id = (await queued(shell.store)).task.id
        async with living(shell) as life:
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            shell.session.is_at_risk = True
            sandbox = shell.spawner.sandboxes[task_id]
            sandbox.is_frozen = True
            shell.stop.set()
            await asyncio.sleep(5)
            assert shell.spawner.alive == [task_id]
            shell.session.is_at_risk = sandbox.is_frozen = False
            sandbox.stop(0)  # the signal that waited
            await wait_until(life.done, 120, what="the stop ends")
            assert (await read_one(shell.store, task_id)).task.status is Status.QUEUED


@virtual_time
async def test_a_stop_with_a_second_signal_ends_while_no_spawner_can_be_started(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        task_id = (await queued(shell.store)).task.id
        async with living(shell) as life:
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            shell.spawner.die()
            await asyncio.sleep(1)
            shell.stop.set()
            await asyncio.sleep(1)
            shell.hurry.set()
            await wait_until(life.done, 120, what="the stop ends")


@virtual_time
async def test_a_stop_ends_after_the_lease_was_lost_while_no_spawner_can_be_started(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        task_id = (await queued(shell.store)).task.id
        async with living(shell) as life:
            await wait_until(lambda: task_id in shell.spawner.sandboxes)
            shell.spawner.die()
            shell.session.lost.set_result("gone")
            await asyncio.sleep(1)
            shell.stop.set()
            shell.hurry.set()
            await wait_until(life.done, 120, what="the stop ends")


@virtual_time
async def test_a_task_that_may_run_once_is_not_started_again_after_a_start_without_an_answer(tmp_path: Path) -> None:
    """The spawner died after it was asked for the sandbox: nobody knows whether the command had begun."""
    once = TaskSpec("true", restart_on_node_loss=False)
    async with open_shell(tmp_path) as shell:
        shell.spawner.launch_takes_s = 0.5
        task_id = (await queued(shell.store, once)).task.id
        async with living(shell):
            await asyncio.sleep(0.2)
            shell.spawner.die()
            await asyncio.sleep(1)
            shell.spawner.is_up = True
            shell.spawner.clean.set()
            await asyncio.sleep(5)
            assert (await read_one(shell.store, task_id)).task.status is Status.FAILED
            assert shell.spawner.sandboxes == {}


def _claims(argument: object) -> bool:
    """Whether a transaction makes a running key of this node."""
    if isinstance(argument, Txn):
        return any(_claims(op) for op in argument.success)
    return isinstance(argument, Put) and argument.key.startswith(keys.running_of(NODE_A).key)


@virtual_time
async def test_a_task_that_may_run_once_runs_after_a_start_that_nobody_was_asked_for(tmp_path: Path) -> None:
    """The spawner died while the task was being claimed: no command can have begun."""
    once = TaskSpec("true", restart_on_node_loss=False)
    async with open_shell(tmp_path) as shell:

        def dies(_method: str, argument: object) -> None:
            if _claims(argument) and shell.spawner.refused == 0:
                shell.spawner.die()

        shell.etcd.faults = dies
        async with living(shell):
            task_id = (await queued(shell.store, once)).task.id
            await wait_until(lambda: shell.spawner.refused == 1, what="its launch finds no spawner")
            shell.spawner.is_up = True
            shell.spawner.clean.set()
            await wait_until(lambda: task_id in shell.spawner.sandboxes, 60, what="it runs")


@virtual_time
async def test_a_claim_answered_during_a_stop_is_given_back_and_not_started(tmp_path: Path) -> None:
    async with open_shell(tmp_path, cpu=2, stop_wait_s=5.0) as shell:
        stays = TaskSpec("/bin/true", restart_on_node_loss=False)
        first = (await queued(shell.store, stays)).task.id
        async with living(shell) as life:
            await wait_until(lambda: first in shell.spawner.sandboxes)
            # Its claim has no answer for now.
            shell.etcd.faults = lambda _, argument: Fault(error_after_s=0.5) if _claims(argument) else None
            second = (await queued(shell.store, stays)).task.id
            await asyncio.sleep(1)
            shell.stop.set()
            await asyncio.sleep(1)
            shell.etcd.faults = lambda _method, _argument: None
            await wait_until(life.done, 120, what="the stop ends")
            assert second not in shell.spawner.sandboxes, "started after the stop was asked for"
            assert (await read_one(shell.store, second)).task.status is Status.QUEUED


@virtual_time
async def test_a_lease_is_not_revoked_while_sandboxes_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A duty breaks: peers must not requeue what still runs here."""

    async def breaks(_self: Sweeper) -> None:
        await asyncio.sleep(5)
        raise ZeroDivisionError

    monkeypatch.setattr(Sweeper, "run", breaks)
    async with open_shell(tmp_path) as shell:
        await queued(shell.store)
        lives = Lives(shell.around, shell.session.session, on_begin=lambda _session, _identity: None)
        await lives.begin()
        with pytest.raises(BaseExceptionGroup):
            await lives.run(shell.stop, shell.hurry)
        assert not (shell.spawner.alive and True in shell.session.closed)


@virtual_time
async def test_a_full_disk_at_the_next_life_does_not_end_the_node(tmp_path: Path) -> None:
    async with open_shell(tmp_path) as shell:
        sessions: list[FakeSession] = []

        def make() -> Session:
            sessions.append(FakeSession(shell.session.identity))
            return sessions[-1].session()

        def begin(_session: Session, _identity: Identity) -> None:
            if len(sessions) == 2:
                raise DataDirError("the file system is full")

        lives = Lives(shell.around, make, on_begin=begin)
        await lives.begin()
        living_on = asyncio.create_task(lives.run(shell.stop, shell.hurry))
        await asyncio.sleep(1)
        sessions[0].lost.set_result("gone")
        await asyncio.sleep(30)
        is_over = living_on.done()
        shell.stop.set()
        await asyncio.wait({living_on})
        living_on.exception()
        assert all(session.closed for session in sessions), "a session was left open"
        assert not is_over, "the node ended"


# -- the spawner's supervision, on the real client with a process that is none


class _NoProcess:
    pid = 4711

    def kill(self) -> None:
        return

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0


def _spawners(monkeypatch: pytest.MonkeyPatch, *, starts: list[Spawner], limit: int = 10) -> list[object]:
    """Spawner.start without a process; gives the other ends, by which the test plays the spawner."""
    other_ends: list[object] = []

    async def start(_config: SpawnerConfig, **options: object) -> Spawner:
        if len(starts) >= limit:
            raise OSError(errno.EAGAIN, "no pids")
        from isolation.process import socket_pair

        requests, theirs = socket_pair()
        control, control_theirs = socket_pair()
        process = cast("subprocess.Popen[bytes]", _NoProcess())
        spawner = Spawner(process, requests, control, cast("None", options.get("on_died")))
        spawner.report = HostReport(2, ("io",), 4711)
        spawner._ready.set_result(spawner.report)
        asyncio.get_running_loop().add_reader(requests.fileno(), spawner._on_readable)
        other_ends.append((theirs, control_theirs))
        starts.append(spawner)
        return spawner

    monkeypatch.setattr(Spawner, "start", start)
    return other_ends


def _close(ends: object) -> None:
    for end in cast("tuple[socket.socket, ...]", ends):
        end.close()


SPEC = SandboxSpec("some", ("/bin/true",), {}, Limits(1.0, None, 10))


@virtual_time
async def test_clean_is_told_after_the_next_spawner_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to whoever hears of the death before the supervision does."""
    starts: list[Spawner] = []
    ends = _spawners(monkeypatch, starts=starts)
    supervised = SupervisedSpawner(SpawnerConfig("host", Path("/tmp")))
    await supervised.start()
    running = asyncio.create_task(supervised.run())

    async def launch() -> int:
        with pytest.raises(SpawnerDied):
            await supervised.launch(SPEC, stdin=0, stdout=1, stderr=2)
        await supervised.wait_clean()
        return len(starts)

    launching = asyncio.create_task(launch())
    await asyncio.sleep(0.01)
    _close(ends[0])
    try:
        assert await launching == 2, "told clean while the dead spawner's sandboxes may still be there"
    finally:
        running.cancel()
        await asyncio.wait({running})
        _close(ends[-1])
        await asyncio.sleep(0.01)


@virtual_time
async def test_the_host_report_outlives_a_spawner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node record of the next life is made from it, maybe while the spawner is being started again."""
    starts: list[Spawner] = []
    ends = _spawners(monkeypatch, starts=starts, limit=1)
    supervised = SupervisedSpawner(SpawnerConfig("host", Path("/tmp")))
    await supervised.start()
    running = asyncio.create_task(supervised.run())
    await asyncio.sleep(0)
    _close(ends[0])
    try:
        await asyncio.sleep(0.05)
        assert supervised.report.not_enforced == ("io",)
    finally:
        running.cancel()
        await asyncio.wait({running})


@virtual_time
async def test_a_launch_that_cannot_be_sent_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large request travels in a memfd, and there may be no descriptor left for it."""

    def none_left(_name: str, _flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    starts: list[Spawner] = []
    ends = _spawners(monkeypatch, starts=starts)
    spawner = await Spawner.start(SpawnerConfig("host", Path("/tmp")))
    monkeypatch.setattr("isolation.protocol.os.memfd_create", none_left)
    large = SandboxSpec("large", ("/bin/true", "x" * 100_000), {}, Limits(1.0, None, 10))
    try:
        with pytest.raises((OSError, SandboxFailed)):
            async with asyncio.timeout(60):  # TimeoutError is an OSError
                await spawner.launch(large, stdin=0, stdout=1, stderr=2)
        assert asyncio.get_running_loop().time() < 1059, "it was never answered"
    finally:
        _close(ends[-1])
        await asyncio.sleep(0.01)
