"""A host's kernel and spawner, as far as the node can tell them from the real ones.

The kernel runs commands and belongs to nobody: a command makes progress while it is not frozen, ends by itself, and
dies with its sandbox. The spawner is a process of its own, which may be paused or killed; it freezes at the fence
deadline, thaws for a later one, and kills everything when the node is gone. Two fences do not need it: a sandbox's
PID 1 dies with the spawner, and ends itself 0.3 s after a deadline at which nobody froze it (`isolation/_sandbox.c`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Protocol

from isolation.errors import NotLaunched, SpawnerDied
from isolation.spec import Ended, HostReport, SandboxSpec, Started
from node.core.fence import MARGIN_S
from tests.simulation.clock import monotonic, wall
from tests.simulation.loop import Process, of_nobody, true_time

#: From the deadline until a sandbox that was not frozen ends itself.
SECOND_FENCE_S = 0.3
LEASE_TTL_S = 5.0
#: From the end of a pause of a machine with its clock, by which the deadline of a ping from before lies ahead; with
#: something for messages between node, spawner and kernel.
EXCUSED_S = LEASE_TTL_S - MARGIN_S + SECOND_FENCE_S + 0.1
#: A message between node and spawner, a start, a kill.
STEP_S = (0.0005, 0.004)
#: From the death of the node until its spawner has killed everything (measured: 0.09 s at most).
ORPHANS_DIE_S = (0.001, 0.1)
#: From the death of a spawner until the kernel has killed each of its sandboxes (a loaded machine).
FOLLOW_S = (0.0, 0.2)
#: Until a new spawner has made sure that nothing of the last one is left.
CLEAN_S = (0.2, 0.4)
#: As `isolation/client.py` has it.
CLOSE_LIMIT_S = 10.0
#: The node kills a spawner that does not answer for so long (`node/core/silence.py`).
SILENT_S = 4.0


class Watcher(Protocol):
    """Told whenever a command moves or stops moving."""

    def moves(self, command: Command) -> None: ...

    def stops(self, command: Command) -> None: ...


class Command:
    """One command in its sandbox, as the kernel runs it. argv: `sim SECONDS [CODE] [deaf]`."""

    def __init__(
        self,
        kernel: Process,
        host_id: str,
        spec: SandboxSpec,
        watcher: Watcher,
        on_end: Callable[[Command], None],
        *,
        excused_until: float = 0.0,
    ) -> None:
        self._kernel = kernel
        self.machine = kernel.machine
        self.host_id = host_id
        self.spec = spec
        self.task_id, _, attempt = spec.id.partition(".")
        self.attempt = int(attempt)
        self.cpu = spec.limits.cpu
        self.memory_bytes = spec.limits.memory_bytes or 0
        self._left_s = float(spec.argv[1])
        self.code = int(spec.argv[2]) if len(spec.argv) > 2 else 0
        #: Ignores SIGTERM.
        self.is_deaf = "deaf" in spec.argv
        self._watcher = watcher
        self._on_end = on_end
        self.started_at = wall()
        self.is_frozen = False
        #: Killed while it was frozen: on version 1 of control groups it dies when it is thawed, before its next step.
        self._is_doomed = False
        self.is_over = False
        #: Its machine is paused, and it with it.
        self._is_suspended = False
        #: Its machine was suspended, and nothing on it knew: it may run on until then (design, section 8, 4). Such are
        #: all that ran, and what is started before a ping is answered that was sent since.
        self.excused_until = excused_until
        #: Why it was ended from outside; "" by itself.
        self.ended_by = ""
        #: The node has heard how it ended.
        self.is_reported = False
        self._since = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._go()

    def _go(self) -> None:
        self._since = monotonic()
        self._timer = self._kernel.call_later(self._left_s, self.end)
        self._watcher.moves(self)

    def _halt(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left_s -= monotonic() - self._since
            if not self._is_suspended:
                self._watcher.stops(self)

    def suspend(self) -> None:
        """Its machine is paused: its timer, which is the machine's, waits."""
        if self._timer is not None and not self._is_suspended:
            self._is_suspended = True
            self._watcher.stops(self)

    def go_on(self) -> None:
        """Its machine is not paused any more."""
        if self._is_suspended:
            self._is_suspended, self.excused_until = False, true_time() + EXCUSED_S
            if self._timer is not None:
                self._watcher.moves(self)

    def freeze(self) -> None:
        if not self.is_over and not self.is_frozen:
            self.is_frozen = True
            self._halt()

    def thaw(self) -> None:
        if not self.is_over and self.is_frozen:
            self.is_frozen = False
            if self._is_doomed:
                self.end("stop")
            else:
                self._go()

    def stop(self) -> None:
        """SIGKILL; nobody thaws it for that."""
        if self.is_frozen:
            self._is_doomed = True
        else:
            self.end("stop")

    def end(self, ended_by: str = "") -> None:
        """It is gone, with every process of it."""
        if not self.is_over:
            self._halt()
            self.is_over, self.ended_by = True, ended_by
            self._on_end(self)

    def report(self) -> Ended:
        killed = self.ended_by != ""
        return Ended(
            id=self.spec.id,
            exit_code=None if killed else self.code,
            signal=9 if killed else None,
            out_of_memory=False,
            ended_by=self.ended_by,
            started_at=self.started_at,
            finished_at=wall(),
        )


class SimSandbox:
    """What the node holds of a running sandbox; as `isolation.client.Sandbox`."""

    def __init__(self, spawner: SimSpawner, started: Started) -> None:
        self._spawner = spawner
        self.started = started
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def wait(self) -> Ended:
        return await asyncio.shield(self.ended)

    def stop(self, grace_s: float) -> None:
        self._spawner.send_stop(self.started.id, grace_s)

    def kill(self) -> None:
        self.stop(0.0)


class SimSpawner:
    """The spawner of one run of a node, with the node's own supervision of it (`SupervisedSpawner`)."""

    def __init__(self, host_id: str, node: Process, watcher: Watcher, chance: Random) -> None:
        self.host_id = host_id
        self._node = node
        self._watcher = watcher
        self._chance = chance
        self.process = Process(f"spawner of {host_id}", node.machine)
        self._kernel = Process(f"kernel of {host_id}", node.machine)
        self.report = HostReport(2, (), 1, ("cpu", "io", "memory", "pids"))
        self.is_up = True
        #: It will be killed after it has started a command, and before it can say so; told when that happens.
        self.dies_with_next: Callable[[], None] | None = None
        self._clean = asyncio.Event()
        self._clean.set()
        self.commands: dict[str, Command] = {}
        #: Of a spawner that has died: the kernel is about to kill them.
        self._dying: list[Command] = []
        self._sandboxes: dict[str, SimSandbox] = {}
        #: Starts that were asked for and not answered, in order.
        self._launching: dict[asyncio.Future[SimSandbox], None] = {}
        #: As the spawner knows it, and every PID 1 by the page that the spawner writes.
        self._deadline: float | None = None
        #: The newest that the node told.
        self._told_deadline: float | None = None
        #: Nothing starts: the deadline has passed, or the lease is known lost.
        self._is_closed = False

    # For the node: what it uses of a SupervisedSpawner

    async def launch(self, spec: SandboxSpec, *, stdin: int, stdout: int, stderr: int) -> SimSandbox:
        if not self.is_up:
            raise NotLaunched("the spawner is not running")
        answer: asyncio.Future[SimSandbox] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._launching[answer] = None
        self._send(self._launch, spec, answer)
        return await answer

    def set_deadline(self, boottime_s: float) -> None:
        self._told_deadline = boottime_s
        self._send(self._new_deadline, boottime_s)

    def fence(self) -> None:
        self._send(self._lose)

    def send_stop(self, sandbox_id: str, grace_s: float) -> None:
        self._send(self._stop, sandbox_id, grace_s)

    def kill(self) -> None:
        self.die()

    async def wait_clean(self) -> None:
        await self._clean.wait()

    def _send(self, step: Callable[..., None], *args: object) -> None:
        self.process.call_later(self._step_s(), step, *args)

    def _step_s(self) -> float:
        return self._chance.uniform(*STEP_S)

    # In the spawner

    def _launch(self, spec: SandboxSpec, answer: asyncio.Future[SimSandbox]) -> None:
        if self._is_closed or (self._deadline is not None and monotonic() >= self._deadline):
            self._answer(answer, error=NotLaunched("nothing may start: the deadline has passed"))
            return
        self.commands[spec.id] = Command(
            self._kernel, self.host_id, spec, self._watcher, self._on_end, excused_until=self._excused_until()
        )
        if self.dies_with_next is not None:
            self.dies_with_next()
            self.dies_with_next = None
            self.die()
            return
        self._sandboxes[spec.id] = sandbox = SimSandbox(self, Started(spec.id, 1, wall()))
        self._answer(answer, result=sandbox)

    def _excused_until(self) -> float:
        """In true time; 0: the deadline is of a ping that was sent since the machine was paused, if it ever was."""
        machine = self.process.machine
        sent_at = (self._deadline or 0.0) - (LEASE_TTL_S - MARGIN_S)
        knows = sent_at >= machine.now(machine.resumed_at)
        return 0.0 if knows or not machine.resumed_at else machine.resumed_at + EXCUSED_S

    def _answer(
        self,
        answer: asyncio.Future[SimSandbox],
        *,
        result: SimSandbox | None = None,
        error: SpawnerDied | None = None,
    ) -> None:
        def arrive() -> None:
            self._launching.pop(answer, None)
            if answer.done():
                if result is not None:  # nobody waits for it any more: as the client does
                    result.kill()
            elif error is not None:
                answer.set_exception(error)
            elif result is not None:
                answer.set_result(result)

        of_nobody(arrive, delay_s=self._step_s())

    def _on_end(self, command: Command) -> None:
        """The kernel: PID 1 is gone. The spawner reaps it and reports."""
        self._send(self._reaped, command)

    def _reaped(self, command: Command) -> None:
        sandbox = self._sandboxes.pop(command.spec.id, None)
        self.commands.pop(command.spec.id, None)
        if sandbox is not None:
            of_nobody(_report, sandbox.ended, command, command.report(), delay_s=self._step_s())

    def _stop(self, sandbox_id: str, grace_s: float) -> None:
        command = self.commands.get(sandbox_id)
        if command is None:
            return
        if grace_s <= 0 or not (command.is_deaf or command.is_frozen):
            command.stop()
        else:
            self.process.call_later(grace_s, command.stop)

    # The fences

    def _new_deadline(self, deadline: float) -> None:
        if self._deadline is not None and deadline <= self._deadline:
            return  # overtaken by a later one
        self._deadline = deadline
        self._is_closed = False
        if deadline <= monotonic():
            self._reached(deadline)
            return
        for command in list(self.commands.values()):
            command.thaw()
        self.process.call_later(deadline - monotonic(), self._reached, deadline)
        self._kernel.call_later(deadline + SECOND_FENCE_S - monotonic(), self._second_fence, deadline)

    def _reached(self, deadline: float) -> None:
        if self._deadline == deadline:
            for command in list(self.commands.values()):
                command.freeze()

    def _second_fence(self, deadline: float) -> None:
        """In every PID 1: the spawner may be paused."""
        if self._deadline == deadline:
            for command in list(self.commands.values()):
                if not command.is_frozen:
                    command.end("fence")

    def _lose(self) -> None:
        self._is_closed = True
        for command in list(self.commands.values()):
            command.end("fence")

    # Deaths

    def node_is_gone(self) -> None:
        """End of file on its socket: it kills everything, and exits."""
        self.process.call_later(self._chance.uniform(*ORPHANS_DIE_S), self.end_all)

    async def close(self) -> None:
        """Told to end everything and itself; killed where it is stopped."""
        if self.process.is_paused:
            await asyncio.sleep(CLOSE_LIMIT_S)
        self.end_all()

    def end_all(self) -> None:
        self.end_commands()
        self.process.kill()

    @property
    def in_cgroups(self) -> list[Command]:
        """Its own, and those that a spawner which died has left for a moment."""
        return [*self.commands.values(), *self._dying]

    def end_commands(self, how: str = "stop") -> None:
        """Kills all that is in its cgroups."""
        for command in self.in_cgroups:
            command.end(how)

    def die(self) -> None:
        """SIGKILL: every sandbox dies with it, and the node hears of it."""
        if self.process.is_dead:
            return
        self.process.kill()
        self.is_up = False
        self._clean.clear()
        for command in self.commands.values():
            self._kernel.call_later(self._chance.uniform(*FOLLOW_S), command.end, "died")
        self._dying = list(self.commands.values())
        self.commands.clear()
        self._node.call_later(self._step_s(), self._told_of_death)

    def _told_of_death(self) -> None:
        """In the node."""
        error = SpawnerDied("its socket was closed")
        for answer in list(self._launching):
            if not answer.done():
                answer.set_exception(error)
        self._launching.clear()
        for sandbox in self._sandboxes.values():
            if not sandbox.ended.done():
                sandbox.ended.set_exception(error)
        self._sandboxes.clear()
        self._node.call_later(self._chance.uniform(*CLEAN_S), self._restarted)

    def _restarted(self) -> None:
        self.process = Process(f"spawner of {self.host_id}", self._node.machine)
        self._is_closed = False
        self.is_up = True
        self._clean.set()
        self._deadline = None
        if self._told_deadline is not None:
            self._send(self._new_deadline, self._told_deadline)

    async def supervise(self) -> None:
        """In the node: a spawner that does not answer is killed."""
        silent_s = 0.0
        while True:
            await asyncio.sleep(1.0)
            silent_s = silent_s + 1.0 if self.process.is_paused else 0.0
            if silent_s >= SILENT_S:
                self.is_up = False
                self.die()
                silent_s = 0.0


def _report(future: asyncio.Future[Ended], command: Command, ended: Ended) -> None:
    if not future.done():
        future.set_result(ended)
        command.is_reported = True
