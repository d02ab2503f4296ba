"""What the end of a sandbox means: a table of situations."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from isolation.spec import Ended, SetupFailed
from node.core.model import Reason
from node.running.outcomes import StopWhy, Verdict, of_end, of_setup_failure


def ended(**changes: Any) -> Ended:
    fields: dict[str, Any] = {
        "id": "t.1", "exit_code": 0, "signal": None, "out_of_memory": False, "ended_by": "",
        "started_at": 1.0, "finished_at": 2.0,
    }  # fmt: skip
    return Ended(**(fields | changes))


KILLED = {"exit_code": None, "signal": 9}


@pytest.mark.parametrize(
    ("end", "why", "verdict", "reason"),
    [
        (ended(), None, Verdict.FINISH, Reason.EXITED),
        (ended(exit_code=3), None, Verdict.FINISH, Reason.EXITED),
        (ended(**KILLED), None, Verdict.FINISH, Reason.SIGNALED),
        (ended(**KILLED, ended_by="timeout"), None, Verdict.FINISH, Reason.TIMED_OUT),
        (ended(exit_code=0, ended_by="timeout"), None, Verdict.FINISH, Reason.TIMED_OUT),
        (ended(**KILLED, out_of_memory=True), None, Verdict.FINISH, Reason.OUT_OF_MEMORY),
        (ended(exit_code=3, out_of_memory=True), None, Verdict.FINISH, Reason.OUT_OF_MEMORY),
        # It lost a child to the limit, coped, and did its work.
        (ended(exit_code=0, out_of_memory=True), None, Verdict.FINISH, Reason.EXITED),
        (ended(exit_code=None, signal=15, ended_by="stop"), StopWhy.CANCEL, Verdict.CANCEL, Reason.CANCELED),
        (ended(exit_code=0, ended_by="stop"), StopWhy.CANCEL, Verdict.CANCEL, Reason.CANCELED),
        # It ended by itself after the request and before the signal: that is what counts.
        (ended(exit_code=0), StopWhy.CANCEL, Verdict.FINISH, Reason.EXITED),
        (ended(exit_code=7), StopWhy.GIVE_BACK, Verdict.FINISH, Reason.EXITED),
        (ended(**KILLED, ended_by="timeout"), StopWhy.CANCEL, Verdict.FINISH, Reason.TIMED_OUT),
        (ended(**KILLED, ended_by="stop"), StopWhy.GIVE_BACK, Verdict.GIVE_BACK, Reason.GIVEN_BACK),
        (ended(**KILLED, ended_by="stop"), StopWhy.DRAIN, Verdict.GIVE_BACK, Reason.GIVEN_BACK),
        # Never an exit, whatever the code says.
        (ended(exit_code=0, ended_by="fence"), None, Verdict.GIVE_BACK, Reason.FENCED),
        (ended(**KILLED, ended_by="fence"), StopWhy.CANCEL, Verdict.GIVE_BACK, Reason.FENCED),
    ],
)
def test_of_end(end: Ended, why: StopWhy | None, verdict: Verdict, reason: Reason) -> None:
    got_verdict, outcome = of_end(end, why)
    assert (got_verdict, outcome.reason) == (verdict, reason)
    assert (outcome.exit_code, outcome.signal) == (end.exit_code, end.signal)


@pytest.mark.parametrize(
    ("step", "number", "verdict"),
    [
        ("exec", errno.ENOENT, Verdict.FINISH),
        ("exec", errno.EACCES, Verdict.FINISH),
        ("chdir", errno.ENOENT, Verdict.FINISH),
        ("clone", errno.EAGAIN, Verdict.GIVE_BACK),
        ("cgroup", errno.ENOSPC, Verdict.GIVE_BACK),
        ("clone", errno.ENOMEM, Verdict.GIVE_BACK),
        ("fence", 0, Verdict.GIVE_BACK),
    ],
)
def test_of_setup_failure(step: str, number: int, verdict: Verdict) -> None:
    got, outcome = of_setup_failure(SetupFailed("t.1", step, number, "/x", "words"))
    assert got is verdict
    assert (outcome.step, outcome.errno) == (step, number)
    assert "words" in outcome.detail


def test_a_signal_has_its_name() -> None:
    assert of_end(ended(exit_code=None, signal=11), None)[1].detail == "killed by SIGSEGV"
    assert of_end(ended(exit_code=None, signal=64), None)[1].detail in {"killed by SIGRTMAX", "killed by signal 64"}
