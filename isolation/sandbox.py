"""One sandbox as the spawner knows it, from clone to the report of its end.

States: starting (the child runs its plan) -> running (the command was executed) -> gone (PID 1 was reaped, and with
it every process of the namespace). What PID 1 noted (`notes.py`) is read then: the end is told once, when
nothing runs any more.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass, field

from isolation import notes
from isolation.cgroup import Group, Stats
from isolation.errors import explain
from isolation.notes import Kind, Notice
from isolation.spec import Ended, SandboxSpec, SandboxUsage, SetupFailed, Started
from isolation.step import Step
from isolation.timers import Timer

TIMEOUT = "timeout"
STOP = "stop"
FENCE = "fence"
SCRATCH = "scratch"

_EXEC_WORDS = {
    errno.ENOENT: "no such command (or the interpreter that its first line names is missing)",
    errno.ENOEXEC: "not a program that this machine can run",
    errno.EACCES: "not executable for the user that tasks run as",
    errno.E2BIG: "arguments and environment are longer than the kernel takes",
}


@dataclass(slots=True)
class Sandbox:
    spec: SandboxSpec
    #: Number of the note that its PID 1 writes.
    note: int
    pid: int
    group: Group
    network_fd: int | None
    uid: int
    plan: list[Step]
    paths: list[bytes]
    #: Unix seconds; of the clone until the command was executed.
    started_at: float
    #: Why we end it; "" while we do not.
    asked_by: str = ""
    #: And what there is to say about it.
    asked_why: str = ""
    is_started: bool = False
    failure: Notice | None = None
    end: Notice | None = None
    #: Step and errno where we gave up on the start ourselves.
    given_up: tuple[str, int, str] | None = None
    timers: list[Timer] = field(default_factory=list)

    def read_note(self) -> float | None:
        """Takes over what its PID 1 has said so far; when the command was executed, None if it was not."""
        note = notes.read(self.note)
        if note.notice is not None:
            if note.notice.kind in (Kind.ENDED, Kind.FENCED):
                self.end = note.notice
            else:
                self.failure = note.notice
        return note.started_at

    def started(self) -> Started:
        return Started(self.spec.id, self.pid, self.started_at)

    def setup_failed(self) -> SetupFailed | None:
        """The report for a sandbox that is gone and whose command never ran; None if it did."""
        if self.is_started:
            return None
        if self.failure is None:
            step, number, detail = self.given_up or (
                "start",
                errno.EINTR,
                "PID 1 of the sandbox was killed while it was set up",
            )
            return SetupFailed(self.spec.id, step, number, "", detail)
        if self.failure.kind == Kind.EXEC_FAILED:
            return self._exec_failed(self.failure)
        step, subject = "reaper", ""
        if self.failure.a < len(self.plan):
            step, subject = self.plan[self.failure.a].name, self.plan[self.failure.a].subject
        return SetupFailed(self.spec.id, step, self.failure.b, subject, explain(self.failure.b, subject))

    def _exec_failed(self, notice: Notice) -> SetupFailed:
        command = self.spec.argv[0]
        tried = os.fsdecode(self.paths[min(notice.a, len(self.paths) - 1)])
        subject = command if notice.b == errno.ENOENT else tried
        words = _EXEC_WORDS.get(notice.b, "")
        return SetupFailed(self.spec.id, "exec", notice.b, subject, explain(notice.b, subject, words))

    def ended(self, wait_status: int, stats: Stats, now: float) -> Ended:
        """The report for a sandbox that is gone. `wait_status` is that of PID 1, which counts if it said nothing."""
        by_itself = self.end is not None and self.end.kind == Kind.ENDED
        if self.end is not None and by_itself:
            wait_status = self.end.a
        # PID 1 killed, or gone by the second fence, is a killed command, whatever PID 1's own exit code.
        code = os.WEXITSTATUS(wait_status) if by_itself and os.WIFEXITED(wait_status) else None
        number = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else signal.SIGKILL
        finished_at = self.end.at_s if self.end is not None else now
        ended_by = self._ended_by()
        return Ended(
            id=self.spec.id,
            exit_code=code,
            signal=None if code is not None else int(number),
            out_of_memory=stats.oom_kills > 0,
            ended_by=ended_by,
            started_at=self.started_at,
            finished_at=max(finished_at, self.started_at),
            detail=self.asked_why if ended_by == SCRATCH else "",
            usage=SandboxUsage(
                cpu_s=stats.cpu_s,
                memory_peak_bytes=stats.memory_peak_bytes,
                io_read_bytes=stats.io_read_bytes,
                io_write_bytes=stats.io_write_bytes,
                wall_s=max(0.0, finished_at - self.started_at),
            ),
        )

    def _ended_by(self) -> str:
        """A command that had ended before PID 1 passed our signal on has ended by itself."""
        if self.end is None:
            return self.asked_by
        if self.end.kind == Kind.FENCED:
            return FENCE
        return self.asked_by if self.end.b else ""
