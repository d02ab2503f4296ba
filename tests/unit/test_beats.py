"""The judgement of the witness: what it must find, and what it must let pass. (The witness itself: cluster_live.)"""

from __future__ import annotations

import pytest

from tests.support.beats import Beat, Runs, excesses, overlaps, parse, setbacks

TASK, OTHER = "task-a", "task-b"


def heard(*runs: tuple[str, int, float, float], node: str = "n", lag_s: float = 0.0) -> Runs:
    """Runs (task, attempt, from, to) that beat each second, in the order of arrival."""
    beats = [
        Beat(task, attempt, attempt * 10, node, start + index / 1e6, at, at + lag_s)
        for index, (task, attempt, start, end) in enumerate(runs)
        for at in [start + step for step in range(int(end - start) + 1)]
    ]
    found = Runs()
    for beat in sorted(beats, key=lambda beat: beat.arrived_at):
        found.add(beat)
    return found


@pytest.mark.parametrize(
    "runs",
    [
        [(TASK, 1, 0, 5), (TASK, 2, 6, 9)],
        [(TASK, 1, 0, 5), (OTHER, 1, 0, 5)],
        [(TASK, 1, 0, 0), (TASK, 2, 1, 1), (TASK, 3, 2, 2)],
    ],
)
def test_what_is_right_passes(runs: list[tuple[str, int, float, float]]) -> None:
    assert overlaps(heard(*runs)) == []
    assert setbacks(heard(*runs)) == []


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([(TASK, 1, 0, 5), (TASK, 2, 4, 9)], id="the tail of the first"),
        pytest.param([(TASK, 1, 0, 9), (TASK, 2, 3, 4)], id="the second within the first"),
        pytest.param([(TASK, 1, 0, 9), (TASK, 2, 2, 2), (TASK, 3, 5, 6)], id="not only the neighbour"),
        pytest.param([(TASK, 1, 0, 5), (TASK, 1, 3, 8)], id="one attempt, two processes"),
        pytest.param([(TASK, 1, 0, 5), (TASK, 2, 5, 9)], id="in the same moment"),
    ],
)
def test_overlap_is_found(runs: list[tuple[str, int, float, float]]) -> None:
    assert overlaps(heard(*runs))


def test_overlap_within_the_tolerance_passes() -> None:
    assert overlaps(heard((TASK, 1, 0, 5), (TASK, 2, 4, 9)), tolerance_s=2) == []
    assert overlaps(heard((TASK, 1, 0, 5), (TASK, 2, 2, 9)), tolerance_s=2)


def test_an_overlap_by_the_senders_clock_alone_is_found() -> None:
    """Though the queue told otherwise: the two clocks must agree."""
    found = Runs()
    found.add(Beat(TASK, 1, 10, "n", 0.0, 0.0, 0.0))
    found.add(Beat(TASK, 1, 10, "n", 0.0, 5.0, 1.0))
    found.add(Beat(TASK, 2, 20, "n", 4.0, 4.0, 2.0))
    assert overlaps(found)


def test_an_older_attempt_after_a_newer_one_is_found() -> None:
    assert setbacks(heard((TASK, 2, 0, 1), (TASK, 1, 3, 4)))
    assert setbacks(heard((TASK, 1, 0, 1), (TASK, 1, 3, 4)))


def test_more_at_once_than_there_is_room_for_is_found() -> None:
    runs = heard((TASK, 1, 0, 5), (OTHER, 1, 3, 8))
    assert excesses(runs, {"n": 1})
    assert excesses(runs, {"n": 2}) == []
    assert excesses(heard((TASK, 1, 0, 5), (OTHER, 1, 5, 8)), {"n": 1}) == []


def test_a_silence_is_measured() -> None:
    found = Runs()
    for at in (0.0, 1.0, 4.5, 5.0):
        found.add(Beat(TASK, 1, 10, "n", 0.0, at, at, is_last=at == 5.0))
    [run] = found.of(TASK)
    assert (run.longest_silence_s, run.beats, run.has_ended) == (3.5, 4, True)


def test_a_line_of_the_witness() -> None:
    beat = parse("3000000000 2000000000 1000000000 e 4 77 some-task some-node")
    assert beat == Beat("some-task", 4, 77, "some-node", 1.0, 2.0, 3.0, is_last=True)
