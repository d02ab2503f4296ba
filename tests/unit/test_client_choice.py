"""Which node a call turns to: pure, so told step by step."""

from __future__ import annotations

import pytest

from pilfer import NoQuorum, TimedOut, Unavailable
from pilfer._choice import SILENCE_S, Choice, Tour
from pilfer.address import TcpTarget

DOWN = Unavailable("down", code="UNAVAILABLE")


def choice_of(count: int) -> Choice:
    return Choice([TcpTarget(host, 7400, None) for host in "abcdef"[:count]])


def test_each_node_is_asked_once_in_a_round() -> None:
    tour = Tour(choice_of(3))
    steps = []
    for _ in range(6):
        index = tour.index
        steps.append((index, tour.failed(DOWN)))
    assert steps == [(0, False), (1, False), (2, True), (0, False), (1, False), (2, True)]


def test_the_next_call_begins_where_the_last_one_was_answered() -> None:
    choice = choice_of(3)
    tour = Tour(choice)
    tour.failed(DOWN)
    tour.answered()
    assert Tour(choice).index == 1
    Tour(choice).answered()
    assert Tour(choice).index == 1


def test_a_call_that_fails_late_does_not_move_the_others() -> None:
    """Both began at the first node; the one that fails second finds that the choice has moved on."""
    choice = choice_of(3)
    early, late = Tour(choice), Tour(choice)
    early.failed(DOWN)
    early.answered()
    late.failed(DOWN)
    assert (choice.current, late.index) == (1, 1)


def test_no_node_is_asked_twice_in_a_round_though_others_move_the_choice() -> None:
    choice = choice_of(3)
    tour = Tour(choice)
    tour.failed(DOWN)
    choice.current = 0
    tour.failed(DOWN)
    assert tour.index == 2


def test_silence_is_borne_longer_in_each_round_and_with_one_node_always() -> None:
    tour = Tour(choice_of(2))
    borne = []
    for _ in range(6):
        borne.append(tour.silence_s(10.0))
        tour.failed(TimedOut("late"), silence_s=1.0)
    assert borne == [SILENCE_S, SILENCE_S, 6.0, 6.0, 10.0, 10.0]
    tour.answered()
    assert tour.silence_s(10.0) == SILENCE_S
    assert Tour(choice_of(1)).silence_s(10.0) == 10.0


def test_the_verdict_of_several_says_what_each_said() -> None:
    tour = Tour(choice_of(4))
    tour.failed(TimedOut("late"), silence_s=SILENCE_S)
    tour.failed(Unavailable("no node answers at b:7400: Connection refused"))
    last = Unavailable("no quorum", code="UNAVAILABLE")
    tour.failed(last)
    verdict = tour.verdict(last)
    assert isinstance(verdict, Unavailable)
    assert verdict.code == "UNAVAILABLE"
    assert verdict.message == (
        "none of the 4 nodes named could answer: a:7400: no answer within 3 s; b:7400: Connection refused; "
        "c:7400: no quorum; 1 not asked yet"
    )


@pytest.mark.parametrize("error", [DOWN, TimedOut("late", code="DEADLINE_EXCEEDED")])
def test_the_verdict_of_one_is_its_own(error: Unavailable | TimedOut) -> None:
    tour = Tour(choice_of(1))
    assert tour.failed(error)
    assert tour.verdict(error) is error


@pytest.mark.parametrize(
    "answer",
    [NoQuorum("no quorum", code="UNAVAILABLE"), Unavailable("nobody signs", code="UNAVAILABLE", is_from_node=True)],
)
def test_a_nodes_answer_outlives_the_silence_after_it(answer: Unavailable) -> None:
    """The last try has what is left of the deadline, which may be too little for an answer."""
    for count in (1, 2):
        tour = Tour(choice_of(count))
        tour.failed(answer)
        late = TimedOut("late", code="DEADLINE_EXCEEDED")
        tour.failed(late, silence_s=0.1)
        verdict = tour.verdict(late)
        assert type(verdict) is type(answer)
        assert isinstance(verdict, Unavailable)
        assert verdict.is_from_node
        tour.answered()
        tour.failed(late, silence_s=0.1)
        assert type(tour.verdict(late)) is TimedOut


def test_of_several_the_one_that_says_most_decides_what_it_is() -> None:
    tour = Tour(choice_of(3))
    tour.failed(Unavailable("nobody signs", is_from_node=True))
    tour.failed(NoQuorum("no quorum"))
    tour.failed(DOWN)
    assert type(tour.verdict(DOWN)) is NoQuorum
