"""Runs what this incarnation has claimed: from the claim's answer to the accepted end.

One coroutine per run, owned by the runner's task group. Its states, in order:

    held      the claim is won, the sandbox is not started
    running   the command runs
    ending    every process is gone; the end is being written

A claim made ahead (`node/core/claim.py`) has no reservation yet: it waits until there is room for it, in the order of
the claims, each passed over by those after it that fit. One that has found no room within WAIT_MAX_S is given back,
since a peer may be idle; that uses up no attempt.

Whatever happens to a run, its end is written once, with the guards of its claim; where the outcome of that write is
unknown it is sent again until it is answered or the incarnation is over. A reservation is held until every process of
the sandbox is gone, not until the end is written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable

from etcd.errors import NoSpace, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.store import Claim, TaskStore
from isolation.client import Sandbox
from isolation.errors import NotLaunched, SandboxFailed, SpawnerDied
from node.core.errors import IllegalTransition
from node.core.model import Outcome, Reason, Task
from node.core.reconcile import Phase
from node.core.requirements import Ledger, reservation
from node.running.logs import LogStore
from node.running.outcomes import StopWhy, Verdict, of_end, of_setup_failure
from node.running.rates import Turnover
from node.running.run import Run
from node.running.sandbox_specs import RunContext, sandbox_spec, stdin_of
from node.running.supervised_spawner import SupervisedSpawner

__all__ = ["RunContext", "Runner"]

log = logging.getLogger(__name__)

#: One try to write an end; then it is sent again, for as long as the incarnation lives.
WRITE_TIMEOUT_S = 10.0
RETRY_DELAY_MAX_S = 2.0
#: After a failure that is the host's (disk full, no pids), nothing is claimed for this long, so that a broken node
#: does not pull tasks in only to give them back.
HOST_TROUBLE_PAUSE_S = 2.0
#: What was claimed ahead and has not started by then is given back: three times as long as it was predicted to take.
WAIT_MAX_S = 0.3


class Runner:
    """All runs of one incarnation, by task id. At most one run per task."""

    def __init__(
        self,
        store: TaskStore,
        spawner: SupervisedSpawner,
        logs: LogStore,
        context: RunContext,
        ledger: Ledger,
    ) -> None:
        self._store = store
        self._spawner = spawner
        self._logs = logs
        self._context = context
        #: Reservations: a run's is given back when none of its processes is left.
        self._ledger = ledger
        #: Called whenever capacity has become free.
        self.on_change: Callable[[], None] = lambda: None
        self._group: asyncio.TaskGroup | None = None
        self.runs: dict[str, Run] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()
        self._gone.set()
        #: Runs that wait for room, oldest claim first; all and only runs with `on_stop`.
        self._waiting: dict[str, Run] = {}
        self._wait_timer: asyncio.TimerHandle | None = None
        #: How fast the reservations of runs come free.
        self.turnover = Turnover()
        self._unstarted = 0
        self._alive = 0
        self.paused_until = 0.0
        #: The lease is gone: nothing is written any more (the guards would refuse it), only waited for.
        self.is_lost = False
        #: The node stops: what is adopted from now on is given back and not started.
        self.is_closing = False
        #: A run was cancelled while its processes may have lived.
        self._dropped = False

    async def run(self, stop: asyncio.Event) -> None:
        """Owns the runs until `stop` is set and the last one has ended; cancelled, it drops them all."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await stop.wait()
                await self._idle.wait()
            finally:
                # Cancelled runs end and make room: nothing may start in it.
                self._waiting.clear()
                self._set_wait_timer(None)

    def adopt(self, claim: Claim) -> Run:
        """Takes over a won claim and starts it, as soon as there is room where none is booked for it. The same claim
        twice is one run."""
        known = self.runs.get(claim.task.id)
        if known is not None and known.claim.fence_revision == claim.fence_revision:
            return known
        run = Run(claim)
        self.runs[claim.task.id] = run
        self._idle.clear()
        if claim.task.cancel_requested:
            run.ask_stop(StopWhy.CANCEL)
        elif self.is_closing:
            run.ask_stop(StopWhy.GIVE_BACK)
        if known is not None:
            # Our own give back was applied, and the task claimed here again, before its answer came.
            self._ledger.adopt(claim.task.id, claim.task.spec.requirements)
            self._start(run, known)
        elif run.stop_why is not None or self._has_room(run):
            self._start(run)
        else:
            self._wait_for_room(run)
        return run

    def give_back_all(self, which: Callable[[Task], bool], why: StopWhy = StopWhy.GIVE_BACK) -> None:
        """Asks every run that `which` picks to end and be given back, and every one that waits for room."""
        self.give_back_waiting()
        for run in list(self.runs.values()):
            if which(run.task):
                run.ask_stop(why)

    def give_back_waiting(self) -> None:
        """Asks what has not started for want of room to be given back: for a node that starts nothing any more."""
        for run in list(self._waiting.values()):
            run.ask_stop(StopWhy.GIVE_BACK)

    def start_waiting(self) -> None:
        """Starts what has room now. To be called when reservations have come free."""
        if not self._waiting or self.is_closing or self.is_lost:
            return
        for run in list(self._waiting.values()):
            if self._ledger.free.milli_cpu <= 0:
                return
            if self._has_room(run):
                self._leave_waiting(run)
                self._start(run)

    @property
    def unstarted(self) -> int:
        """Claims won whose sandbox is being started."""
        return self._unstarted

    @property
    def waiting(self) -> int:
        """Claims won that wait for room."""
        return len(self._waiting)

    @property
    def is_gone(self) -> bool:
        """No process of any run is left, and that is known."""
        return all(not run.holds_reservation for run in self.runs.values()) and not self._dropped

    async def wait_gone(self) -> None:
        """Returns when no process of any run is left."""
        await self._gone.wait()

    def kill_all(self) -> None:
        """No more grace."""
        for run in self.runs.values():
            if run.sandbox is not None:
                run.sandbox.kill()

    async def wait_idle(self) -> None:
        """Returns when nothing runs and every end is written."""
        await self._idle.wait()

    def _has_room(self, run: Run) -> bool:
        return self._ledger.take(run.task.id, run.task.spec.requirements)

    def _wait_for_room(self, run: Run) -> None:
        run.on_stop = self._stopped_waiting
        self._waiting[run.task.id] = run
        if self._wait_timer is None:
            self._set_wait_timer(run.since_s + WAIT_MAX_S)

    def _leave_waiting(self, run: Run) -> None:
        run.on_stop = None
        del self._waiting[run.task.id]

    def _stopped_waiting(self, run: Run) -> None:
        self._leave_waiting(run)
        self._start(run)

    def _set_wait_timer(self, at: float | None) -> None:
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        if at is not None:
            self._wait_timer = asyncio.get_running_loop().call_at(at, self._waited_too_long)

    def _waited_too_long(self) -> None:
        self._wait_timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.since_s + WAIT_MAX_S > now:
                self._set_wait_timer(oldest.since_s + WAIT_MAX_S)
                return
            oldest.ask_stop(StopWhy.GIVE_BACK)

    def _start(self, run: Run, earlier: Run | None = None) -> None:
        """Starts it or, where its end is asked for already, ends it."""
        if self._group is None:
            raise RuntimeError("the runner is not running")
        if run.task.id in self._ledger:
            run.holds_reservation = True
            self._alive += 1
            self._gone.clear()
        self._unstarted += 1
        self._group.create_task(self._run(run, earlier), name=f"run {run.task.id}")

    async def _run(self, run: Run, earlier: Run | None) -> None:
        if earlier is not None:
            await earlier.over.wait()
            # Booked anew: what the earlier one had was under the same id.
            self._ledger.adopt(run.task.id, run.task.spec.requirements)
        try:
            try:
                verdict, outcome = await self._attempt(run)
            except BaseException:
                self._dropped = True
                raise
            self._release(run)
            run.phase = Phase.ENDING
            await self._settle_log(run.task)
            if not self.is_lost:
                await self._write_end(run, verdict, outcome)
        finally:
            self._release(run)
            run.over.set()
            if self.runs.get(run.task.id) is run:
                del self.runs[run.task.id]
            if not self.runs:
                self._idle.set()

    def _release(self, run: Run) -> None:
        self._started(run)
        if not run.holds_reservation:
            return
        run.holds_reservation = False
        self._alive -= 1
        if self._alive == 0:
            self._gone.set()
        self._ledger.release(run.task.id)
        if run.sandbox is not None:
            self.turnover.add(reservation(run.task.spec.requirements), time.monotonic())
        self.start_waiting()
        self.on_change()

    def _started(self, run: Run) -> None:
        if run.phase is Phase.HELD:
            self._unstarted -= 1
            run.phase = Phase.RUNNING
            if self._ledger.free.milli_cpu > 0:
                self.on_change()  # the claim window has room again

    async def _attempt(self, run: Run) -> tuple[Verdict, Outcome]:
        """Runs the command; returns when no process of it is left."""
        instead = self._instead_of_running(run)
        if instead is not None:
            return instead
        try:
            sandbox = await self._launch(run)
            self._started(run)
            run.begin(sandbox)
            return of_end(await sandbox.wait(), run.stop_why)
        except SandboxFailed as failed:
            verdict, outcome = of_setup_failure(failed.report)
        except SpawnerDied as died:
            return await self._after_spawner_death(run, died)
        except OSError as error:
            detail = f"cannot open log files: {error}"
            verdict = Verdict.GIVE_BACK
            outcome = Outcome(Reason.GIVEN_BACK, step="logs", errno=error.errno, detail=detail)
        if verdict is Verdict.GIVE_BACK:
            self._pause(outcome.detail)
        return verdict, outcome

    def _instead_of_running(self, run: Run) -> tuple[Verdict, Outcome] | None:
        """Its end was asked for before it started, or this node does not allow it."""
        if run.stop_why is StopWhy.CANCEL:
            return Verdict.CANCEL, Outcome(Reason.CANCELED, detail="canceled before it ran")
        if run.stop_why is not None:
            return Verdict.GIVE_BACK, Outcome(Reason.GIVEN_BACK, detail="not started here")
        refused = self._context.admission.violations(run.task.spec)
        if refused:
            detail = "; ".join(f"{v.field}: {v.message}" for v in refused)
            return Verdict.FINISH, Outcome(Reason.SETUP_FAILED, step="admission", detail=f"admission: {detail}")
        return None

    async def _launch(self, run: Run) -> Sandbox:
        """Starts the sandbox. Raises SandboxFailed, SpawnerDied, and OSError where the log files cannot be made."""
        task = run.task
        opened = self._logs.open(task.id, task.attempt)
        stdin = stdin_of(task.spec.stdin)
        asked_at = time.time()
        try:
            return await self._spawner.launch(
                sandbox_spec(task, run.claim, self._context), stdin=stdin, stdout=opened.stdout, stderr=opened.stderr
            )
        except NotLaunched:
            raise
        except SpawnerDied:
            # The command may have run already, and nobody is left to tell. A claim that never started may always run
            # again; a task that may run only once must not: this counts as a start.
            run.started_at = asked_at
            raise
        finally:
            os.close(stdin)

    async def _after_spawner_death(self, run: Run, died: SpawnerDied) -> tuple[Verdict, Outcome]:
        """Gives back only once the next spawner has made sure that nothing of the sandbox is left."""
        await self._spawner.wait_clean()
        if run.stop_why is StopWhy.CANCEL:
            return Verdict.CANCEL, Outcome(Reason.CANCELED, detail="canceled; its spawner died first")
        return Verdict.GIVE_BACK, Outcome(Reason.GIVEN_BACK, detail=f"its spawner died: {died}")

    def _pause(self, why: str) -> None:
        self.paused_until = time.monotonic() + HOST_TROUBLE_PAUSE_S
        self.give_back_waiting()
        log.error("this host cannot start tasks now, claiming nothing for %.0f s: %s", HOST_TROUBLE_PAUSE_S, why)

    async def _settle_log(self, task: Task) -> None:
        try:
            await self._logs.settle(task.id, task.attempt)
        except OSError as error:
            # The outcome is worth more than the output.
            log.error("task=%s attempt=%d its log is lost: %s", task.id, task.attempt, error)  # noqa: TRY400  (told)

    async def _write_end(self, run: Run, verdict: Verdict, outcome: Outcome) -> None:
        writes = {
            Verdict.FINISH: self._store.finish,
            Verdict.CANCEL: self._store.confirm_cancel,
            Verdict.GIVE_BACK: self._store.give_back,
        }
        write, now = writes[verdict], time.time()

        async def once() -> Task | None:
            return await write(
                run.claim,
                outcome,
                started_at=run.started_at,
                now=now,
                timeout_s=WRITE_TIMEOUT_S,
                # Claims that wait for room tell a backlog: nothing here is idle for want of this write.
                is_patient=bool(self._waiting),
            )

        try:
            after = await self._until_answered(once, f"{verdict.value} of task {run.task.id}")
        except (StoreError, IllegalTransition) as error:
            # Refused for good: the record is damaged. That must not take the other runs down.
            log.error("task=%s its end cannot be written: %s", run.task.id, error)  # noqa: TRY400  (told)
            return
        log.info(
            "task=%s attempt=%d fence=%d %s: %s",
            run.task.id,
            run.task.attempt,
            run.claim.fence_revision,
            f"now {after.status.value}" if after else "refused, no longer mine",
            outcome.detail or outcome.reason.value,
        )

    async def _until_answered(self, once: Callable[[], Awaitable[Task | None]], what: str) -> Task | None:
        """Does `once` until etcd has answered it, since nothing else settles an unknown outcome, or the lease is lost
        (None): then the guards refuse it for good."""
        delay_s = 0.05
        while not self.is_lost:
            try:
                return await once()
            except (OutcomeUnknown, StoreUnavailable, NoSpace) as error:
                log.warning("%s is not settled yet, trying again: %s", what, error)
            # Jitter: the runs of a node must not all come back at the same moment.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))  # noqa: S311  (not for secrets)
            delay_s = min(delay_s * 2, RETRY_DELAY_MAX_S)
        return None
