"""What tasks of the load do, what each of them must come to, and how often each is drawn. Pure but for the compiler.

A kind is judged by its record alone (`judge`): by what it did, and by what was asked of it (cancels). What its
processes did besides, the witness and the logs tell.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pilfer import Reason, Requirements, Status, Stream, Task, TaskSpec
from pilfer._convert import new_task_message
from pilfer.v1 import tasks_pb2
from tests.chaos.pattern import LINE_BYTES
from tests.support.beats import Witness, compile_program

_SOURCE = Path(__file__).with_name("acts.c")
_MIB = 1024 * 1024
#: Declared by every task: what is not declared is taken from what all tasks of a node share.
MEMORY_BYTES = 16 * _MIB
HOG_MEMORY_BYTES = 24 * _MIB
FORK_PIDS = 16
FORKS = 40
#: Of those that must live to see the end of the run, whatever hits them.
MANY_ATTEMPTS = 1000
PERIOD_MS = 20
#: What the nodes keep of one attempt's output (`load.FLAGS`).
LOG_LIMIT_BYTES = 2 * _MIB
#: An act that found no room to write ends so.
NO_ROOM = 28
#: An attempt ends so by no doing of its own.
LOST = frozenset({Reason.NODE_LOST, Reason.GIVEN_BACK, Reason.FENCED, Reason.SETUP_FAILED})


@dataclass(frozen=True, slots=True)
class Act:
    """One task of the load."""

    kind: str
    spec: TaskSpec
    #: How it ends where nothing comes in between.
    reason: Reason = Reason.EXITED
    exit_code: int | None = 0
    #: Of the pattern, by stream; empty: it writes nothing that could be judged.
    written: tuple[tuple[Stream, int], ...] = ()
    #: What it reserves; of those that beat the witness adds it up.
    cpu: float = 1.0
    beats: bool = False
    #: So often it may begin to run at most.
    runs_max: int = MANY_ATTEMPTS
    #: How long it takes if nothing comes in between.
    lasts_s: float = 0.0

    @property
    def sizes(self) -> dict[Stream, int]:
        return dict(self.written)


def message_of(task_id: str, act: Act) -> tasks_pb2.NewTask:
    """With its id: what is sent twice is the same twice."""
    return new_task_message(act.spec, task_id)


class Acts:
    """Draws acts. The program lies in the directory that the witness shares with all tasks."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self.program = witness.directory / "acts"
        self._kinds: dict[str, tuple[int, Callable[[random.Random, str], Act]]] = {
            "short": (38, lambda rng, kind: self._beat(kind, rng, rng.choice((0.05, 0.3, 1.0)))),
            "middle": (14, lambda rng, kind: self._beat(kind, rng, 4.0)),
            "long": (4, lambda rng, kind: self._beat(kind, rng, rng.uniform(10.0, 40.0))),
            "once": (6, lambda rng, kind: self._beat(kind, rng, rng.uniform(1.0, 5.0), restart_on_node_loss=False)),
            "twice": (5, lambda rng, kind: self._beat(kind, rng, rng.uniform(1.0, 5.0), max_attempts=2)),
            "exit": (8, lambda rng, kind: self._write(kind, 1, rng.randrange(2), exit_code=rng.randrange(8))),
            "big": (4, self._big),
            "chatty": (5, self.chatty),
            "hog": (3, self._hog),
            "fork": (4, self._fork),
            "overtime": (3, self._overtime),
        }

    def build(self) -> None:
        """Compiles the program; once."""
        compile_program(_SOURCE, self.program)

    def draw(self, rng: random.Random) -> Act:
        weights = [weight for weight, _ in self._kinds.values()]
        (kind,) = rng.choices(list(self._kinds), weights)
        return self._kinds[kind][1](rng, kind)

    def chatty(self, rng: random.Random, kind: str = "chatty") -> Act:
        """Writes slowly, to both streams: something to follow."""
        steps, pause_ms = rng.randrange(20, 60), rng.choice((50, 100))
        return self._write(kind, 5 * steps, 3 * steps, step=5, pause_ms=pause_ms, lasts_s=steps * pause_ms / 1000)

    # Kinds

    def _beat(
        self,
        kind: str,
        rng: random.Random,
        duration_s: float,
        *,
        restart_on_node_loss: bool = True,
        max_attempts: int = MANY_ATTEMPTS,
    ) -> Act:
        code, cpu = rng.choice((0, 0, 0, 7)), rng.choice((0.5, 1.0, 1.0, 2.0))
        beating = self._witness.task(duration_s, period_ms=PERIOD_MS, exit_code=code)
        spec = TaskSpec(
            beating.command, beating.args, name=kind, requirements=Requirements(cpu=cpu, memory_bytes=MEMORY_BYTES),
            restart_on_node_loss=restart_on_node_loss, max_attempts=max_attempts,
        )  # fmt: skip
        runs_max = max_attempts if restart_on_node_loss else 1
        return Act(kind, spec, exit_code=code, cpu=cpu, beats=True, runs_max=runs_max, lasts_s=duration_s)

    def _act(
        self, kind: str, *args: object, cpu: float = 0.5, memory_bytes: int = MEMORY_BYTES, **more: object
    ) -> TaskSpec:
        return TaskSpec.of(
            self.program, *map(str, args), name=kind, cpu=cpu, memory_bytes=memory_bytes, max_attempts=MANY_ATTEMPTS,
            **more,  # type: ignore[arg-type]  # options of TaskSpec.of, by name
        )  # fmt: skip

    def _write(
        self, kind: str, out: int, err: int, *, step: int = 1024, pause_ms: int = 0, exit_code: int = 0,
        lasts_s: float = 0.0,
    ) -> Act:  # fmt: skip
        spec = self._act(kind, "write", out, err, step, pause_ms * 1000, exit_code)
        written = ((Stream.STDOUT, out * LINE_BYTES), (Stream.STDERR, err * LINE_BYTES))
        return Act(kind, spec, exit_code=exit_code, written=written, cpu=0.5, lasts_s=lasts_s)

    def _big(self, rng: random.Random, kind: str) -> Act:
        """Some MiB: below the limit, and above."""
        lines = _MIB // LINE_BYTES
        return self._write(kind, rng.randrange(lines // 2, 4 * lines), rng.choice((0, 10, lines)))

    def _hog(self, rng: random.Random, kind: str) -> Act:
        spec = self._act(kind, "hog", 3 * HOG_MEMORY_BYTES // _MIB, memory_bytes=HOG_MEMORY_BYTES)
        return Act(kind, spec, reason=Reason.OUT_OF_MEMORY, exit_code=None, cpu=0.5)

    def _fork(self, rng: random.Random, kind: str) -> Act:
        spec = self._act(kind, "fork", FORKS, FORK_PIDS, rng.choice((100, 1500)), pids=FORK_PIDS)
        return Act(kind, spec, cpu=0.5)

    def _overtime(self, rng: random.Random, kind: str) -> Act:
        spec = self._act(kind, "write", 600, 0, 1, 50_000, 0, timeout_s=1.0)
        # How much of it comes depends on when the time is up.
        return Act(kind, spec, reason=Reason.TIMED_OUT, exit_code=None, written=((Stream.STDOUT, 600 * LINE_BYTES),))


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a task beside its submit."""

    #: A cancel was sent, answered or not.
    cancel_sent: bool = False
    #: The answer was that it was canceled in the queue: then it never runs.
    canceled_in_queue: bool = False


NOTHING_ASKED = Asked()


def judge(act: Act, task: Task, asked: Asked, *, disk_was_full: bool) -> str | None:
    """What is wrong with the end of a task, by its terminal record; None: nothing. SubmittedIsEnded."""
    why = _wrong(act, task, asked, disk_was_full=disk_was_full)
    if why is None:
        return None
    detail = task.outcome.detail if task.outcome else ""
    return (
        f"{act.kind} task {task.id} ended as {task.status}, {task.reason}, exit code {task.exit_code}, signal "
        f"{task.signal}, {task.attempt} attempts ({detail}): {why}"
    )


def _wrong(act: Act, task: Task, asked: Asked, *, disk_was_full: bool) -> str | None:
    if not task.status.is_terminal:
        return "that is no end"
    if task.attempts_used > act.runs_max:
        return f"it may use {act.runs_max} attempts, and used {task.attempts_used}"
    if task.status is Status.CANCELED:
        return None if asked.cancel_sent else "nobody asked for that"
    if asked.canceled_in_queue:
        return "it was canceled while it was queued"
    if task.status is Status.FAILED:
        may_be_lost = task.attempts_used >= act.runs_max
        return None if may_be_lost and task.reason in LOST else "it should have been run again"
    no_room = disk_was_full and task.exit_code == NO_ROOM and bool(act.written)
    is_right = task.reason is act.reason and (act.exit_code is None or task.exit_code == act.exit_code)
    return None if is_right or no_room else f"it should have ended as {act.reason}, exit code {act.exit_code}"
