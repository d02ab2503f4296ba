"""Tasks as JSON, as words and as exit codes: the contract with scripts."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from node.cli.node_names import NodeNames
from node.cli.render import (
    NODE_COLUMN,
    TASK_COLUMNS,
    exit_status,
    how,
    printable,
    rfc3339,
    task_json,
    task_lines,
    task_row,
)
from node.cli.tables import fitting
from pilfer import Attempt, Outcome, Reason, Status, Task, TaskSpec, Usage

START = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
USAGE = Usage(cpu_s=0.5, memory_peak_bytes=2**20, io_read_bytes=1, io_write_bytes=2, wall_s=1.5)


def task(status: Status, outcome: Outcome | None = None, **changes: object) -> Task:
    attempt = Attempt(1, "node-1", "host-1", START, START, START + timedelta(seconds=2), outcome)
    base = Task(
        id="0190aaaa-0000-7000-8000-000000000001",
        spec=TaskSpec("gzip", ("-9", "a b"), name="pack", labels={"run": "7"}),
        status=status,
        attempt=1,
        attempts_used=1,
        attempts=(attempt,),
        outcome=outcome,
        submitted_at=START,
        finished_at=START + timedelta(seconds=2) if outcome else None,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # fields of Task


def failed_step(step: str, number: int) -> Outcome:
    return Outcome(Reason.SETUP_FAILED, step=step, errno=number, detail=f"{step} failed")


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (Status.COMPLETE, Outcome(Reason.EXITED, exit_code=0), 0),
        (Status.COMPLETE, Outcome(Reason.EXITED, exit_code=7), 7),
        (Status.COMPLETE, Outcome(Reason.EXITED, exit_code=255), 255),
        (Status.COMPLETE, Outcome(Reason.SIGNALED, signal=15), 143),
        (Status.COMPLETE, Outcome(Reason.SIGNALED, signal=11), 139),
        (Status.COMPLETE, Outcome(Reason.TIMED_OUT, signal=15), 124),
        (Status.COMPLETE, Outcome(Reason.TIMED_OUT, exit_code=0), 124),
        (Status.COMPLETE, Outcome(Reason.OUT_OF_MEMORY, signal=9), 137),
        (Status.COMPLETE, Outcome(Reason.OUT_OF_MEMORY, exit_code=1), 137),
        (Status.CANCELED, Outcome(Reason.CANCELED), 130),
        (Status.CANCELED, Outcome(Reason.CANCELED, signal=15), 130),
        (Status.FAILED, failed_step("exec", errno.ENOENT), 127),
        (Status.FAILED, failed_step("exec", errno.EACCES), 126),
        (Status.FAILED, failed_step("exec", errno.ENOEXEC), 126),
        (Status.FAILED, failed_step("mount", errno.ENOENT), 125),
        (Status.FAILED, Outcome(Reason.NODE_LOST, detail="node n is gone"), 125),
        (Status.FAILED, None, 125),
    ],
)
def test_run_exits_as_the_task_did(status: Status, outcome: Outcome | None, code: int) -> None:
    assert exit_status(task(status, outcome)) == code


def test_the_json_of_an_ended_task() -> None:
    found = json.loads(json.dumps(task_json(task(Status.COMPLETE, Outcome(Reason.EXITED, exit_code=3, usage=USAGE)))))
    expected = {
        "id": "0190aaaa-0000-7000-8000-000000000001",
        "status": "complete",
        "exit_code": 3,
        "signal": None,
        "reason": "exited",
        "attempt": 1,
        "node_id": "node-1",
        "submitted_at": "2026-01-31T12:00:00.250000Z",
        "started_at": "2026-01-31T12:00:00.250000Z",
        "finished_at": "2026-01-31T12:00:02.250000Z",
        "usage": {
            "cpu_s": 0.5,
            "memory_peak_bytes": 2**20,
            "io_read_bytes": 1,
            "io_write_bytes": 2,
            "wall_s": 1.5,
        },
        "command": "gzip",
        "args": ["-9", "a b"],
        "name": "pack",
        "labels": {"run": "7"},
    }
    assert {key: found[key] for key in expected} == expected
    assert found["attempts"][0]["number"] == 1


def test_the_json_of_a_queued_task_has_every_key() -> None:
    queued = task(Status.QUEUED, attempt=0, attempts=(), submitted_at=START)
    ended = task(Status.COMPLETE, Outcome(Reason.EXITED, exit_code=0))
    found = task_json(queued)
    assert found.keys() == task_json(ended).keys()
    absent = ("exit_code", "signal", "reason", "node_id", "started_at", "finished_at", "usage", "detail", "step")
    assert {key: found[key] for key in absent} == dict.fromkeys(absent)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(Reason.SIGNALED, signal=9), "signaled"),
        (Outcome(Reason.TIMED_OUT), "timed_out"),
        (Outcome(Reason.OUT_OF_MEMORY), "out_of_memory"),
        (Outcome(Reason.SETUP_FAILED, step="exec", detail="no such command: x"), "no such command: x"),
        (Outcome(Reason.SETUP_FAILED, step="exec"), "exec failed"),
        (Outcome(None), None),
    ],
)
def test_the_reason_is_a_word_or_the_failed_step_in_words(outcome: Outcome, reason: str | None) -> None:
    assert task_json(task(Status.FAILED, outcome))["reason"] == reason


def test_times_are_utc_whatever_the_zone() -> None:
    elsewhere = START.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert rfc3339(elsewhere) == "2026-01-31T12:00:00.250000Z"
    assert rfc3339(START.replace(microsecond=0)) == "2026-01-31T12:00:00.000000Z"
    assert rfc3339(None) is None


def test_what_a_task_is_called_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\n\udcff") == "a\\x1b[2Jb\\n\\udcff"
    nasty = task(Status.QUEUED, spec=TaskSpec("\x1b]0;x\x07", name="\x1b[31m", labels={"a\n": "b"}))
    names = NodeNames({"host-1": "\x1b[2Jx"})
    everything = "".join(task_row(nasty, START, names)) + "".join(task_lines(nasty, START, names))
    assert everything.isprintable()


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (task(Status.COMPLETE, Outcome(Reason.SIGNALED, signal=9)), "killed by SIGKILL"),
        (task(Status.COMPLETE, Outcome(Reason.SIGNALED, signal=40)), "killed by signal 40"),
        (task(Status.COMPLETE, Outcome(Reason.EXITED, exit_code=0)), "exited with 0"),
        (task(Status.RUNNING, cancel_requested=True), "cancel requested"),
        (task(Status.CANCELED, Outcome(Reason.CANCELED)), "on request"),
        (task(Status.QUEUED), ""),
    ],
)
def test_how_it_ended_in_words(shown: Task, words: str) -> None:
    assert how(shown) == words


def test_a_narrow_terminal_gets_fewer_columns_and_whole_ids() -> None:
    names = [column.name for column in TASK_COLUMNS]
    widths = [36, 30, 8, 13, 8, 7, 3, 7, 200]
    assert [names[i] for i in fitting(TASK_COLUMNS, widths, 200)] == names
    assert [names[i] for i in fitting(TASK_COLUMNS, widths, 105)] == [n for n in names if n != "attempt"]
    assert [names[i] for i in fitting(TASK_COLUMNS, widths, 95)] == [n for n in names if n not in ("attempt", "node")]
    assert [names[i] for i in fitting(TASK_COLUMNS, widths, 80)] == ["id", "name", "status", "how", "command"]
    assert fitting(TASK_COLUMNS, widths, 80) == {0: 36, 1: 10, 2: 8, 3: 9, 8: 9}, "what is left is shared"
    assert fitting(TASK_COLUMNS, widths, 1000) == dict(enumerate(widths)), "no wider than needed"
    assert [names[i] for i in fitting(TASK_COLUMNS, widths, 10)] == ["id", "name", "status", "how", "command"]


def test_the_lines_for_people_tell_the_attempts() -> None:
    lost = Attempt(1, "node-1", "host-1", outcome=Outcome(Reason.NODE_LOST))
    again = Attempt(2, "node-2", "host-1", started_at=START)
    shown = task(Status.RUNNING, attempt=2, attempts=(lost, again))
    text = "\n".join(task_lines(shown, START, NodeNames()))
    assert "attempt 1 its node was lost, on node node-1" in text
    assert "attempt 2 runs, on node node-2" in text
    text = "\n".join(task_lines(shown, START, NodeNames({"host-1": "anna"})))
    assert "attempt 1 its node was lost, on node anna (node-1)" in text
    assert "\nnode      anna (node-2)\n" in text


def test_which_node_is_told_where_there_are_several() -> None:
    one = task(Status.RUNNING, attempts=(Attempt(1, "0123456789ab", "host-1"),))
    other = task(Status.RUNNING, attempts=(Attempt(1, "node-0", "host-1"), Attempt(2, "node-2", "host-2")))
    queued = task(Status.QUEUED, attempts=())
    nobody, alone, both = NodeNames(), NodeNames({"host-1": "anna"}), NodeNames({"host-1": "anna", "host-2": "bert"})
    assert not nobody.tells_apart([one, one, queued])
    assert not alone.tells_apart([one, queued])
    assert nobody.tells_apart([one, other]), "on several hosts"
    assert both.tells_apart([queued]), "in a cluster of several nodes"
    assert [task_row(shown, START, alone)[NODE_COLUMN] for shown in (one, other, queued)] == ["anna", "node-2", ""]
    assert task_row(one, START, nobody)[NODE_COLUMN] == "01234567"
