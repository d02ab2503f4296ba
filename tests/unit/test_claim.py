"""The claim policy: situations and the decisions expected of it, also what it must not do."""

from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.claim import (
    DEFAULT_SETTINGS,
    FULL,
    ClaimSettings,
    Situation,
    ahead_window,
    claim_window,
    is_holding,
    plan_claims,
)
from node.core.model import DEFAULT_REQUIREMENTS, Capacity, Requirements
from node.core.peers import Peers
from node.core.queue_view import QueueView
from node.core.requirements import Reservation, lent, reservation

GIB = 1 << 30
ME = "me"
CAPACITY = Capacity(4.0, 8 * GIB)
SMALL = Requirements(cpu=1.0)
BIG = Requirements(cpu=4.0)
STEP_S = DEFAULT_SETTINGS.trickle_step_s


def tid(number: int) -> str:
    return f"01900000-0000-7000-8000-{number:012x}"


def view_of(*needs: Requirements, now: float = 0.0, nodes: int = 1) -> QueueView:
    view = QueueView(ME, CAPACITY)
    view.set_nodes({f"peer{n}": CAPACITY for n in range(nodes - 1)})
    for number, requirements in enumerate(needs):
        view.add(tid(number), requirements, now=now)
    return view


def situation(now: float = 0.0, *, cpu: float = 4.0, memory: int = 8 * GIB, **more: float) -> Situation:
    return Situation(now=now, free=lent(Capacity(cpu, memory)), **more)  # type: ignore[arg-type]  # numbers by name


def first_with_steps(steps: int, nodes: int) -> str:
    """A task id for which this node has these steps among so many equal nodes."""
    for number in range(10_000):
        view = QueueView(ME, CAPACITY)
        view.set_nodes({f"peer{n}": CAPACITY for n in range(nodes - 1)})
        view.add(tid(number), SMALL, now=0.0)
        if view.get(tid(number)).steps() == steps:
            return tid(number)
    raise AssertionError(f"no task with {steps} steps among {nodes}")


# -- a node that is alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queue", "cpu", "expected"),
    [
        pytest.param([], 4.0, [], id="nothing queued"),
        pytest.param([SMALL], 4.0, [0], id="one task, claimed at once"),
        pytest.param([SMALL] * 6, 4.0, [0, 1, 2, 3], id="oldest first, no more than fits"),
        pytest.param([SMALL] * 6, 0.0, [], id="full"),
        pytest.param([SMALL] * 6, 0.999, [], id="a hair too little"),
        pytest.param([SMALL] * 6, -1.0, [], id="overdrawn by an adopted task"),
        pytest.param([BIG, SMALL, SMALL], 4.0, [0], id="the oldest takes all"),
        pytest.param([BIG, SMALL, SMALL], 2.0, [1, 2], id="what does not fit is passed over while it is young"),
        pytest.param([SMALL, BIG, SMALL], 4.0, [0, 2], id="a kind that stops fitting is left out, the next goes on"),
        pytest.param([Requirements(cpu=0.1)] * 12, 1.0, [0, 1, 2, 3], id="the window bounds what is claimed ahead"),
        pytest.param([Requirements(cpu=5.0), SMALL], 4.0, [1], id="what can never fit is no obstacle"),
        pytest.param([Requirements(memory_bytes=9 * GIB), SMALL], 4.0, [1], id="nor for memory"),
    ],
)
def test_alone(queue: list[Requirements], cpu: float, expected: list[int]) -> None:
    plan = plan_claims(view_of(*queue), situation(cpu=cpu))
    assert list(plan.claim) == [tid(number) for number in expected]


def test_memory_bounds_as_cpu_does() -> None:
    view = view_of(*[Requirements(cpu=0.1, memory_bytes=3 * GIB)] * 4)
    assert plan_claims(view, situation()).claim == (tid(0), tid(1))
    assert plan_claims(view, situation(memory=2 * GIB)).claim == ()


def test_task_without_declared_memory_needs_none() -> None:
    assert plan_claims(view_of(SMALL), situation(memory=0)).claim == (tid(0),)


def test_nothing_to_wait_for_but_events() -> None:
    assert plan_claims(view_of(SMALL), situation(cpu=0.0)) == FULL


@pytest.mark.parametrize(
    ("rate", "unstarted", "expected"),
    [
        (0.0, 0, DEFAULT_SETTINGS.claim_ahead_min),  # not measured yet
        (0.0, 3, DEFAULT_SETTINGS.claim_ahead_min - 3),
        (10.0, 0, DEFAULT_SETTINGS.claim_ahead_min),
        (500.0, 0, 50),  # what 500 starts/s start in 100 ms
        (500.0, 20, 30),
        (500.0, 50, 0),
        (500.0, 60, 0),
        (1e6, 0, DEFAULT_SETTINGS.claims_max),
    ],
)
def test_window(rate: float, unstarted: int, expected: int) -> None:
    assert claim_window(situation(start_rate_per_s=rate, unstarted=unstarted)) == expected


def test_full_window_claims_nothing_in_spite_of_capacity() -> None:
    assert plan_claims(view_of(SMALL), situation(unstarted=DEFAULT_SETTINGS.claim_ahead_min)) == FULL


# -- claiming ahead of the room ------------------------------------------------------------------------------------

HALF = Requirements(cpu=0.5)
LONG_QUEUE = DEFAULT_SETTINGS.backlog_tasks_per_node + 20


def full(now: float = 0.0, *, rate: float = 100.0, smallest: Requirements = SMALL, **more: float) -> Situation:
    """A node without free capacity, on which tasks end at this rate."""
    return situation(now, cpu=0.0, memory=0, end_rate_per_s=rate, smallest_end=reservation(smallest), **more)  # type: ignore[arg-type]  # numbers and a reservation by name


@pytest.mark.parametrize(
    ("rate", "ahead", "expected"),
    [
        (0.0, 0, 0),  # not measured, or nothing ended lately
        (9.0, 0, 0),  # not even one in 100 ms
        (10.0, 0, 1),
        (500.0, 0, 50),
        (500.0, 25, 25),  # half is used up: the next group
        (500.0, 26, 0),
        (500.0, 80, 0),  # the rate has fallen since
        (1e6, 0, DEFAULT_SETTINGS.claims_max),
    ],
)
def test_ahead_window(rate: float, ahead: int, expected: int) -> None:
    assert ahead_window(full(rate=rate, ahead=ahead)) == expected


def test_under_a_backlog_what_the_rate_of_ends_predicts_is_claimed_ahead() -> None:
    plan = plan_claims(view_of(*[SMALL] * LONG_QUEUE), full())
    assert plan.claim == ()
    assert plan.ahead == tuple(tid(number) for number in range(10))


def test_what_has_room_is_claimed_for_it_and_the_next_ahead() -> None:
    view = view_of(*[SMALL] * LONG_QUEUE)
    more = {"end_rate_per_s": 30.0, "smallest_end": reservation(SMALL)}
    plan = plan_claims(view, situation(cpu=2.0, **more))  # type: ignore[arg-type]  # numbers and a reservation by name
    assert plan.claim == (tid(0), tid(1))
    assert plan.ahead == (tid(2), tid(3), tid(4))


@pytest.mark.parametrize(
    "why_not",
    [
        pytest.param((view_of(*[SMALL] * LONG_QUEUE), full(rate=0.0)), id="nothing ended lately"),
        pytest.param((view_of(*[SMALL] * 10), full()), id="a short queue: a peer may be idle"),
        pytest.param((view_of(*[SMALL] * LONG_QUEUE, nodes=4), full(10.0)), id="short for so many nodes"),
        pytest.param((view_of(*[SMALL] * LONG_QUEUE), full(smallest=HALF)), id="an end may free less than it needs"),
        pytest.param(
            (view_of(*[SMALL] * LONG_QUEUE), full(unstarted=DEFAULT_SETTINGS.claim_ahead_min)), id="starts lag behind"
        ),
        pytest.param(
            (view_of(BIG, *[SMALL] * LONG_QUEUE), full(DEFAULT_SETTINGS.hold_after_s + 1)), id="capacity is held"
        ),
    ],
)
def test_nothing_is_claimed_ahead_where(why_not: tuple[QueueView, Situation]) -> None:
    view, at = why_not
    assert plan_claims(view, at).ahead == ()


def test_nothing_is_claimed_ahead_past_an_older_task_that_would_be_passed_over_so() -> None:
    """What is claimed ahead takes all room as it comes free: a task that some ends would make room for finds none."""
    view = view_of(HALF, HALF, SMALL, *[HALF] * LONG_QUEUE)
    assert plan_claims(view, full(smallest=HALF)).ahead == (tid(0), tid(1))


def test_ahead_too_each_node_takes_those_of_its_own_rank_first() -> None:
    nodes = {f"node{n}": CAPACITY for n in range(4)}
    chosen: list[str] = []
    for me in nodes:
        view = QueueView(me, CAPACITY)
        view.set_nodes(nodes)
        for number in range(400):
            view.add(tid(number), SMALL, now=0.0)
        chosen += plan_claims(view, full(5.0)).ahead
    assert len(chosen) == 40
    assert len(set(chosen)) >= 38


# -- among peers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_waits_by_rank_and_says_until_when(steps: int) -> None:
    task_id = first_with_steps(steps, nodes=12)
    view = QueueView(ME, CAPACITY)
    view.set_nodes({f"peer{n}": CAPACITY for n in range(11)})
    view.add(task_id, SMALL, now=100.0)
    plan = plan_claims(view, situation(100.0))
    if steps == 0:
        assert plan.claim == (task_id,)
        return
    assert plan.claim == ()
    assert plan.look_again_at is not None
    assert plan.look_again_at == pytest.approx(100.0 + steps * STEP_S, rel=0.01)
    assert plan_claims(view, situation(plan.look_again_at)).claim == (task_id,)


def test_ranks_are_those_of_nodes_that_could_hold_it() -> None:
    view = QueueView(ME, CAPACITY)
    view.set_nodes({f"small{n}": Capacity(1.0, GIB) for n in range(50)})
    for number in range(20):
        view.add(tid(number), BIG, now=0.0)
    assert all(view.get(tid(number)).steps() == 0 for number in range(20))


def test_busy_node_lets_others_go_first_and_a_half_busy_one_does_not() -> None:
    view = QueueView(ME, CAPACITY)
    view.set_nodes({"peer0": CAPACITY})
    task_id = first_with_steps(0, nodes=2)
    view.add(task_id, SMALL, now=0.0)
    assert plan_claims(view, situation(0.0, load=0.5)).claim == (task_id,)
    busy = plan_claims(view, situation(0.0, load=0.9))
    assert busy.claim == ()
    assert busy.look_again_at is not None
    assert STEP_S < busy.look_again_at < 2 * STEP_S


def test_wait_grows_with_rank_and_load_and_falls_with_age() -> None:
    tasks = {steps: first_with_steps(steps, nodes=64) for steps in (0, 1, 2, 5)}

    def wait(steps: int = 1, age_s: float = 0.0, load: float = 0.0) -> float:
        view = QueueView(ME, CAPACITY)
        view.set_nodes({f"peer{n}": CAPACITY for n in range(63)})
        view.add(tasks[steps], SMALL, now=0.0, age_s=age_s)
        plan = plan_claims(view, situation(0.0, load=load))
        assert bool(plan.claim) is (plan.look_again_at is None)
        return plan.look_again_at or 0.0

    assert wait(0) == 0.0
    assert wait(1) < wait(2) < wait(5) < 0.11
    assert wait(load=0.0) == wait(load=0.5) < wait(load=0.75) < wait(load=1.0) == wait(load=7.0)
    assert wait(age_s=0.0) > wait(age_s=15.0) > wait(age_s=29.0) > wait(age_s=30.0) == wait(age_s=1e9) == 0.0


def test_step_is_longer_under_a_backlog_and_where_etcd_is_slow() -> None:
    task_id = first_with_steps(1, nodes=2)

    def wait(extra: int, round_trip_s: float) -> float:
        view = QueueView(ME, CAPACITY)
        view.set_nodes({"peer0": CAPACITY})
        view.add(task_id, SMALL, now=0.0)
        for number in range(extra):
            view.add(tid(20_000 + number), SMALL, now=-1000.0)  # old: their waits are over
        plan = plan_claims(view, situation(0.0, round_trip_s=round_trip_s))
        assert plan.look_again_at is not None
        return plan.look_again_at

    assert wait(0, 0.0) == pytest.approx(0.020, rel=0.01)
    assert wait(100, 0.0) == pytest.approx(0.100, rel=0.01)
    assert wait(0, 0.050) == pytest.approx(0.150, rel=0.01)


def test_under_a_backlog_own_tasks_come_first_and_none_is_passed_over_for_long() -> None:
    mine = [tid(n) for n in range(400) if _steps(tid(n), 2) == 0][:30]
    older = min(tid(n) for n in range(400) if _steps(tid(n), 2) == 1)
    view = QueueView(ME, CAPACITY)
    view.set_nodes({"peer0": CAPACITY})
    for task_id in [older, *mine]:
        view.add(task_id, SMALL, now=0.0)
    waits_over = 50.0
    first = plan_claims(view, situation(waits_over, cpu=2.0))
    assert older not in first.claim
    assert len(first.claim) == 2
    # It came to the front just now; a second later it counts as own.
    again = plan_claims(view, situation(waits_over + DEFAULT_SETTINGS.passed_over_s, cpu=4.0))
    assert list(again.claim) == sorted([older, *mine])[:4]


def _steps(task_id: str, nodes: int) -> float:
    view = QueueView(ME, CAPACITY)
    view.set_nodes({f"peer{n}": CAPACITY for n in range(nodes - 1)})
    view.add(task_id, SMALL, now=0.0)
    return view.get(task_id).steps()


def test_exactly_one_of_the_nodes_that_agree_goes_first() -> None:
    nodes = {f"n{n}": Capacity(1.0 + n % 3, GIB) for n in range(17)}
    needs = reservation(SMALL)
    views = {node_id: Peers(node_id, nodes, my_capacity=capacity) for node_id, capacity in nodes.items()}
    draw = random.Random(1)
    firsts: dict[str, int] = dict.fromkeys(nodes, 0)
    for _ in range(3000):
        point = draw.getrandbits(33)
        ranks = {}
        for node_id, peers in views.items():
            place = peers.place(needs)
            assert place is not None
            ranks[node_id] = place.rank(point)
        owners = [node_id for node_id, rank in ranks.items() if rank == 0]
        assert len(owners) == 1
        assert max(ranks.values()) < len(nodes)
        firsts[owners[0]] += 1
    share = {cpu: sum(n for node_id, n in firsts.items() if nodes[node_id].cpu == cpu) for cpu in (1.0, 3.0)}
    of = {cpu: sum(1 for capacity in nodes.values() if capacity.cpu == cpu) for cpu in (1.0, 3.0)}
    assert 2.4 < (share[3.0] / of[3.0]) / (share[1.0] / of[1.0]) < 3.6


def test_a_thousand_nodes_are_through_in_ten_steps() -> None:
    nodes = {f"n{n}": CAPACITY for n in range(1000)}
    place = Peers("n7", nodes, my_capacity=CAPACITY).place(reservation(SMALL))
    assert place is not None
    draw = random.Random(2)
    assert 9 < max(place.steps(draw.getrandbits(33)) for _ in range(5000)) < 10


def test_no_two_nodes_claim_at_the_same_moment_where_the_first_is_full() -> None:
    """Ranks 1 and 2 once shared a step, and raced for each task whose first node had no room: at a load of 70 % it was
    1.5 claims tried for each one won."""
    nodes = {f"n{n}": CAPACITY for n in range(8)}
    for number in range(50):
        at = []
        for me in nodes:
            view = QueueView(me, CAPACITY)
            view.set_nodes(nodes)
            view.add(tid(number), SMALL, now=0.0)
            at.append(plan_claims(view, situation(0.0)).look_again_at or 0.0)
        first, second, third, *_ = sorted(at)
        assert first == 0.0
        # More than a claim and the news of it take.
        assert second > 0.015
        assert third - second > 0.010


# -- big and old ---------------------------------------------------------------------------------------------------


def test_holds_capacity_for_an_old_big_task_but_not_against_older_ones() -> None:
    view = view_of(SMALL, BIG, SMALL, SMALL)
    young = plan_claims(view, situation(1.0, cpu=2.0))
    assert young.claim == (tid(0), tid(2))
    assert young.held_for is None
    old = plan_claims(view, situation(DEFAULT_SETTINGS.hold_after_s, cpu=2.0))
    assert old.claim == (tid(0),)
    assert old.held_for == tid(1)


def test_held_capacity_goes_to_the_big_task_once_it_fits() -> None:
    view = view_of(BIG, SMALL, SMALL)
    assert plan_claims(view, situation(15.0, cpu=3.0)).claim == ()
    assert plan_claims(view, situation(15.0, cpu=4.0)).claim == (tid(0),)


def test_only_what_the_big_task_needs_is_held() -> None:
    hungry = Requirements(cpu=1.0, memory_bytes=8 * GIB)
    view = view_of(hungry, SMALL, Requirements(cpu=1.0, memory_bytes=GIB))
    plan = plan_claims(view, situation(15.0, cpu=3.0, memory=4 * GIB))
    # 2 CPUs are left beside it, and no memory.
    assert plan.claim == (tid(1),)
    assert plan.held_for == tid(0)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_capacity_is_held_for_the_oldest_of_several(numbers: tuple[int, int]) -> None:
    view = QueueView(ME, CAPACITY)
    for number, requirements in zip(numbers, (BIG, Requirements(cpu=3.0)), strict=True):
        view.add(tid(number), requirements, now=0.0)
    assert plan_claims(view, situation(15.0, cpu=2.0)).held_for == tid(0)


def test_holding_ends_for_a_while_and_the_plan_says_when() -> None:
    view = view_of(BIG, SMALL)
    after = DEFAULT_SETTINGS.hold_after_s
    plan = plan_claims(view, situation(after, cpu=2.0))
    assert plan.claim == ()
    assert plan.look_again_at == pytest.approx(3 * after)
    assert plan_claims(view, situation(3 * after, cpu=2.0)).claim == (tid(1),)


@pytest.mark.parametrize(
    ("age", "steps", "holding", "until"),
    [
        (0.0, 0, False, 10.0),
        (10.0, 0, True, 30.0),
        (29.9, 0, True, 30.0),
        (30.0, 0, False, 40.0),
        (40.0, 0, True, 120.0),
        (120.0, 0, False, 160.0),
        (160.0, 0, True, 480.0),
        (19.9, 1, False, 20.0),
        (20.0, 1, True, 60.0),
    ],
)
def test_phases_of_holding_grow(age: float, steps: int, holding: bool, until: float) -> None:
    assert is_holding(age, steps, DEFAULT_SETTINGS) == (holding, until)


# -- never beyond capacity -----------------------------------------------------------------------------------------

_needs = st.builds(
    Requirements,
    cpu=st.floats(0.01, 5.0),
    memory_bytes=st.none() | st.integers(1 << 20, 9 * GIB),
)


@given(
    queue=st.lists(_needs, max_size=30),
    cpu=st.floats(-1.0, 4.0),
    memory=st.integers(-GIB, 8 * GIB),
    nodes=st.integers(1, 5),
    now=st.floats(0.0, 500.0),
    load=st.floats(0.0, 1.5),
    rate=st.floats(0.0, 2000.0),
)
def test_claims_always_fit_together_and_are_repeatable(
    *, queue: list[Requirements], cpu: float, memory: int, nodes: int, now: float, load: float, rate: float
) -> None:
    view = view_of(*queue, nodes=nodes)
    seen = situation(now, cpu=cpu, memory=memory, load=load, start_rate_per_s=rate)
    plan = plan_claims(view, seen)
    taken = Reservation()
    for task_id in plan.claim:
        taken = taken + view.get(task_id).kind.needs
    assert seen.free.holds(taken)
    assert len(set(plan.claim)) == len(plan.claim) <= claim_window(seen)
    assert plan.look_again_at is None or plan.look_again_at > now
    assert plan_claims(view, seen) == plan


def test_ten_thousand_queued_and_a_hundred_claims_are_cheap() -> None:
    """Counts looks, not time: a node that is alone looks at no more offers than it claims."""
    capacity = Capacity(1000.0, 64 * GIB)
    view = QueueView(ME, capacity)
    draw = random.Random(3)
    for _ in range(10_000):
        view.add(str(uuid.UUID(int=draw.getrandbits(128))), DEFAULT_REQUIREMENTS, now=0.0)
    seen = Situation(now=50.0, free=lent(capacity), start_rate_per_s=1000.0)
    plan = plan_claims(view, seen, ClaimSettings())
    assert len(plan.claim) == 100
    looked_at = [offer for offer in view.oldest_first(view.kinds()) if offer.front_at is not None]
    assert [offer.task_id for offer in looked_at] == list(plan.claim)
