"""What the end of a sandbox means for its task: pure translation, one place.

A task is complete when its command ran and ended, whatever its exit code; failed when Pilfer could not run it at all;
given back when the end says something about the node and nothing about the command.
"""

from __future__ import annotations

import errno
import signal
from enum import Enum

from isolation.spec import Ended, SandboxUsage, SetupFailed
from node.core.model import Outcome, Reason, Usage

#: errnos of a set-up step that say "not now" about the host, not "never" about the task: another try may succeed.
#: (clone(2), open(2), mkdir(2); ENOSPC is a full disk or a full pid or cgroup table.)
TRANSIENT_ERRNOS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EINTR})

#: Steps about the spawner itself rather than about the task.
TRANSIENT_STEPS = frozenset({"fence", "closing"})


class StopWhy(Enum):
    """Why the node asked the spawner to end a sandbox."""

    CANCEL = "cancel"
    GIVE_BACK = "give_back"
    #: As GIVE_BACK, since the node is drained and not stopped: people ask why.
    DRAIN = "drain"


class Verdict(Enum):
    """Which transition an end asks for."""

    FINISH = "finish"
    CANCEL = "cancel"
    GIVE_BACK = "give_back"


def of_end(ended: Ended, why: StopWhy | None) -> tuple[Verdict, Outcome]:
    """The transition and the outcome for a command that ran.

    `why` is what the node had asked for, if anything; a command that ended before the signal was sent
    (`ended_by` is not "stop") has ended by itself and is complete.
    """
    verdict = Verdict.FINISH
    if ended.ended_by == "fence":
        verdict, reason = Verdict.GIVE_BACK, Reason.FENCED
        detail = "killed because its node had lost touch with the cluster"
    elif ended.ended_by == "stop" and why is StopWhy.CANCEL:
        verdict, reason, detail = Verdict.CANCEL, Reason.CANCELED, "canceled while it ran"
    elif ended.ended_by == "stop":
        verdict, reason = Verdict.GIVE_BACK, Reason.GIVEN_BACK
        detail = "its node was drained" if why is StopWhy.DRAIN else "its node was stopped"
    elif ended.ended_by == "timeout":
        reason, detail = Reason.TIMED_OUT, "ran longer than its timeout"
    elif ended.ended_by == "scratch":
        reason, detail = Reason.OUT_OF_SCRATCH, ended.detail or "its scratch directory held more than it may"
    elif ended.out_of_memory and ended.exit_code != 0:
        # A command that recovered from the loss of a child and exited with 0 did what it was asked for.
        reason, detail = Reason.OUT_OF_MEMORY, "a process was killed at the task's memory limit"
    elif ended.signal is not None:
        reason, detail = Reason.SIGNALED, f"killed by {_signal_name(ended.signal)}"
    else:
        reason, detail = Reason.EXITED, ""
    usage = usage_of(ended.usage)
    return verdict, Outcome(reason, exit_code=ended.exit_code, signal=ended.signal, detail=detail, usage=usage)


def of_setup_failure(report: SetupFailed) -> tuple[Verdict, Outcome]:
    """The transition and the outcome for a command that never ran."""
    if report.step in TRANSIENT_STEPS or report.errno in TRANSIENT_ERRNOS:
        return Verdict.GIVE_BACK, Outcome(
            Reason.GIVEN_BACK, step=report.step, errno=report.errno, detail=f"{report.step}: {report.detail}"
        )
    return Verdict.FINISH, Outcome(
        Reason.SETUP_FAILED, step=report.step, errno=report.errno, detail=f"{report.step}: {report.detail}"
    )


def usage_of(usage: SandboxUsage) -> Usage:
    return Usage(
        cpu_s=usage.cpu_s,
        memory_peak_bytes=usage.memory_peak_bytes,
        io_read_bytes=usage.io_read_bytes,
        io_write_bytes=usage.io_write_bytes,
        wall_s=usage.wall_s,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
