"""etcd as a managed child process: started, watched, restarted, stopped.

It is started by exec through `setpriv --pdeathsig KILL`, so that no stray etcd holds the data directory when the node
dies; never with a preexec_fn (the node has gRPC threads, and must not run Python between fork and exec). PDEATHSIG
follows the *thread* that started it: only the main thread may.

States: stopped -> (start) -> starting -> answering -> ready -> (dies) -> pausing -> starting ... -> (stop) -> stopped.
*Answering* is for itself: a learner stays there until its promotion. *Ready* is linearizable reads, hence a voter with
a quorum. A voter that is started while the rest of its cluster is down stays *starting* for as long as it takes: etcd
serves no client before it has heard from a leader. That is no failure; dying again and again is.
While it is down the node lives on; clients see StoreUnavailable and OutcomeUnknown. Every death is followed by a
restart, exit code 0 too, which does not mean "as asked". Only `stop()` ends it, and one kind of death: the cluster has
**removed** this member. Its data directory is worthless from then on, and starting it again would only fail again.
Ports are chosen at `start()`, again while it has not come up, and stay from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from etcd.binary import EtcdNotFound, run_for_text
from etcd.client import EtcdClient
from etcd.errors import StoreError
from etcd.port import Range
from etcd.ports import Ports, choose_ports
from etcd.server_flags import (
    LOG_LIMIT_MIB,
    EtcdConfig,
    address,
    arguments,
    client_url,
    known_flags,
    last_words,
    peer_url,
    tells_removal,
)

#: Pauses before a restart: doubled from the first to the last; from the first again after it lived for LIVED_S.
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
LIVED_S = 30.0
#: Deaths without ever having been ready, after which `wait_ready` gives up: it will not come up by itself.
HOPELESS_DEATHS = 4
READY_POLL_S = 0.05
#: While it answers but is not ready, the polls grow as far apart as this.
ANSWERING_POLL_S = 0.5
#: From SIGTERM to SIGKILL.
STOP_LIMIT_S = 5.0


class ServerEventKind(StrEnum):
    STARTED = "started"
    #: It answers for itself, as a learner too.
    ANSWERING = "answering"
    #: It answers linearizable reads.
    READY = "ready"
    DIED = "died"
    RESTARTING = "restarting"
    #: It died because the cluster has removed this member; it is not started again.
    REMOVED = "removed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """Something happened to etcd; `str()` is a line for people."""

    kind: ServerEventKind
    pid: int | None = None
    #: For DIED: the exit code, or minus the signal.
    code: int | None = None
    #: For RESTARTING: when.
    in_s: float | None = None
    #: For DIED: its last words.
    detail: str = ""

    def __str__(self) -> str:
        match self.kind:
            case ServerEventKind.DIED:
                how = f"signal {-self.code}" if self.code is not None and self.code < 0 else f"exit code {self.code}"
                return f"etcd (pid {self.pid}) died: {how}{': ' if self.detail else ''}{self.detail}"
            case ServerEventKind.RESTARTING:
                return f"etcd is started again in {self.in_s:g} s"
            case ServerEventKind.REMOVED:
                return f"etcd (pid {self.pid}) left: the cluster has removed this member; its data are of no use"
            case _:
                return f"etcd (pid {self.pid}) {self.kind}"


class EtcdNotReady(Exception):  # noqa: N818  (named as the conventions name errors)
    """etcd does not come up; the message has its last words and names its log."""


def _ignore(_event: ServerEvent) -> None:
    return


def plan_ports(config: EtcdConfig) -> Ports:
    """Chooses the ports and remembers them: `EtcdServer.start` takes the same. For a member to be, whose peer URL
    (`server_flags.peer_url`) the cluster must be told before; it is then started with that `peer_port`."""
    config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    hosts = config.client_hosts
    return choose_ports(
        config.ports_file,
        api_port=config.api_port,
        client_hosts=hosts,
        peer_host=config.peer_host,
        peer_port=config.peer_port,
    )


class EtcdServer:
    """One member of etcd below one directory."""

    def __init__(self, config: EtcdConfig, *, on_event: Callable[[ServerEvent], None] = _ignore) -> None:
        """on_event is called on the loop, must be short and must not raise."""
        self._config = config
        self._on_event = on_event
        self._flags: frozenset[str] = frozenset()
        self._ports: Ports | None = None
        self._process: Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._client: EtcdClient | None = None
        self._ready = asyncio.Event()
        self._answering = asyncio.Event()
        self._is_removed = False
        self._stopping = asyncio.Event()
        #: Set while it will not come up by itself.
        self._hopeless = asyncio.Event()
        self._deaths_unready = 0
        #: Since `start()`: from then on the ports stay.
        self._has_answered = False
        #: Where the log ended when the process was started: what came before is about other runs.
        self._log_start = 0
        self._last_words = ""

    @property
    def ports(self) -> Ports:
        if self._ports is None:
            raise RuntimeError("etcd was not started")
        return self._ports

    @property
    def client_address(self) -> str:
        """HOST:PORT for clients on this machine."""
        return address(self._config.own_address_host, self.ports.client)

    @property
    def client_url(self) -> str:
        """For clients on other machines."""
        return client_url(self._config, self.ports)

    @property
    def peer_url(self) -> str:
        return peer_url(self._config, self.ports)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def is_ready(self) -> bool:
        """Whether it answered a linearizable read since it was started last."""
        return self._ready.is_set()

    @property
    def is_answering(self) -> bool:
        """Whether it answered for itself since it was started last."""
        return self._answering.is_set()

    @property
    def hopeless(self) -> str | None:
        """Why it will not come up by itself, in words; None: it may."""
        if not self._hopeless.is_set():
            return None
        if self._is_removed:
            return self._complaint("the cluster has removed this member of etcd")
        return self._complaint(f"etcd died {self._deaths_unready} times at its start")

    @property
    def is_removed(self) -> bool:
        """Whether the cluster has removed this member: it is down for good."""
        return self._is_removed

    async def start(self) -> None:
        """Starts it and its supervision; does not wait until it is ready. Raises OSError where it cannot be started
        at all."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("etcd must be started from the main thread: it dies with the thread that started it")
        if self._supervision is not None:
            raise RuntimeError("etcd was started already")
        if shutil.which("setpriv") is None:
            raise FileNotFoundError("setpriv is missing (package util-linux): without it etcd could outlive the node")
        config = self._config
        config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config.data_dir.mkdir(mode=0o700, exist_ok=True)
        try:
            self._flags = known_flags(run_for_text(config.binary.path, "--help"))
        except EtcdNotFound as error:
            # Found at the node's start; what is wrong now (it is just being replaced) may pass, as with any file.
            raise OSError(str(error)) from error
        await self._choose_ports()
        self._process = await self._spawn()
        self._supervision = asyncio.create_task(self._supervise(self._process), name="etcd supervision")

    async def _choose_ports(self) -> None:
        config = self._config
        self._ports = plan_ports(config)
        if self._client is not None:
            await self._client.close()
        self._client = EtcdClient([self.client_address], config.tls)

    async def wait_ready(self, timeout_s: float | None) -> None:
        """Until it answers linearizable reads; with timeout_s None for as long as it takes (a voter whose cluster is
        down has no quorum, a learner no vote). Raises EtcdNotReady with its last words after timeout_s, as soon as it
        has died so often that it will not come up, or when the cluster has removed it."""
        await self._wait(self._ready, timeout_s, "ready")

    async def wait_answering(self, timeout_s: float | None) -> None:
        """Until it answers for itself, as a learner too. Raises as `wait_ready`."""
        await self._wait(self._answering, timeout_s, "answering")

    async def _wait(self, condition: asyncio.Event, timeout_s: float | None, what: str) -> None:
        hopeless = asyncio.ensure_future(self._hopeless.wait())
        reached = asyncio.ensure_future(condition.wait())
        try:
            await asyncio.wait({hopeless, reached}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hopeless.cancel()
            reached.cancel()
        if condition.is_set():
            return
        if self.hopeless is not None:
            raise EtcdNotReady(self.hopeless)
        raise EtcdNotReady(self._complaint(f"etcd is not {what} after {timeout_s:g} s"))

    async def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """SIGTERM, and SIGKILL after limit_s. Returns when the process is gone; may be called more than once."""
        self._stopping.set()
        if self._process is not None:
            await _end(self._process, limit_s)
        if self._supervision is not None:
            await self._supervision
            self._supervision = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    # The process

    async def _spawn(self) -> Process:
        config = self._config
        for file in (config.output_file, config.log_file):
            _keep_short(file)
        self._log_start = _size(config.log_file)
        environment = {
            # ETCD_* variables are flags to etcd; whose, nobody knows.
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
        }
        with config.output_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                str(config.binary.path),
                *arguments(config, self.ports, self._flags),
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=config.directory,
                # A Ctrl-C at the terminal is for the node, which stops etcd when its own work is done.
                start_new_session=True,
            )
        self._on_event(ServerEvent(ServerEventKind.STARTED, process.pid))
        return process

    async def _supervise(self, process: Process) -> None:
        """Restarts it whenever it dies, until `stop()`."""
        pause_s = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            code = await self._live(process)
            if self._stopping.is_set():
                self._on_event(ServerEvent(ServerEventKind.STOPPED, process.pid, code))
                return
            if time.monotonic() - started > LIVED_S:
                pause_s = FIRST_PAUSE_S
                self._deaths_unready = 0
            self._note_death(process, code)
            if tells_removal(_tail(self._config.log_file, since=self._log_start)):
                self._is_removed = True
                self._hopeless.set()
                self._on_event(ServerEvent(ServerEventKind.REMOVED, process.pid, code))
                return
            again = await self._restart(pause_s)
            if again is None:
                return
            process = again
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _live(self, process: Process) -> int:
        """Until the process is dead: tells when it is ready, and answers with its exit code."""
        readiness = asyncio.create_task(self._watch_readiness(process), name="etcd readiness")
        try:
            return await process.wait()
        finally:
            self._ready.clear()
            self._answering.clear()
            readiness.cancel()
            await asyncio.wait({readiness})
            if not readiness.cancelled():
                readiness.result()  # whatever broke it breaks the supervision, and so shows

    async def _watch_readiness(self, process: Process) -> None:
        client = self._client
        if client is None:
            return
        pause_s = READY_POLL_S
        while True:
            # Only ever a question: an error says "not yet", and the supervision sees a death by itself.
            with contextlib.suppress(StoreError):
                if not self._answering.is_set():
                    await client.status(timeout_s=1.0)
                    self._note_answer(process)
                await client.range(Range(b"/", count_only=True), timeout_s=1.0)
                await self._announce_peer_url(client)
                break
            await asyncio.sleep(pause_s)
            if self._answering.is_set():  # it may stay so for long
                pause_s = min(pause_s * 1.2, ANSWERING_POLL_S)
        self._ready.set()
        self._on_event(ServerEvent(ServerEventKind.READY, process.pid))

    def _note_answer(self, process: Process) -> None:
        self._deaths_unready = 0
        self._hopeless.clear()
        self._has_answered = True
        self._answering.set()
        self._on_event(ServerEvent(ServerEventKind.ANSWERING, process.pid))

    async def _announce_peer_url(self, client: EtcdClient) -> None:
        """The peer port may have been taken by somebody else since the last run: the membership must say the new one.

        Only a cluster of one is changed here; among several, the membership duty knows whether that is safe.
        """
        members = await client.members()
        if len(members) == 1 and members[0].peer_urls != (self.peer_url,):
            await client.update_member(members[0].id, [self.peer_url])

    def _note_death(self, process: Process, code: int) -> None:
        self._deaths_unready += 1
        self._last_words = last_words(_tail(self._config.log_file), _tail(self._config.output_file))
        self._on_event(ServerEvent(ServerEventKind.DIED, process.pid, code, detail=self._last_words))
        if self._deaths_unready >= HOPELESS_DEATHS:
            self._hopeless.set()

    async def _restart(self, pause_s: float) -> Process | None:
        """After the pause; None when `stop()` came first. A start that fails (no memory, no file) is tried again."""
        while True:
            self._on_event(ServerEvent(ServerEventKind.RESTARTING, in_s=pause_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return None
            try:
                if not self._has_answered:
                    # Another node may have taken a port between its choice and etcd's bind.
                    await self._choose_ports()
                self._process = await self._spawn()
            except OSError as error:
                self._last_words = str(error)
                self._on_event(ServerEvent(ServerEventKind.DIED, detail=f"it cannot be started: {error}"))
                pause_s = LAST_PAUSE_S
                continue
            if self._stopping.is_set():
                await _end(self._process, STOP_LIMIT_S)
            return self._process

    def _complaint(self, what: str) -> str:
        words = f"; its last words: {self._last_words}" if self._last_words else ""
        return f"{what}{words}; its log is {self._config.log_file}"


async def _end(process: Process, limit_s: float) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the end.
        async with asyncio.timeout(limit_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _keep_short(file: Path) -> None:
    """Bounds a file that is appended to: over the limit it becomes FILE.old, in place of the one before."""
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > LOG_LIMIT_MIB << 20:
            file.replace(file.with_name(file.name + ".old"))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _tail(file: Path, size: int = 32_768, *, since: int = 0) -> str:
    """The last `size` bytes at most, nothing from before the offset `since` (of a file that may have begun anew).
    Nothing where it cannot be read: whoever restarts etcd is not to fail for want of its last words."""
    try:
        with file.open("rb") as read:
            end = file.stat().st_size
            read.seek(max(0, end - size, since if since <= end else 0))
            return read.read().decode(errors="replace")
    except OSError:
        return ""
