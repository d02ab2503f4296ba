"""The witness: proves, from outside, that no two runs of one task ever lived in the same interval.

Every task under test runs a small program (`beat.c`) that sends a datagram every few milliseconds for as long as it
lives. One witness process, which no fault of a test touches, gets them all through one unix socket in a directory that
the nodes share with their tasks; no network of a node is on that way.

Theory. One socket is one queue: the order of arrival is the order in which the sends happened, whatever the load, and
the witness stamps each beat with one clock as it leaves the queue. A run is one process: it is known by the moment of
its start, which each of its beats carries. Its interval goes from its first to its last beat. Two runs of one task
overlap exactly when their intervals share a moment; since the stamps of one queue strictly ascend, the tolerance may
be zero. What this cannot see is shorter than the period of the beats: a run goes on for up to one period after its last
beat. The sender's own clock (the same clock: one machine) must agree, and is what latencies are measured by.

It also sees what no record tells: that an older attempt began after a newer one, and how much ran on a node at once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from node.core.log_cap import Span
from node.running.log_watch import ALIGN_BYTES, punch
from pilfer import TaskSpec
from tests.support.wait import wait_until_sync

_SOURCE = Path(__file__).with_name("beat.c")
#: Between the beats of one task. Ten tasks at once are then a thousand datagrams a second.
PERIOD_MS = 10
#: Sums of floats.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Beat:
    """One sign of life. Times are seconds of CLOCK_MONOTONIC."""

    task_id: str
    attempt: int
    fence: int
    node_id: str
    #: When the process that sent it had started: one run is one process.
    started_at: float
    sent_at: float
    arrived_at: float
    #: The run ended by itself with this beat.
    is_last: bool = False


@dataclass(slots=True)
class Run:
    """One process of one task, from its first beat to its last."""

    task_id: str
    attempt: int
    fence: int
    node_id: str
    started_at: float
    first_arrival: float
    last_arrival: float
    first_sent: float
    last_sent: float
    beats: int = 1
    #: It ended by itself.
    has_ended: bool = False
    #: The longest silence between two beats: a freeze, for one.
    longest_silence_s: float = 0.0

    def __str__(self) -> str:
        return (
            f"attempt {self.attempt} (fence {self.fence}, node {self.node_id[:8]}) "
            f"beat from {self.first_arrival:.4f} to {self.last_arrival:.4f}"
        )


@dataclass(slots=True)
class Runs:
    """All runs that were witnessed, grown beat by beat."""

    by_task: dict[str, dict[float, Run]] = field(default_factory=dict)
    beats: int = 0

    def add(self, beat: Beat) -> None:
        """Beats come in the order of their arrival."""
        self.beats += 1
        runs = self.by_task.setdefault(beat.task_id, {})
        run = runs.get(beat.started_at)
        if run is None:
            runs[beat.started_at] = Run(
                beat.task_id, beat.attempt, beat.fence, beat.node_id, beat.started_at,
                beat.arrived_at, beat.arrived_at, beat.sent_at, beat.sent_at, has_ended=beat.is_last,
            )  # fmt: skip
            return
        run.longest_silence_s = max(run.longest_silence_s, beat.sent_at - run.last_sent)
        run.last_arrival, run.last_sent = beat.arrived_at, beat.sent_at
        run.beats += 1
        run.has_ended |= beat.is_last

    @property
    def node_ids(self) -> set[str]:
        """Every node that ran something."""
        return {run.node_id for by_start in self.by_task.values() for run in by_start.values()}

    def of(self, task_id: str) -> list[Run]:
        """The runs of one task, in the order of their first beats."""
        return sorted(self.by_task.get(task_id, {}).values(), key=lambda run: run.first_arrival)


def overlaps(runs: Runs, *, tolerance_s: float = 0.0) -> list[str]:
    """Each pair of runs of one task whose intervals share more than tolerance_s, in words."""
    found: list[str] = []
    for task_id in runs.by_task:
        ordered = runs.of(task_id)
        # The one that reached furthest so far is what a later one may run into, not only its neighbour.
        for number, later in enumerate(ordered):
            for earlier in ordered[:number]:
                shared = min(earlier.last_arrival, later.last_arrival) - later.first_arrival
                sent = min(earlier.last_sent, later.last_sent) - later.first_sent
                if max(shared, sent) >= 0 and max(shared, sent) >= tolerance_s:
                    found.append(f"task {task_id}: {earlier}, and {later}: {max(shared, sent) * 1000:.2f} ms together")
    return found


def setbacks(runs: Runs, epochs: Sequence[float] = ()) -> list[str]:
    """Each run that began after one of a higher attempt or fence of the same task, in words. epochs: moments, at which
    no etcd ran, when an operator went back to older data: attempts may be counted anew there, fence tokens never."""
    found: list[str] = []
    for task_id in runs.by_task:
        ordered = runs.of(task_id)
        for earlier, later in itertools.pairwise(ordered):
            is_counted_anew = any(earlier.first_sent <= epoch <= later.first_sent for epoch in epochs)
            if (later.attempt <= earlier.attempt and not is_counted_anew) or later.fence <= earlier.fence:
                found.append(f"task {task_id}: {later} began after {earlier}")
    return found


def excesses(runs: Runs, most: Mapping[str, float], weights: Mapping[str, float] = MappingProxyType({})) -> list[str]:
    """Each node that at some moment ran more at once than `most` says (by node id), in words. weights: what one run of
    a task counts, by its id; 1 where nothing is said."""
    events: dict[str, list[tuple[float, float]]] = {}
    for task_id, by_start in runs.by_task.items():
        weight = weights.get(task_id, 1)
        for run in by_start.values():
            # An end sorts before a start of the same moment.
            events.setdefault(run.node_id, []).extend([(run.first_sent, weight), (run.last_sent, -weight)])
    found: list[str] = []
    for node_id, changes in events.items():
        now = top = 0.0
        for _, change in sorted(changes):
            now += change
            top = max(top, now)
        if node_id in most and top > most[node_id] + _ROUNDING:
            found.append(f"node {node_id} ran {top:g} at once, with room for {most[node_id]:g}")
    return found


def parse(line: str) -> Beat:
    """One line of the witness's file."""
    arrived, sent, started, kind, attempt, fence, task_id, node_id = line.split(" ")
    return Beat(
        task_id=task_id,
        attempt=int(attempt),
        fence=int(fence),
        node_id=node_id,
        started_at=int(started) / 1e9,
        sent_at=int(sent) / 1e9,
        arrived_at=int(arrived) / 1e9,
        is_last=kind == "e",
    )


def compile_program(source: Path, program: Path) -> None:
    """A C program of one file, for tasks to run. Raises RuntimeError where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("no C compiler for the program of the tasks (as setup needs for the sandbox)")
    subprocess.run([compiler, "-std=gnu11", "-O2", "-o", program, source], check=True)


class Witness:
    """Runs the witness process and reads what it writes. A context manager; `directory` is to be shared with tasks
    (`--share DIR:rw`), for the program and the socket lie there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "beat"
        self.socket = directory / "witness.sock"
        self.runs = Runs()
        #: Outside of the shared directory: no task can write to it.
        self._file = directory.parent / f"{directory.name}.beats"
        self._process: subprocess.Popen[str] | None = None
        self._read_to = 0
        self._forgotten_to = 0
        self._looking = threading.Lock()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        # Tasks run as users of their own.
        self.directory.chmod(0o755)
        compile_program(_SOURCE, self.program)
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", self.program, "witness", self.socket, self._file],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the witness ended with {self._process.wait()}; it needs root")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def task(
        self,
        duration_s: float,
        *,
        period_ms: float = PERIOD_MS,
        exit_code: int = 0,
        cpu: float | None = None,
        name: str = "",
        max_attempts: int | None = None,
    ) -> TaskSpec:
        """A task that beats for so long in each attempt, and then ends."""
        return TaskSpec.of(
            self.program, "task", self.socket, str(int(period_ms * 1000)), str(int(duration_s * 1000)), str(exit_code),
            cpu=cpu, name=name, max_attempts=max_attempts,
        )  # fmt: skip

    def look(self) -> Runs:
        """Everything witnessed so far."""
        with self._looking:
            with self._file.open("rb") as file:
                file.seek(self._read_to)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for line in whole.decode().splitlines():
                self.runs.add(parse(line))
            return self.runs

    def forget(self, keep_bytes: int) -> None:
        """Of the beats on the disk the newest are enough from now on; the runs stay known."""
        with self._looking:
            end = max(0, self._read_to - keep_bytes)
            end -= end % ALIGN_BYTES
            if end > self._forgotten_to:
                fd = os.open(self._file, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    punch(fd, Span(self._forgotten_to, end))
                finally:
                    os.close(fd)
                self._forgotten_to = end

    @property
    def file(self) -> Path:
        """The beats, one a line; what was forgotten is a hole at the beginning."""
        return self._file

    def wait_run(self, task_id: str, number: int, timeout_s: float = 20.0) -> Run:
        """The number-th run of a task, once its first beat has been heard. (Attempts may have higher numbers: a claim
        that was given back before it started is one too.)"""
        wait_until_sync(
            lambda: len(self.look().of(task_id)) >= number,
            timeout_s,
            what=f"run {number} of task {task_id} beats; heard: {[str(run) for run in self.runs.of(task_id)]}",
            every_s=0.005,
        )
        return self.runs.of(task_id)[number - 1]

    def wait_runs(self, task_ids: Iterable[str], number: int, timeout_s: float = 20.0) -> list[Run]:
        """The same for several tasks, in their order."""
        return [self.wait_run(task_id, number, timeout_s) for task_id in task_ids]

    def wait_beat_after(self, task_id: str, moment: float, timeout_s: float = 20.0) -> None:
        """Returns when some run of the task beats after this moment of the witness's clock."""
        wait_until_sync(
            lambda: any(run.last_sent > moment for run in self.look().of(task_id)),
            timeout_s,
            what=f"task {task_id} beats; heard: {[str(run) for run in self.runs.of(task_id)]}",
        )

    def flaws(self) -> list[str]:
        """What must never be, in everything witnessed so far: overlapping runs, and attempts out of order."""
        runs = self.look()
        return overlaps(runs) + setbacks(runs)
