"""The fence's bookkeeping: situations and the deadlines they must give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.fence import MARGIN_S, Fence, Lane

TTL = 5.0

#: What happens, in order: (what, lane, at), and the deadline after all of it. Granted at 100.
Step = tuple[str, Lane, float]
A, B = Lane.FIRST, Lane.SECOND

SITUATIONS: list[tuple[str, list[Step], float]] = [
    ("the grant counts as a ping", [], 100),
    ("a ping alone moves nothing", [("ping", A, 101)], 100),
    ("an answer dates from its ping's sending", [("ping", A, 101), ("answer", A, 104)], 101),
    ("an answer counts for the oldest open ping", [("ping", A, 101), ("ping", A, 102), ("answer", A, 102.1)], 101),
    (
        "two answers, two pings",
        [("ping", A, 101), ("ping", A, 102), ("answer", A, 102.1), ("answer", A, 102.2)],
        102,
    ),
    (
        "a new stream forgets the open pings: its first answer is not for them",
        [("ping", A, 101), ("open", A, 102), ("ping", A, 103), ("answer", A, 103.1)],
        103,
    ),
    (
        "a late answer after a new stream, before its first ping, counts for nothing",
        [("ping", A, 101), ("open", A, 102), ("answer", A, 102.1)],
        100,
    ),
    ("an answer without a ping counts for nothing", [("answer", A, 101)], 100),
    (
        "lanes keep their pings apart",
        [("ping", A, 101), ("open", B, 103), ("ping", B, 103), ("answer", B, 103.1)],
        103,
    ),
    (
        "an older answer on the other lane does not move it back",
        [("ping", A, 101), ("open", B, 103), ("ping", B, 103), ("answer", B, 103.1), ("answer", A, 103.2)],
        103,
    ),
]


def play(fence: Fence, steps: list[Step]) -> None:
    for what, lane, at in steps:
        if what == "ping":
            fence.ping_sent(lane, at)
        elif what == "open":
            fence.stream_opened(lane, at)
        else:
            fence.answered(lane, TTL)


@pytest.mark.parametrize(("steps", "dated"), [s[1:] for s in SITUATIONS], ids=[s[0] for s in SITUATIONS])
def test_deadline(steps: list[Step], dated: float) -> None:
    fence = Fence(granted_ttl_s=TTL, sent_at=100)
    play(fence, steps)
    assert fence.deadline == dated + TTL - MARGIN_S


def test_an_answer_says_whether_the_deadline_moved() -> None:
    fence = Fence(granted_ttl_s=TTL, sent_at=100)
    assert not fence.answered(A, TTL)
    fence.ping_sent(A, 101)
    assert fence.answered(A, TTL)
    fence.stream_opened(B, 100.5)
    fence.ping_sent(B, 100.5)
    assert not fence.answered(B, TTL)


def test_a_shorter_time_to_live_in_the_answer_is_believed_a_longer_one_is_not() -> None:
    for answered, counted in ((3.0, 3.0), (9.0, TTL)):
        fence = Fence(granted_ttl_s=TTL, sent_at=100)
        fence.ping_sent(A, 110)
        fence.answered(A, answered)
        assert fence.deadline == 110 + counted - MARGIN_S


def test_at_risk_from_the_deadline_on_and_no_more_after_a_late_answer() -> None:
    fence = Fence(granted_ttl_s=TTL, sent_at=100)
    assert not fence.is_at_risk(104.49)
    assert fence.is_at_risk(104.5)
    fence.ping_sent(A, 104)
    assert fence.answered(A, TTL)
    assert fence.lost is None
    assert not fence.is_at_risk(104.6)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0])
def test_an_answer_of_zero_is_the_loss(ttl_s: float) -> None:
    fence = Fence(granted_ttl_s=TTL, sent_at=100)
    fence.ping_sent(A, 101)
    assert not fence.answered(A, ttl_s)
    assert fence.lost is not None
    assert fence.is_at_risk(101)


def test_a_deleted_key_is_the_loss_and_later_answers_change_nothing() -> None:
    fence = Fence(granted_ttl_s=TTL, sent_at=100)
    fence.ping_sent(A, 101)
    fence.key_gone()
    why, deadline = fence.lost, fence.deadline
    assert why is not None
    assert not fence.answered(A, TTL)
    assert not fence.answered(A, 0)
    assert (fence.lost, fence.deadline) == (why, deadline)
    assert fence.is_at_risk(100)


@pytest.mark.parametrize("ttl_s", [2.0, 3.0, 5.0, 10.0, 60.0])
def test_the_second_lane_comes_well_before_the_deadline(ttl_s: float) -> None:
    fence = Fence(granted_ttl_s=ttl_s, sent_at=100)
    assert fence.overdue_at(A) < fence.deadline - 0.25


def test_overdue_is_silence_of_that_lane_alone() -> None:
    fence = Fence(granted_ttl_s=TTL, sent_at=100)
    fence.stream_opened(B, 103)
    fence.ping_sent(B, 103)
    fence.answered(B, TTL)
    assert fence.is_overdue(A, 103.5)
    assert not fence.is_overdue(B, 103.5)
    fence.stream_opened(A, 103.6)
    assert fence.is_overdue(A, 103.6), "a new stream has not answered yet"
    fence.ping_sent(A, 103.6)
    fence.answered(A, TTL)
    assert not fence.is_overdue(A, 103.7)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ping", "open", "deliver", "lose"]), st.sampled_from([A, B]), st.floats(0, 2)),
        max_size=60,
    )
)
def test_the_deadline_is_never_later_than_the_lease_allows(moves: list[tuple[str, Lane, float]]) -> None:
    """A model of etcd beside it: pings travel in order on a stream, renew on arrival, and answers come back in order,
    or are lost with all that follows them on that stream."""
    now = 100.0
    fence = Fence(granted_ttl_s=TTL, sent_at=now)
    renewed_at = now
    waiting: dict[Lane, list[float]] = {A: [], B: []}
    last = fence.deadline
    for what, lane, pause in moves:
        now += pause
        if what == "open":
            waiting[lane] = []
            fence.stream_opened(lane, now)
        elif what == "ping":
            fence.ping_sent(lane, now)
            waiting[lane].append(now)
        elif what == "deliver" and waiting[lane]:
            waiting[lane].pop(0)
            renewed_at = now  # it arrives at etcd at some time not before its sending; the latest is now
            fence.answered(lane, TTL)
        elif what == "lose":
            waiting[lane] = []
        assert fence.deadline <= renewed_at + TTL - MARGIN_S
        assert fence.deadline >= last
        last = fence.deadline
