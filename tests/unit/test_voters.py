"""Which hosts vote: situations and what is to be done, and random ones through which no step may do harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.voters import (
    AddLearner,
    LiveHost,
    MemberView,
    Promote,
    Remove,
    Step,
    View,
    Wait,
    next_step,
    quorum,
    takes_vote,
    target_voters,
    votes_missing,
)

LONG = 1e6
HOSTS = "abcdefgh"


def url(host: str) -> str:
    return f"https://{host}:1"


def voter(host: str, **changes: object) -> MemberView:
    return replace(MemberView(id=HOSTS.index(host) + 1, host_id=host, known_for_s=LONG), **changes)  # type: ignore[arg-type]  # fields of MemberView


def away(host: str, seconds: float) -> MemberView:
    return voter(host, is_healthy=False, unhealthy_for_s=seconds)


def learner(host: str, **changes: object) -> MemberView:
    return voter(host, is_learner=True, known_for_s=1.0, **changes)


def live(hosts: str, **changes: object) -> list[LiveHost]:
    """In the order in which they came to live."""
    made = (LiveHost(host, url(host), started_at=float(HOSTS.index(host))) for host in hosts)
    return [replace(host, **changes) for host in made]  # type: ignore[arg-type]  # fields of LiveHost


def voters(hosts: str) -> list[MemberView]:
    return [voter(host) for host in hosts]


def add(host: str) -> AddLearner:
    return AddLearner(host, url(host))


def removed(step: Step) -> str | None:
    """The host whose member is removed."""
    return HOSTS[step.member_id - 1] if isinstance(step, Remove) else None


@pytest.mark.parametrize(("hosts", "target"), [(0, 1), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (1000, 5)])
def test_target(hosts: int, target: int) -> None:
    assert target_voters(hosts) == target


@pytest.mark.parametrize(
    ("version", "takes"),
    [
        ((3, 4, 37), False), ((3, 4, 38), True), ((3, 4, 45), True), ((3, 5, 0), False), ((3, 5, 22), False),
        ((3, 5, 23), True), ((3, 6, 0), True), ((4, 0, 0), True),
    ],
)  # fmt: skip
def test_which_etcd_may_be_one_of_several(version: tuple[int, int, int], takes: bool) -> None:
    assert takes_vote(version) is takes


# -- growing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "hosts", "step"),
    [
        (voters("a"), live("abc"), add("b")),
        (voters("ab"), live("abc"), add("c")),  # straight on
        (voters("abc"), live("abcde"), add("d")),
        (voters("abcd"), live("abcde"), add("e")),
        (voters("c"), live("abc"), add("a")),  # the longest-lived, whoever founded
    ],
)
def test_grows_by_learners(members: list[MemberView], hosts: list[LiveHost], step: Step) -> None:
    assert next_step(View(members, hosts)) == step


@pytest.mark.parametrize(
    ("members", "hosts"),
    [
        (voters("a"), live("a")),
        (voters("a"), live("ab")),  # two tolerate no more than one
        (voters("abc"), live("abc")),
        (voters("abc"), live("abcd")),
        (voters("abcde"), live("abcdefgh")),
        (voters("a"), live("a") + live("bc", peer_url="")),  # the others take no vote
        (voters("a"), live("a", peer_url="") + live("bcd")),  # the only voter's etcd is not fit for company
        (voters("a"), live("a") + live("bc", is_drained=True)),
        (voters("a"), live("ab") + live("c", is_unlucky=True)),
        ([*voters("ab"), away("c", 5.0)], live("abde")),  # it may come back; etcd would refuse as well
        ([], live("abc")),
    ],
)
def test_is_left_as_it_is(members: list[MemberView], hosts: list[LiveHost]) -> None:
    assert isinstance(next_step(View(members, hosts)), Wait)


def test_a_host_that_may_not_come_back_is_not_chosen() -> None:
    assert next_step(View(voters("a"), live("abcd"), removed={"b"})) == add("c")
    assert isinstance(next_step(View(voters("a"), live("abc"), removed={"b"})), Wait)


def test_changes_keep_their_distance() -> None:
    step = next_step(View(voters("a"), live("abc"), since_change_s=4.5))
    assert isinstance(step, Wait)
    assert step.after_s == pytest.approx(0.5)
    assert next_step(View(voters("a"), live("abc"), since_change_s=5.0)) == add("b")


# -- learners -----------------------------------------------------------------------------------------------------


def test_a_learner_that_answers_is_promoted_at_once() -> None:
    assert next_step(View([*voters("a"), learner("b")], live("abc"), since_change_s=0.3)) == Promote(2)


def test_a_learner_that_has_not_started_is_waited_for() -> None:
    waiting = learner("b", is_started=False, is_healthy=False, unhealthy_for_s=1.0)
    step = next_step(View([*voters("a"), waiting], live("abc"), since_change_s=1.0))
    assert isinstance(step, Wait)
    assert step.after_s < 0.2


@pytest.mark.parametrize(
    ("stalled", "hosts"),
    [
        (learner("b", is_healthy=False, unhealthy_for_s=10.0), live("ac")),  # its node is gone
        (learner("b", is_healthy=False, unhealthy_for_s=30.0), live("abc")),  # its etcd is
        (learner("b", host_id=None, is_healthy=False, unhealthy_for_s=10.0), live("ac")),
        (replace(learner("b"), known_for_s=601.0), live("abc")),  # it answers, and is never in sync
    ],
)
def test_a_stalled_learner_is_evicted(stalled: MemberView, hosts: list[LiveHost]) -> None:
    step = next_step(View([*voters("a"), stalled], hosts))
    assert removed(step) == "b"
    assert isinstance(step, Remove)
    assert step.is_eviction


def test_a_learner_is_not_promoted_to_an_even_count_without_a_reason() -> None:
    """The third node died after the learner was added: two voters would tolerate less than one does."""
    members, hosts = [*voters("a"), learner("b")], live("ab")
    assert isinstance(next_step(View(members, hosts)), Wait)
    members[1] = replace(members[1], known_for_s=31.0)
    assert removed(next_step(View(members, hosts))) == "b"


def test_a_learner_of_a_drained_host_is_not_promoted() -> None:
    hosts = live("acd") + live("b", is_drained=True)
    assert isinstance(next_step(View([*voters("a"), learner("b")], hosts)), Wait)


def test_a_dead_voter_goes_before_the_learner_is_promoted() -> None:
    assert removed(next_step(View([*voters("ab"), away("c", 31.0), learner("d")], live("abd")))) == "c"


# -- dying --------------------------------------------------------------------------------------------------------


def test_a_voter_that_comes_back_within_the_grace_period_stays() -> None:
    assert isinstance(next_step(View([*voters("ab"), away("c", 29.0)], live("abd"))), Wait)
    assert isinstance(next_step(View(voters("abc"), live("abcd"))), Wait)


def test_a_dead_voter_is_removed_first_and_then_replaced() -> None:
    assert removed(next_step(View([*voters("ab"), away("c", 30.0)], live("abd")))) == "c"
    assert next_step(View(voters("ab"), live("abd"))) == add("d")


def test_a_dead_voter_without_a_successor_keeps_its_seat() -> None:
    """3 of which one is dead tolerate as little as 2 do, and the one that returns finds its seat."""
    assert isinstance(next_step(View([*voters("ab"), away("c", LONG)], live("ab"))), Wait)
    assert isinstance(next_step(View([*voters("abcd"), away("e", LONG)], live("abcd"))), Wait)


def test_fewer_voters_where_they_tolerate_more() -> None:
    members = [*voters("abc"), away("d", LONG), away("e", LONG - 5)]
    assert removed(next_step(View(members, live("abc")))) == "d"
    del members[3]
    assert removed(next_step(View(members, live("abc")))) == "e"
    del members[3]
    assert isinstance(next_step(View(members, live("abc"))), Wait)


def test_a_member_whose_data_were_lost_is_removed_though_its_node_lives() -> None:
    assert removed(next_step(View([*voters("ab"), away("c", 30.0)], live("abc")))) == "c"
    assert next_step(View(voters("ab"), live("abc"))) == add("c")


def test_a_host_removed_for_good_loses_its_seat_at_once() -> None:
    assert removed(next_step(View([*voters("ab"), away("c", 0.0)], live("abd"), removed={"c"}))) == "c"
    assert removed(next_step(View(voters("abc"), live("abd"), removed={"c"}))) == "c"


@pytest.mark.parametrize(
    "members",
    [
        [voter("a"), away("b", LONG)],
        [voter("a"), away("b", LONG), away("c", LONG)],
        [voter("a"), away("b", LONG), away("c", LONG), learner("d")],
        [away("a", LONG)],
    ],
)
def test_without_a_quorum_nothing_is_done(members: list[MemberView]) -> None:
    hosts = live("abcdef")
    assert isinstance(next_step(View(members, hosts, removed={"b"}, even_for_s=LONG)), Wait)


def test_the_last_voter_is_never_removed() -> None:
    assert isinstance(next_step(View(voters("a"), live("bc"), removed={"a"})), AddLearner | Wait)
    assert isinstance(next_step(View(voters("a"), [], removed={"a"})), Wait)


# -- even counts, drains ------------------------------------------------------------------------------------------


def test_an_even_count_gives_up_a_seat_after_a_while() -> None:
    assert isinstance(next_step(View(voters("ab"), live("ab"), even_for_s=29.0)), Wait)
    assert removed(next_step(View(voters("ab"), live("ab"), even_for_s=30.0))) == "b"
    assert removed(next_step(View(voters("abcd"), live("abcd"), even_for_s=30.0))) == "d"


def test_of_an_even_count_a_dead_one_goes_first() -> None:
    assert removed(next_step(View([away("a", 30.0), *voters("bcd")], live("bcd"), even_for_s=30.0))) == "a"


def test_a_drained_voter_keeps_its_seat_until_another_can_take_it() -> None:
    hosts = live("ab") + live("c", is_drained=True)
    assert isinstance(next_step(View(voters("abc"), hosts)), Wait)
    hosts += live("d")
    assert next_step(View(voters("abc"), hosts)) == add("d")
    assert next_step(View([*voters("abc"), learner("d")], hosts)) == Promote(4)
    assert removed(next_step(View(voters("abcd"), hosts))) == "c"
    assert isinstance(next_step(View(voters("abd"), hosts)), Wait)


def test_a_drained_lone_voter_is_succeeded() -> None:
    hosts = live("b") + live("a", is_drained=True)
    assert next_step(View(voters("a"), hosts)) == add("b")
    assert next_step(View([*voters("a"), learner("b")], hosts)) == Promote(2)
    assert removed(next_step(View(voters("ab"), hosts))) == "a"
    assert isinstance(next_step(View(voters("b"), hosts)), Wait)


# -- random ones ----------------------------------------------------------------------------------------------------

_FLAGS = st.booleans()


@st.composite
def situations(draw: st.DrawFn) -> View:
    seats = draw(st.lists(st.sampled_from(HOSTS), unique=True, max_size=6))
    members = []
    for host in seats:
        is_healthy = draw(_FLAGS)
        away_s = 0.0 if is_healthy else draw(st.sampled_from([0.0, 11.0, 29.0, 31.0, LONG]))
        known_s = draw(st.sampled_from([0.0, 40.0, LONG]))
        members.append(voter(host, is_healthy=is_healthy, unhealthy_for_s=away_s, known_for_s=known_s))
    if draw(_FLAGS) and members:
        members[0] = replace(members[0], is_learner=True, is_started=draw(_FLAGS))
    hosts = [
        LiveHost(host, draw(st.sampled_from([url(host), ""])), draw(st.floats(0, 9)), draw(_FLAGS), draw(_FLAGS))
        for host in draw(st.lists(st.sampled_from(HOSTS), unique=True))
    ]
    barred = draw(st.sets(st.sampled_from(HOSTS), max_size=2))
    since, even = draw(st.sampled_from([0.0, 4.0, LONG])), draw(st.sampled_from([0.0, LONG]))
    return View(members, hosts, barred, since_change_s=since, even_for_s=even)


@given(situations())
@settings(max_examples=400, deadline=None)
def test_no_step_does_harm(view: View) -> None:
    step = next_step(view)
    seated = [member for member in view.members if not member.is_learner]
    healthy = [member for member in seated if member.is_healthy]
    if len(healthy) < quorum(len(seated)):
        assert isinstance(step, Wait)
    match step:
        case Wait():
            assert 0 < step.after_s <= 1.0
        case AddLearner():
            host = next(h for h in view.live if h.host_id == step.host_id)
            assert step.peer_url == host.peer_url != ""
            assert not host.is_drained
            assert step.host_id not in view.removed
            assert step.host_id not in {member.host_id for member in view.members}
            assert len(healthy) == len(seated) < 6
            assert len(view.members) == len(seated), "one learner at a time"
            assert view.since_change_s >= 5
        case Promote():
            (member,) = (m for m in view.members if m.id == step.member_id)
            assert member.is_learner
            assert member.is_healthy
            assert member.is_started
            assert member.host_id not in view.removed
        case Remove():
            (member,) = (m for m in view.members if m.id == step.member_id)
            if not member.is_learner:
                left = len(seated) - 1
                assert left >= 1
                assert len(healthy) - member.is_healthy >= quorum(left)
                assert view.since_change_s >= 5


# -- the way ----------------------------------------------------------------------------------------------------------


def walk(hosts: Sequence[LiveHost], seats: str, *, away_hosts: str = "", steps: int = 60) -> tuple[str, list[int]]:
    """Carries out what is decided, a minute between the steps. Gives the voters in the end, and the counts."""
    members = {host: away(host, LONG) if host in away_hosts else voter(host) for host in seats}
    counts = []
    for _ in range(steps):
        even = LONG if len(members) % 2 == 0 else 0.0
        match next_step(View(list(members.values()), hosts, even_for_s=even)):
            case AddLearner(host_id, _):
                members[host_id] = learner(host_id)
            case Promote(member_id):
                members[HOSTS[member_id - 1]] = voter(HOSTS[member_id - 1])
            case Remove(member_id):
                del members[HOSTS[member_id - 1]]
            case Wait():
                break
        counts.append(len(members))
    else:
        raise AssertionError(f"never at rest: {counts}")
    return "".join(sorted(members)), counts


@pytest.mark.parametrize(
    ("hosts", "seats", "away_hosts", "end"),
    [
        (live("abcdefgh"), "a", "", "abcde"),
        (live("abcd"), "a", "", "abc"),
        (live("abde"), "abc", "c", "abd"),
        (live("abcfgh"), "abcde", "de", "abcfg"),
        (live("cdefg"), "abc", "ab", "abc"),  # no quorum: not to be mended from here
        (live("ab"), "ab", "", "a"),
        (live("abc") + live("d", is_drained=True), "bcd", "", "abc"),
        (live("abc") + live("de", is_drained=True), "cde", "", "abcde"),
        (live("a", is_drained=True) + live("bcd"), "a", "", "bcd"),
        (live("abcdef"), "abcdef", "", "abcde"),
    ],
)
def test_the_way_ends(hosts: list[LiveHost], seats: str, away_hosts: str, end: str) -> None:
    assert walk(hosts, seats, away_hosts=away_hosts)[0] == end


# -- removals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "voting", "alive", "missing"),
    [
        ("d", "abc", "", 0),  # it has no vote
        ("c", "abc", "ab", 0),
        ("c", "abc", "abde", 0),
        ("c", "abc", "ade", 1),
        ("c", "abc", "de", 2),
        ("e", "abcde", "abc", 0),
        ("e", "abcde", "ab", 1),
        # An even count is on the way from one odd one to another.
        ("b", "ab", "a", 1),
        ("d", "abcd", "abc", 0),
        ("d", "abcd", "ab", 1),
        # The one voter of a cluster in which somebody else answers.
        ("a", "a", "b", 1),
    ],
)
def test_a_voter_is_removed_only_beside_a_quorum_that_lives(host: str, voting: str, alive: str, missing: int) -> None:
    assert votes_missing(host, list(voting), list(alive)) == missing
