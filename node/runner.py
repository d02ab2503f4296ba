"""Runs what this incarnation has claimed: from the claim's answer to the accepted end.

One coroutine per run, owned by the runner's task group. Its states, in order:

    held      the claim is won, the sandbox is not started
    running   the command runs
    ending    every process is gone; the end is being written

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
from dataclasses import dataclass

from etcd.errors import NoSpace, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.store import Claim, TaskStore
from isolation.client import Sandbox
from isolation.errors import SandboxFailed, SpawnerDied
from isolation.spec import SCRATCH_DIR, BindMount, Limits, SandboxSpec
from node.admission import Admission
from node.core.errors import IllegalTransition
from node.core.model import Network, Outcome, Reason, Task
from node.core.reconcile import Phase
from node.core.requirements import Ledger
from node.logs import LogStore
from node.outcomes import StopWhy, Verdict, of_end, of_setup_failure
from node.supervised_spawner import SupervisedSpawner

log = logging.getLogger(__name__)

#: One try to write an end; then it is sent again, for as long as the incarnation lives.
WRITE_TIMEOUT_S = 10.0
RETRY_DELAY_MAX_S = 2.0
#: After a failure that is the host's (disk full, no pids), nothing is claimed for this long, so that a broken node
#: does not pull tasks in only to give them back.
HOST_TROUBLE_PAUSE_S = 2.0

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Run:
    """One claim and what became of it."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.phase = Phase.HELD
        self._stop_why: StopWhy | None = None
        self.sandbox: Sandbox | None = None
        self.started_at: float | None = None
        #: Version of the running key at which the record was last looked at for a cancel request.
        self.version_checked = 1
        #: Until every process of the sandbox is gone.
        self.holds_reservation = True
        #: Its end is written, or refused.
        self.over = asyncio.Event()

    @property
    def task(self) -> Task:
        return self.claim.task

    @property
    def stop_why(self) -> StopWhy | None:
        """Why its end was asked for; changes between awaits."""
        return self._stop_why

    @property
    def grace_s(self) -> float:
        return self.task.spec.grace_s

    def begin(self, sandbox: Sandbox) -> None:
        """The command runs; its end may have been asked for while the sandbox was being made."""
        self.sandbox = sandbox
        self.started_at = sandbox.started.started_at
        if self._stop_why is not None:
            sandbox.stop(self.grace_s)

    def ask_stop(self, why: StopWhy) -> None:
        """Ends the command now or, where it has not started, instead of starting it. A cancel outranks a give back."""
        if self._stop_why is StopWhy.CANCEL or self.phase is Phase.ENDING:
            return
        first = self._stop_why is None
        self._stop_why = why
        if self.sandbox is not None and first:
            self.sandbox.stop(self.grace_s)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every task of this node gets from it."""

    host_id: str
    cluster_epoch: int
    #: Bound of tasks that ask for no memory limit of their own.
    node_memory_bytes: int
    admission: Admission


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
            await stop.wait()
            await self._idle.wait()

    def adopt(self, claim: Claim) -> Run:
        """Takes over a won claim and starts it. The same claim twice is one run."""
        known = self.runs.get(claim.task.id)
        if known is not None and known.claim.fence_revision == claim.fence_revision:
            return known
        if self._group is None:
            raise RuntimeError("the runner is not running")
        run = Run(claim)
        self.runs[claim.task.id] = run
        self._ledger.adopt(claim.task.id, claim.task.spec.requirements)
        self._idle.clear()
        self._gone.clear()
        self._unstarted += 1
        self._alive += 1
        if claim.task.cancel_requested:
            run.ask_stop(StopWhy.CANCEL)
        elif self.is_closing:
            run.ask_stop(StopWhy.GIVE_BACK)
        self._group.create_task(self._run(run, known), name=f"run {claim.task.id}")
        return run

    def give_back_all(self, which: Callable[[Task], bool]) -> None:
        """Asks every run that `which` picks to end and be given back."""
        for run in list(self.runs.values()):
            if which(run.task):
                run.ask_stop(StopWhy.GIVE_BACK)

    @property
    def unstarted(self) -> int:
        """Claims won whose sandbox is not started yet."""
        return self._unstarted

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

    async def _run(self, run: Run, earlier: Run | None) -> None:
        if earlier is not None:
            # Our own give back was applied, and the task claimed here again, before its answer came.
            await earlier.over.wait()
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
        if run.holds_reservation:
            run.holds_reservation = False
            self._started(run)
            self._alive -= 1
            if self._alive == 0:
                self._gone.set()
            self._ledger.release(run.task.id)
            self.on_change()

    def _started(self, run: Run) -> None:
        if run.phase is Phase.HELD:
            self._unstarted -= 1
            run.phase = Phase.RUNNING
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
        if run.stop_why is StopWhy.GIVE_BACK:
            return Verdict.GIVE_BACK, Outcome(Reason.GIVEN_BACK, detail="its node was stopped before it ran")
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
        try:
            return await self._spawner.launch(
                sandbox_spec(task, run.claim, self._context), stdin=stdin, stdout=opened.stdout, stderr=opened.stderr
            )
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
            return await write(run.claim, outcome, started_at=run.started_at, now=now, timeout_s=WRITE_TIMEOUT_S)

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


def stdin_of(data: bytes) -> int:
    """A descriptor to read `data` from; /dev/null where there is none."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        # A descriptor of its own for reading: the task cannot write to what is its input.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def fence_token(cluster_epoch: int, fence_revision: int) -> int:
    """One number that only grows over the life of a cluster, restores included (a restore raises the epoch).

    A revision has 48 bits here: at 10,000 writes a second that is 890 years.
    """
    return (cluster_epoch << 48) + fence_revision


def sandbox_spec(task: Task, claim: Claim, context: RunContext) -> SandboxSpec:
    spec, needs = task.spec, task.spec.requirements
    env = {
        "PATH": DEFAULT_PATH,
        "HOME": SCRATCH_DIR,
        **spec.env,
        "PILFER_TASK_ID": task.id,
        "PILFER_ATTEMPT": str(task.attempt),
        "PILFER_FENCE": str(fence_token(context.cluster_epoch, claim.fence_revision)),
        "PILFER_NODE_ID": claim.identity.node_id,
    }
    return SandboxSpec(
        id=f"{task.id}.{task.attempt}",
        argv=(spec.command, *spec.args),
        env=env,
        limits=Limits(
            cpu=needs.cpu,
            memory_bytes=needs.memory_bytes if needs.memory_bytes is not None else context.node_memory_bytes,
            pids=needs.pids,
            io_read_bytes_per_s=needs.io_read_bytes_per_s,
            io_write_bytes_per_s=needs.io_write_bytes_per_s,
        ),
        cwd=spec.cwd,
        mounts=tuple(BindMount(m.source, m.target, read_only=m.read_only) for m in spec.mounts),
        host_network=spec.network is Network.HOST,
        timeout_s=spec.timeout_s,
        grace_s=spec.grace_s,
    )
