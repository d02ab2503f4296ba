"""Keeps one spawner alive: starts it, starts it again when it dies or hangs, and hands on the fence deadline.

A spawner that is stopped or hangs is asked in vain (`node/core/silence.py`), and killed: while the lease lives, its
sandboxes would run on with nobody to enforce their limits of time, or to end them.

A new spawner kills and removes whatever the last one left, frozen sandboxes too, before it reports ready. So
`wait_clean()` is the moment at which what ran under a dead spawner is known to be gone, and may be given back.
"""

from __future__ import annotations

import asyncio
import logging
import threading

from isolation.client import Sandbox, Spawner, SpawnerConfig
from isolation.errors import HostLacks, NotLaunched, SpawnerDied
from isolation.spec import HostReport, SandboxSpec
from node.core.silence import TURN_S, TURNS, Silence

log = logging.getLogger(__name__)

#: Between the death of a spawner and the next start; doubled up to the maximum while starts fail.
RESTART_DELAY_S = 0.1
RESTART_DELAY_MAX_S = 5.0


class SupervisedSpawner:
    """The spawner of this node. Exactly one process at a time; `run` owns it."""

    def __init__(self, config: SpawnerConfig) -> None:
        self._config = config
        self._spawner: Spawner | None = None
        #: Of the newest one; outlives it.
        self._report: HostReport | None = None
        self._up = asyncio.Event()
        #: The newest fence deadline, for the next spawner; guarded: the session's thread writes it.
        self._deadline_s: float | None = None
        self._lock = threading.Lock()

    @property
    def report(self) -> HostReport:
        if self._report is None:
            raise SpawnerDied("the spawner was never started")
        return self._report

    @property
    def pid(self) -> int | None:
        return self._spawner.pid if self._spawner else None

    @property
    def _current(self) -> Spawner:
        if self._spawner is None:
            raise NotLaunched("the spawner is not running")
        return self._spawner

    async def start(self) -> None:
        """Starts the first one. Raises what `Spawner.start` raises: without it the node cannot run."""
        await self._start_one()

    async def run(self) -> None:
        """Starts a new spawner whenever the present one dies; ends when cancelled."""
        while True:
            dead = self._current
            reason = await self._wait_died(dead)
            self._up.clear()
            with self._lock:
                self._spawner = None
            log.error("spawner died: %s; its tasks died with it and are given back", reason)
            await self._restart()
            if not await dead.reap():
                log.error("spawner (pid %d) was killed, and the kernel does not let it go", dead.pid)

    async def _wait_died(self, spawner: Spawner) -> str:
        asking = asyncio.create_task(self._kill_when_silent(spawner), name="spawner: pings")
        try:
            return await spawner.wait_died()
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            if not asking.cancelled():
                asking.result()

    async def _kill_when_silent(self, spawner: Spawner) -> None:
        """Ends when it had to."""
        loop = asyncio.get_running_loop()
        silence = Silence(loop.time())
        while True:
            spawner.ping()
            await asyncio.sleep(TURN_S)
            if silence.is_silent(loop.time(), is_answered=spawner.is_answered):
                log.error("spawner (pid %d) does not answer for %.0f s: killing it", spawner.pid, TURNS * TURN_S)
                self._up.clear()  # at once: one that hangs in the kernel dies late, and nothing must be claimed for it
                spawner.kill()
                return

    async def _restart(self) -> None:
        delay_s = RESTART_DELAY_S
        while True:
            await asyncio.sleep(delay_s)
            try:
                await self._start_one()
            except Exception as error:
                # Whatever kept it from starting (memory, descriptors, a full pid table) may pass; until then the node
                # claims nothing, since `is_up` is false, and says why.
                log.error("spawner cannot be started, next try in %.1f s: %s", delay_s, error)  # noqa: TRY400  (expected)
                delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)
            else:
                log.info("spawner started again, pid %s", self.pid)
                return

    async def _start_one(self) -> None:
        # `on_died` is called before anybody who waits for a sandbox hears of the death.
        spawner = await Spawner.start(self._config, on_died=lambda _: self._up.clear())
        lost = set(self._report.limits).difference(spawner.report.limits) if self._report else None
        if lost:
            # The node's record promises them, and tasks that demand them were claimed on that promise.
            await spawner.close()
            raise HostLacks(f"limits on {', '.join(sorted(lost))} cannot be enforced here any more: restart the node")
        self._report = spawner.report
        with self._lock:
            self._spawner = spawner
            if self._deadline_s is not None:
                spawner.set_deadline(self._deadline_s)
        self._up.set()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def wait_clean(self) -> None:
        """Returns when a spawner runs and nothing of an earlier one is left."""
        await self._up.wait()

    async def launch(self, spec: SandboxSpec, *, stdin: int, stdout: int, stderr: int) -> Sandbox:
        return await self._current.launch(spec, stdin=stdin, stdout=stdout, stderr=stderr)

    def set_deadline(self, boottime_s: float) -> None:
        """Thread safe: called by the session's thread at each answered ping."""
        with self._lock:
            self._deadline_s = boottime_s
            if self._spawner is not None:
                self._spawner.set_deadline(boottime_s)

    def fence(self) -> None:
        """The lease is known lost: kills every sandbox. Their runs report that the fence ended them."""
        if self._spawner is not None:
            self._spawner.fence()

    def kill(self) -> None:
        """It does not do what it should: SIGKILL. Its sandboxes die with it, and `run` starts another."""
        if self._spawner is not None:
            log.error("spawner (pid %d) does not do what it should: killing it", self._spawner.pid)
            self._spawner.kill()

    async def close(self) -> None:
        if self._spawner is not None:
            await self._spawner.close()
            self._spawner = None
            self._up.clear()
