"""The node's end of the spawner: starts it, asks for sandboxes, hears how they ended.

On the asyncio loop, without a thread: two sockets, one reader. A request is one datagram; what the other end has no
room for waits in order. `set_deadline` alone may be called from any thread: it is one atomic datagram, and if there
is no room for it, the spawner is not reading, and its older, earlier deadline is the safe one.

This must not decide anything about tasks. Whoever launches, owns the sandbox; when the spawner is gone, every
sandbox is gone with it, and all that wait get SpawnerDied.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
from collections import deque
from collections.abc import Callable

from isolation import protocol
from isolation.config import SpawnerConfig
from isolation.errors import HostLacks, NotLaunched, ProtocolError, SandboxFailed, SpawnerDied
from isolation.process import start as start_process
from isolation.spec import BindMount, Ended, HostReport, SandboxSpec, SetupFailed, Started

__all__ = [
    "BindMount",
    "Sandbox",
    "Spawner",
    "SpawnerConfig",
]

#: From exec to HostReport; a kill of what an earlier run left may take 5 s of it.
START_LIMIT_S = 20.0
#: From Close to its exit.
CLOSE_LIMIT_S = 10.0
#: From the end of its socket to the end of the process, and between two looks for it.
REAP_LIMIT_S = 2.0
REAP_LOOK_S = 0.01
#: errnos of this host, not of the other end.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS})
_REPORTS_PER_TURN = 256

#: Bytes, descriptors to send along, and the sandbox's id where there is one.
_Datagram = tuple[bytes, tuple[int, ...], str]


class Sandbox:
    """One started sandbox. Ends by itself; `wait` tells how."""

    def __init__(self, spawner: Spawner, started: Started) -> None:
        self._spawner = spawner
        self.started = started
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        # Nobody has to wait for a sandbox; without this asyncio complains of an exception that nobody looked at.
        self._ended.add_done_callback(lambda future: future.cancelled() or future.exception())

    @property
    def id(self) -> str:
        return self.started.id

    async def wait(self) -> Ended:
        """How it ended; every process of it is gone by then. Raises SpawnerDied. May be cancelled and repeated."""
        return await asyncio.shield(self._ended)

    def stop(self, grace_s: float) -> None:
        """SIGTERM to the command's process group, SIGKILL to all after grace_s. Quiet when it has ended."""
        if not self._ended.done():
            self._spawner.send_stop(self.id, grace_s)

    def kill(self) -> None:
        """SIGKILL to all, at once."""
        self.stop(0)

    def set_ended(self, ended: Ended) -> None:
        """For the spawner's reader alone."""
        self._ended.set_result(ended)

    def set_lost(self, error: SpawnerDied) -> None:
        """For the spawner's reader alone."""
        self._ended.set_exception(error)


class Spawner:
    """The running spawner process. Made by `start`, ended by `close`; between them `on_died` tells of its death."""

    report: HostReport

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        requests: socket.socket,
        control: socket.socket,
        on_died: Callable[[str], None] | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._requests = requests
        self._control = control
        self._on_died = on_died
        self._launching: dict[str, asyncio.Future[Sandbox]] = {}
        self._running: dict[str, Sandbox] = {}
        self._requests_out = _Outbox(self._loop, requests, self._on_short)
        self._control_out = _Outbox(self._loop, control, self._on_short)
        self._ready: asyncio.Future[HostReport] = self._loop.create_future()
        self._died: asyncio.Future[str] = self._loop.create_future()
        self._is_closing = False
        self._pings = 0
        self._pongs = 0

    @classmethod
    async def start(cls, config: SpawnerConfig, *, on_died: Callable[[str], None] | None = None) -> Spawner:
        """Starts the process and waits until it is ready.

        What an earlier run of this host id left is dead by then. `on_died` is called once, on the loop, when the
        process ends without having been asked to. Raises HostLacks, SpawnerDied, TimeoutError.
        """
        process, requests, control = start_process()
        spawner = cls(process, requests, control, on_died)
        # By message, not as an argument: every sandbox can read the arguments of its PID 1.
        spawner._control_send(protocol.Configure(config))
        spawner._loop.add_reader(requests.fileno(), spawner._on_readable)
        try:
            async with asyncio.timeout(START_LIMIT_S):
                spawner.report = await spawner._ready
        except BaseException:
            process.kill()
            spawner._is_closing = True
            spawner._gone("it did not get ready")
            process.wait()
            raise
        return spawner

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running_count(self) -> int:
        """Sandboxes that were asked for and have not ended."""
        return len(self._launching) + len(self._running)

    async def launch(self, spec: SandboxSpec, *, stdin: int, stdout: int, stderr: int) -> Sandbox:
        """Starts a sandbox; returns when its command was executed.

        The descriptors are duplicated: the caller closes his own after this returned. Raises SandboxFailed (nothing
        is left of it), NotLaunched, SpawnerDied (the command may have begun to run), ProtocolError (an id or a value
        that no request may have, or an id in use). If cancelled, the sandbox is killed as soon as it has started.
        """
        if self._died.done():
            raise NotLaunched(self._died.result())
        if not protocol.is_id(spec.id):
            raise ProtocolError(f"{spec.id!r} cannot name a sandbox")
        if spec.id in self._launching or spec.id in self._running:
            raise ProtocolError(f"a sandbox of the id {spec.id} is there already")
        data = protocol.encode(protocol.Launch(spec))
        answer: asyncio.Future[Sandbox] = self._loop.create_future()
        self._launching[spec.id] = answer
        datagram = (data, (stdin, stdout, stderr), spec.id)
        self._requests_out.put(datagram)
        try:
            return await answer
        except asyncio.CancelledError:
            # Not sent yet: never will be. Sent: `_on_started` finds that nobody waits, and kills it.
            if self._requests_out.take_back(datagram):
                del self._launching[spec.id]
            raise

    def set_deadline(self, boottime_s: float) -> None:
        """CLOCK_BOOTTIME seconds at which every sandbox freezes. From any thread; never waits, never raises."""
        with contextlib.suppress(OSError):
            protocol.send(self._control, protocol.SetDeadline(boottime_s))

    def fence(self) -> None:
        """The lease is lost: everything is killed, and nothing starts before a later deadline."""
        self._control_send(protocol.Fence())

    def send_stop(self, sandbox_id: str, grace_s: float) -> None:
        """For `Sandbox.stop`."""
        self._control_send(protocol.Stop(sandbox_id, grace_s))

    def ping(self) -> None:
        """Asks whether it is there; `is_answered` tells, once its answer has been read on this loop."""
        self._pings += 1
        self._control_send(protocol.Ping(self._pings))

    @property
    def is_answered(self) -> bool:
        """Every ping so far was answered."""
        return self._pongs == self._pings

    def kill(self) -> None:
        """SIGKILL to the process: it does not do what it should. What it leaves, frozen or not, the next one ends."""
        if not self._died.done():
            self._process.kill()

    async def wait_died(self) -> str:
        """Returns when the process is gone, with the reason in words."""
        return await asyncio.shield(self._died)

    async def reap(self) -> bool:
        """After its death: collects the process, so that it stays no zombie. False where the kernel is not done with
        it in time (it hangs in a system call)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAP_LIMIT_S):
                while self._process.poll() is None:  # noqa: ASYNC110  (nothing tells of it but the process itself)
                    await asyncio.sleep(REAP_LOOK_S)
                return True
        return False

    async def close(self) -> None:
        """Kills every sandbox and ends the process; nothing is left of either. Safe to repeat."""
        self._is_closing = True
        self._control_send(protocol.Close())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await asyncio.shield(self._died)
        if not self._died.done():
            self._process.kill()
            self._gone("it did not close in time")
        # The socket is closed by its exit, so this waits for moments only.
        await self._loop.run_in_executor(None, self._process.wait)

    # ---- out -----------------------------------------------------------------------------------------------------

    def _control_send(self, message: protocol.Request) -> None:
        if not self._died.done():
            self._control_out.put((protocol.encode(message), (), ""))

    # ---- in ------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            for _ in range(_REPORTS_PER_TURN):
                received = protocol.receive(self._requests)
                protocol.close_all(received.fds)
                if not received.data:
                    self._gone("its socket was closed")
                    return
                self._on_report(protocol.decode(received.data))
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._process.kill()
            self._gone(str(error))

    def _on_report(self, report: protocol.Message) -> None:
        if isinstance(report, Ended):
            sandbox = self._running.pop(report.id, None)
            if sandbox is not None:
                sandbox.set_ended(report)
        elif isinstance(report, Started):
            self._on_started(report)
        elif isinstance(report, SetupFailed):
            answer = self._launching.pop(report.id, None)
            if answer is not None and not answer.done():
                answer.set_exception(SandboxFailed(report))
        elif isinstance(report, HostReport):
            if not self._ready.done():
                self._ready.set_result(report)
        elif isinstance(report, protocol.Pong):
            self._pongs = report.number
        elif isinstance(report, protocol.Refused):
            self._on_refused(report)
        else:
            raise ProtocolError(f"{type(report).__name__} is not a report")

    def _on_started(self, report: Started) -> None:
        answer = self._launching.pop(report.id, None)
        sandbox = Sandbox(self, report)
        self._running[report.id] = sandbox
        if answer is None or answer.done():
            sandbox.kill()
        else:
            answer.set_result(sandbox)

    def _on_refused(self, report: protocol.Refused) -> None:
        if not self._ready.done():
            self._ready.set_exception(HostLacks(report.detail))
            return
        # Only a control message of our own can be refused without an id: a programmer's error.
        raise ProtocolError(f"the spawner refused a message: {report.detail}")

    def _on_short(self, sandbox_id: str, error: OSError) -> None:
        """This host is short of something, and one datagram was not sent."""
        answer = self._launching.pop(sandbox_id, None)
        if answer is None:  # a control message: without it the spawner would do something else than it should
            self._process.kill()
            self._gone(str(error))
        elif not answer.done():
            failed = SetupFailed(sandbox_id, "send", error.errno or 0, "", str(error))
            answer.set_exception(SandboxFailed(failed))

    def _gone(self, how: str) -> None:
        """The process has ended or is about to: everything that waits for it is told."""
        if self._died.done():
            return
        self._loop.remove_reader(self._requests.fileno())
        unsent = self._requests_out.close()
        self._control_out.close()
        self._requests.close()
        self._control.close()
        reason = f"the spawner (pid {self._process.pid}) is gone: {how}"
        self._died.set_result(reason)
        was_ready = self._ready.done()
        if not was_ready:
            self._ready.set_exception(SpawnerDied(reason))
            self._ready.exception()  # nobody may be waiting any more
        for sandbox_id, answer in self._launching.items():
            if not answer.done():
                kind = NotLaunched if sandbox_id in unsent else SpawnerDied
                answer.set_exception(kind(reason))
        self._launching.clear()
        for sandbox in self._running.values():
            sandbox.set_lost(SpawnerDied(reason))
        self._running.clear()
        if was_ready and not self._is_closing and self._on_died is not None:
            self._on_died(reason)


class _Outbox:
    """Datagrams in order, the rest waiting while the other end has no room."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, on_short: Callable[[str, OSError], None]
    ) -> None:
        self._on_short = on_short
        self._loop = loop
        self._sock = sock
        self._queue: deque[_Datagram] = deque()
        self._is_waiting = False

    def put(self, datagram: _Datagram) -> None:
        self._queue.append(datagram)
        if not self._is_waiting:
            self._flush()

    def take_back(self, datagram: _Datagram) -> bool:
        """True where it had not been sent yet, and now never will be."""
        try:
            self._queue.remove(datagram)
        except ValueError:
            return False
        return True

    def _flush(self) -> None:
        try:
            while self._queue:
                data, fds, label = self._queue[0]
                protocol.send_encoded(self._sock, data, fds, label=label)
                self._queue.popleft()
        except BlockingIOError:
            if not self._is_waiting:
                self._is_waiting = True
                self._loop.add_writer(self._sock.fileno(), self._flush)
            return
        except OSError as error:
            if error.errno in _SHORTAGES:
                _, _, label = self._queue.popleft()
                self._on_short(label, error)
                self._loop.call_soon(self._flush)
                return
            # The reader learns of the death, with everything that follows from it.
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._sock.fileno())

    def close(self) -> set[str]:
        """The ids of what was not sent."""
        unsent = {label for _, _, label in self._queue}
        self._queue.clear()
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._sock.fileno())
        return unsent
