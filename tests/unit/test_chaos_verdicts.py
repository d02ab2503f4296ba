"""What the witness, the ledger and the listing must agree on: each disagreement is told by its name."""

from __future__ import annotations

from pathlib import Path

from pilfer import CancelStep, Status, Task, TaskSpec
from tests.chaos.ledger import Cancel
from tests.chaos.traces import left_behind
from tests.chaos.verdicts import (
    CANCEL_BOUND_S,
    GONE_S,
    TOLD_MAX,
    flaws_of_bounds,
    flaws_of_cancels,
    flaws_of_deaths,
    flaws_of_ends,
    flaws_of_listing,
    flaws_of_runs,
    lingering,
    told,
)
from tests.support.beats import Beat, Runs

A, B = "task-a", "task-b"


def heard(*runs: tuple[str, int, float, float], node: str = "n") -> Runs:
    """Runs (task, attempt, from, to) that beat each second and end by themselves, in the order of arrival."""
    beats = [
        Beat(task, attempt, attempt * 10 + number, node, start + number / 1e6, at, at, is_last=at == end)
        for number, (task, attempt, start, end) in enumerate(runs)
        for at in [start + step for step in range(int(end - start) + 1)]
    ]
    found = Runs()
    for beat in sorted(beats, key=lambda beat: beat.arrived_at):
        found.add(beat)
    return found


def names(flaws: list[str]) -> set[str]:
    return {flaw.partition(":")[0] for flaw in flaws}


def test_right_runs_pass() -> None:
    runs = heard((A, 1, 0, 5), (B, 1, 0, 5), (A, 2, 6, 9))
    assert flaws_of_runs(runs, [], 2, {A: 1.5, B: 0.5}) == []


def test_beats_that_overlap_go_back_or_exceed_are_told() -> None:
    assert names(flaws_of_runs(heard((A, 1, 0, 5), (A, 2, 5, 9)), [], 4, {})) == {"OneRunAtATime"}
    assert names(flaws_of_runs(heard((A, 2, 0, 5), (A, 1, 6, 9)), [], 4, {})) == {"RunsAscend"}
    assert names(flaws_of_runs(heard((A, 1, 0, 5), (B, 1, 1, 4)), [], 2, {A: 1.5, B: 0.6})) == {"CapacityNeverExceeded"}


def test_after_a_recovery_attempts_may_be_counted_anew_and_fences_may_not() -> None:
    runs = heard((A, 1, 0, 5), (A, 1, 6, 9))
    assert flaws_of_runs(runs, [5.5], 4, {}) == []
    assert names(flaws_of_runs(runs, [7.0], 4, {})) == {"RunsAscend"}
    assert names(flaws_of_runs(heard((A, 3, 0, 5), (A, 1, 6, 9)), [5.5], 4, {})) == {"RunsAscend"}


def test_who_may_run_once_runs_once_between_recoveries() -> None:
    runs = heard((A, 1, 0, 5), (A, 2, 6, 9))
    assert names(flaws_of_bounds(runs, [], {A: 1})) == {"RunsBounded"}
    assert flaws_of_bounds(runs, [], {A: 2, B: 1}) == []
    assert flaws_of_bounds(runs, [5.5], {A: 1}) == []


def test_what_is_complete_was_heard_to_end() -> None:
    runs = heard((A, 1, 0, 5))
    assert flaws_of_ends(runs, [(A, 1)]) == []
    assert names(flaws_of_ends(runs, [(A, 1), (B, 1)])) == {"CompleteHasRun"}
    assert names(flaws_of_ends(runs, [(A, 2)])) == {"CompleteHasRun"}, "an earlier run's end is none of this attempt"


def test_tasks_are_gone_with_their_node() -> None:
    runs = heard((A, 1, 0, 20), (B, 1, 0, 5), node="n")
    assert flaws_of_deaths(runs, {"n": 20 - GONE_S, "m": 0.0}) == []
    assert names(flaws_of_deaths(runs, {"n": 19 - GONE_S})) == {"GoneWithItsNode"}
    assert lingering(runs, {"n": 4.0}) == {A: 16.0, B: 1.0}


def test_cancels_are_obeyed() -> None:
    runs = heard((A, 1, 0, 50))
    assert names(flaws_of_cancels(runs, {A: Cancel(CancelStep.CANCELED, 49.0)})) == {"CancelIsObeyed"}
    assert flaws_of_cancels(runs, {A: Cancel(CancelStep.CANCELED, 51.0)}) == []
    assert flaws_of_cancels(runs, {A: Cancel(CancelStep.REQUESTED, 51.0 - CANCEL_BOUND_S)}) == []
    assert names(flaws_of_cancels(runs, {A: Cancel(CancelStep.REQUESTED, 49.0 - CANCEL_BOUND_S)})) == {"CancelIsObeyed"}


def listed(task_id: str, status: Status = Status.COMPLETE) -> Task:
    return Task(task_id, TaskSpec("x"), status)


def test_what_was_submitted_is_listed_once_and_has_ended() -> None:
    assert flaws_of_listing([listed(A)], [A], [A, B]) == []
    assert names(flaws_of_listing([listed(A), listed(A)], [A], [A])) == {"SubmittedIsEnded"}
    assert names(flaws_of_listing([listed(A, Status.QUEUED)], [A], [A])) == {"SubmittedIsEnded"}
    assert names(flaws_of_listing([listed(B)], [], [A])) == {"SubmittedIsEnded"}
    assert flaws_of_listing([listed(B)], [], [A], strangers=[B]) == []
    assert names(flaws_of_listing([listed(A)], [A, B], [A, B])) == {"NothingLost"}


def test_of_many_flaws_of_a_kind_the_first_are_told() -> None:
    found = told([f"One: {number}" for number in range(TOLD_MAX + 5)] + ["Other: 1"])
    assert len(found) == TOLD_MAX + 2
    assert "One: and 5 more" in found


def test_a_directory_that_is_left_is_told(tmp_path: Path) -> None:
    assert names(left_behind(tmp_path, ["no-such-host"])) == {"NothingIsLeft"}
    assert left_behind(tmp_path / "gone", ["no-such-host", ""]) == []
