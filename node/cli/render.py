"""Tasks as JSON and as words. Pure: values in, plain data out; no clock, no terminal.

The JSON of a task is a contract with scripts, and the same in `status`, `list`, `wait` and `submit --wait`: times are
RFC 3339 in UTC, durations seconds, sizes bytes, absent is null.
"""

from __future__ import annotations

import errno
import shlex
import signal
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TypeAlias

from node.cli.node_names import NodeNames
from node.cli.tables import Column
from node.units import format_duration, format_size
from pilfer.types import Attempt, CancelResult, Outcome, Reason, Status, Task, Usage

Json: TypeAlias = dict[str, object]


def rfc3339(time: datetime | None) -> str | None:
    """`2026-01-31T12:00:00.123456Z`, or None."""
    return None if time is None else time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def reason_words(outcome: Outcome | None) -> str | None:
    """exited, signaled, timed_out, out_of_memory, ...; where it could not be set up, what failed, in words."""
    if outcome is None or outcome.reason is None:
        return None
    if outcome.reason is Reason.SETUP_FAILED:
        return outcome.detail or (f"{outcome.step} failed" if outcome.step else str(outcome.reason))
    return str(outcome.reason)


def task_json(task: Task) -> Json:
    spec = task.spec
    return {
        "id": task.id,
        "name": spec.name,
        "labels": dict(spec.labels),
        "command": spec.command,
        "args": list(spec.args),
        "status": str(task.status),
        **_outcome_json(task.outcome),
        "attempt": task.attempt,
        "attempts_used": task.attempts_used,
        "cancel_requested": task.cancel_requested,
        "node_id": task.node_id,
        "host_id": task.newest_attempt.host_id if task.newest_attempt else None,
        "submitted_at": rfc3339(task.submitted_at),
        "started_at": rfc3339(task.started_at),
        "finished_at": rfc3339(task.finished_at),
        "attempts": [_attempt_json(attempt) for attempt in task.attempts],
        "env": dict(spec.env),
        "cwd": spec.cwd,
        "requirements": asdict(spec.requirements),
        "timeout_s": spec.timeout_s,
        "grace_s": spec.grace_s,
        "restart_on_node_loss": spec.restart_on_node_loss,
        "max_attempts": spec.max_attempts,
        "network": None if spec.network is None else str(spec.network),
        "mounts": [asdict(mount) for mount in spec.mounts],
    }


def _outcome_json(outcome: Outcome | None) -> Json:
    return {
        "exit_code": outcome.exit_code if outcome else None,
        "signal": outcome.signal if outcome else None,
        "reason": reason_words(outcome),
        "step": (outcome.step or None) if outcome else None,
        "errno": outcome.errno if outcome else None,
        "detail": (outcome.detail or None) if outcome else None,
        "usage": asdict(outcome.usage) if outcome and outcome.usage else None,
    }


def _attempt_json(attempt: Attempt) -> Json:
    return {
        "number": attempt.number,
        "node_id": attempt.node_id,
        "host_id": attempt.host_id,
        "claimed_at": rfc3339(attempt.claimed_at),
        "started_at": rfc3339(attempt.started_at),
        "finished_at": rfc3339(attempt.finished_at),
        **_outcome_json(attempt.outcome),
    }


def cancel_json(result: CancelResult) -> Json:
    return {
        "id": result.id,
        "step": str(result.step),
        "status": None if result.status is None else str(result.status),
    }


def printable(text: str) -> str:
    """Text from a task, safe for a terminal: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def command_line(task: Task) -> str:
    return printable(shlex.join([task.spec.command, *task.spec.args]))


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal, which has no name of its own


def how(task: Task) -> str:
    """In a few words, how it ended; empty while it has not."""
    outcome = task.outcome
    if not task.status.is_terminal or outcome is None:
        return "cancel requested" if task.cancel_requested and task.status is Status.RUNNING else ""
    # Beside the status: not "canceled: canceled".
    return "on request" if outcome.reason is Reason.CANCELED else outcome_words(outcome)


def outcome_words(outcome: Outcome) -> str:
    words = {
        Reason.EXITED: f"exited with {outcome.exit_code}",
        Reason.SIGNALED: f"killed by {signal_name(outcome.signal or 0)}",
        Reason.TIMED_OUT: "timed out",
        Reason.OUT_OF_MEMORY: "out of memory",
        Reason.OUT_OF_SCRATCH: "out of scratch",
        Reason.CANCELED: "canceled",
        Reason.GIVEN_BACK: "given back",
        Reason.NODE_LOST: "its node was lost",
        Reason.FENCED: "its node lost the cluster",
    }
    if outcome.reason is None:
        return ""
    return words.get(outcome.reason) or printable(reason_words(outcome) or "")


def age(time: datetime | None, now: datetime) -> str:
    return "" if time is None else format_duration(float(round(max(0.0, (now - time).total_seconds()))))


def ran_for(task: Task, now: datetime) -> str:
    """Of the newest attempt: its duration so far, or until its end."""
    if task.started_at is None:
        return ""
    attempt = task.newest_attempt
    end = (attempt.finished_at if attempt else None) or (task.finished_at if task.status.is_terminal else now)
    return format_duration(max(0.0, ((end or now) - task.started_at).total_seconds()))


def task_row(task: Task, now: datetime, names: NodeNames) -> tuple[str, ...]:
    """For the table of `list`; see TASK_COLUMNS."""
    return (
        task.id,
        printable(task.spec.name),
        str(task.status),
        how(task),
        printable(names.short(task.newest_attempt)),
        str(task.attempt or ""),
        age(task.submitted_at, now),
        ran_for(task, now),
        command_line(task),
    )


TASK_COLUMNS = (
    Column("id"),
    Column("name", is_flexible=True),
    Column("status"),
    Column("how", is_flexible=True),
    # Who runs it, or ran it last.
    Column("node", dispensable=3),
    Column("attempt", dispensable=4),
    Column("age", dispensable=1),
    Column("ran for", dispensable=2),
    Column("command", is_flexible=True),
)
NODE_COLUMN = next(index for index, column in enumerate(TASK_COLUMNS) if column.name == "node")


def task_lines(task: Task, now: datetime, names: NodeNames) -> list[str]:
    """For people: everything that `status` shows of one task."""
    spec, words = task.spec, how(task)
    rows: list[tuple[str, str]] = [
        ("task", task.id),
        ("name", printable(spec.name)),
        ("labels", printable(" ".join(f"{key}={value}" for key, value in sorted(spec.labels.items())))),
        ("status", f"{task.status}: {words}" if words else str(task.status)),
        ("why", printable(task.outcome.detail) if task.outcome else ""),
        ("command", command_line(task)),
        ("node", printable(names.full(task.newest_attempt)) if task.newest_attempt else ""),
        ("submitted", _when(task.submitted_at, now)),
        ("started", _when(task.started_at, now)),
        ("finished", _when(task.finished_at, now)),
        ("ran for", ran_for(task, now)),
        ("used", _usage_words(task.usage) if task.usage else ""),
    ]
    lines = [f"{label:<10}{value}" for label, value in rows if value]
    if len(task.attempts) > 1:
        lines += [f"{'attempt ' + str(a.number):<10}{_attempt_words(a, names)}" for a in task.attempts]
    return lines


def _when(time: datetime | None, now: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {age(time, now)} ago" if time else ""


def _usage_words(usage: Usage) -> str:
    words = [f"cpu {format_duration(usage.cpu_s)}", f"memory {format_size(usage.memory_peak_bytes)} at most"]
    if usage.io_read_bytes or usage.io_write_bytes:
        words.append(f"read {format_size(usage.io_read_bytes)}, wrote {format_size(usage.io_write_bytes)}")
    return ", ".join(words)


def _attempt_words(attempt: Attempt, names: NodeNames) -> str:
    ended = outcome_words(attempt.outcome) if attempt.outcome else "runs"
    return f"{ended}, on node {printable(names.full(attempt))}"


def exit_status(task: Task) -> int:
    """What `node run` exits with: as the task did, in the way of shells, timeout(1) and container tools."""
    outcome = task.outcome
    if task.status is Status.CANCELED:
        return 130
    if outcome is None or task.status is not Status.COMPLETE:
        return _not_run_status(outcome)
    if outcome.reason is Reason.TIMED_OUT:
        return 124
    if outcome.reason is Reason.OUT_OF_MEMORY:
        return 137
    if outcome.signal is not None:
        return 128 + outcome.signal
    return outcome.exit_code if outcome.exit_code is not None else 125


def _not_run_status(outcome: Outcome | None) -> int:
    if outcome is not None and outcome.reason is Reason.SETUP_FAILED and outcome.step == "exec":
        return 127 if outcome.errno == errno.ENOENT else 126
    return 125
