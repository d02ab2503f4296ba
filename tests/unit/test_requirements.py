"""Reservations: integer arithmetic that never oversubscribes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.core.model import Capacity, Requirements
from node.core.requirements import Ledger, Reservation, fits, free_capacity, lent, reservation, why_not

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cpu", "milli"),
    [(1.0, 1000), (0.1, 100), (0.57, 570), (2.3, 2300), (4.35, 4350), (1.001, 1001), (0.0001, 1), (1.0001, 1001)],
)
def test_cpu_is_rounded_up_for_what_is_asked(cpu: float, milli: int) -> None:
    assert reservation(Requirements(cpu=cpu)).milli_cpu == milli


@pytest.mark.parametrize(("cpu", "milli"), [(2.0, 2000), (2.3, 2300), (1.9999, 1999), (0.29, 290)])
def test_cpu_is_rounded_down_for_what_is_lent(cpu: float, milli: int) -> None:
    assert lent(Capacity(cpu, 0)).milli_cpu == milli


def test_ten_tenths_fill_one_cpu_exactly() -> None:
    """Floats would not: 1.0 less ten times 0.1 is 1.4e-16 short of nothing, or over it."""
    tenth = Requirements(cpu=0.1)
    capacity = Capacity(1.0, GIB)
    assert fits(tenth, free_capacity(capacity, [tenth] * 9))
    assert free_capacity(capacity, [tenth] * 10).milli_cpu == 0
    assert not fits(tenth, free_capacity(capacity, [tenth] * 10))


@pytest.mark.parametrize(
    ("requirements", "free", "expected"),
    [
        (Requirements(cpu=1.0), Reservation(1000, 0), True),
        (Requirements(cpu=1.0), Reservation(999, GIB), False),
        (Requirements(cpu=1.0, memory_bytes=GIB), Reservation(1000, GIB), True),
        (Requirements(cpu=1.0, memory_bytes=GIB), Reservation(1000, GIB - 1), False),
        # Memory that is overdrawn is no obstacle for a task that declares none.
        (Requirements(cpu=1.0), Reservation(1000, -5), True),
        (Requirements(cpu=1.0, memory_bytes=1), Reservation(-1, GIB), False),
    ],
)
def test_fits(requirements: Requirements, free: Reservation, expected: bool) -> None:
    assert fits(requirements, free) is expected


def test_why_not_names_each_resource_that_is_short() -> None:
    capacity = Capacity(2.0, 2 * GIB)
    assert why_not(Requirements(cpu=2.0, memory_bytes=2 * GIB), capacity) == []
    assert why_not(Requirements(cpu=2.5), capacity) == ["needs 2.5 CPUs, the node lends 2"]
    assert why_not(Requirements(cpu=8.0, memory_bytes=3 * GIB // 2 * 2), capacity) == [
        "needs 8 CPUs, the node lends 2",
        "needs 3 GiB of memory, the node lends 2 GiB",
    ]


def test_times_counts_what_has_room_together() -> None:
    assert Reservation(4000, 10).times(Reservation(1500, 0)) == 2
    assert Reservation(4000, 10).times(Reservation(1000, 4)) == 2
    assert Reservation(-1, 10).times(Reservation(1, 0)) == 0


def test_load_is_the_scarcer_share() -> None:
    ledger = Ledger(Capacity(4.0, 4 * GIB))
    assert ledger.load == 0.0
    ledger.take("a", Requirements(cpu=1.0, memory_bytes=3 * GIB))
    assert ledger.load == 0.75
    ledger.adopt("b", Requirements(cpu=5.0))
    assert ledger.load == 1.5


@given(taken=st.lists(st.floats(0.01, 3.0), max_size=40), cpu=st.floats(0.01, 16.0))
def test_accepted_requirements_never_exceed_capacity(taken: list[float], cpu: float) -> None:
    capacity = Capacity(cpu, 0)
    booked: list[Requirements] = []
    for wish in taken:
        if fits(Requirements(cpu=wish), free_capacity(capacity, booked)):
            booked.append(Requirements(cpu=wish))
    # Within the thousandths that both sides are rounded to, on the safe side.
    assert sum(requirements.cpu for requirements in booked) <= cpu + 1e-6


class LedgerWalk(RuleBasedStateMachine):
    """The ledger against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.capacity = Capacity(3.0, 3 * GIB)
        self.ledger = Ledger(self.capacity)
        self.booked: dict[str, Requirements] = {}

    ids = st.sampled_from("abcdef")
    needs = st.builds(Requirements, cpu=st.floats(0.01, 2.0), memory_bytes=st.none() | st.integers(1, 2 * GIB))

    @rule(task_id=ids, needs=needs)
    def take(self, task_id: str, needs: Requirements) -> None:
        had_room = fits(needs, free_capacity(self.capacity, self.booked.values()))
        expected = task_id in self.booked or had_room
        assert self.ledger.take(task_id, needs) is expected
        if expected:
            self.booked.setdefault(task_id, needs)

    @rule(task_id=ids, needs=needs)
    def adopt(self, task_id: str, needs: Requirements) -> None:
        self.ledger.adopt(task_id, needs)
        self.booked.setdefault(task_id, needs)

    @rule(task_id=ids)
    def release(self, task_id: str) -> None:
        self.ledger.release(task_id)
        self.booked.pop(task_id, None)

    @invariant()
    def agrees(self) -> None:
        assert self.ledger.free == free_capacity(self.capacity, self.booked.values())
        assert self.ledger.free + self.ledger.reserved == lent(self.capacity)
        assert len(self.ledger) == len(self.booked)
        assert all(task_id in self.ledger for task_id in self.booked)


TestLedgerWalk = LedgerWalk.TestCase
