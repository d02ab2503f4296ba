"""The window of the queue: the oldest offers, no holes, bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.model import Capacity, Requirements
from node.core.queue_view import QueueView
from node.core.requirements import lent

CAPACITY = Capacity(4.0, 1 << 30)
SMALL = Requirements(cpu=1.0)
NEVER = Requirements(cpu=5.0)


def tid(number: int) -> str:
    return f"01900000-0000-7000-8000-{number:012x}"


def ids(view: QueueView) -> list[str]:
    return [offer.task_id for offer in view.oldest_first(view.kinds())]


def filled(numbers: list[int], *, limit: int = 10_000) -> QueueView:
    view = QueueView("me", CAPACITY, limit=limit)
    for number in numbers:
        view.add(tid(number), SMALL, now=0.0)
    return view


def test_keeps_the_order_of_ids_whatever_the_order_of_arrival_and_kind() -> None:
    view = filled([5, 1, 4])
    view.add(tid(2), Requirements(cpu=2.0), now=0.0)
    view.add(tid(3), SMALL, now=0.0)
    assert ids(view) == [tid(n) for n in (1, 2, 3, 4, 5)]
    assert len(list(view.kinds())) == 2


def test_twice_added_is_once_there_and_keeps_its_times() -> None:
    view = filled([1])
    view.add(tid(1), SMALL, now=50.0, age_s=9.0)
    assert len(view) == 1
    assert view.get(tid(1)).age_s(60.0) == 60.0


def test_removing_gives_the_offer_once() -> None:
    view = filled([1, 2])
    offer = view.remove(tid(1))
    assert offer is not None
    assert offer.requirements == SMALL
    assert view.remove(tid(1)) is None
    assert tid(1) not in view
    assert ids(view) == [tid(2)]
    view.remove(tid(2))
    assert list(view.kinds()) == []


def test_age_counts_from_the_submission_where_that_is_known() -> None:
    view = QueueView("me", CAPACITY)
    view.add(tid(1), SMALL, now=100.0, age_s=7.0)
    view.add(tid(2), SMALL, now=100.0, age_s=-3.0)  # a clock ahead of ours
    assert view.get(tid(1)).age_s(101.0) == 8.0
    assert view.get(tid(2)).age_s(101.0) == 1.0


def test_what_never_fits_is_counted_and_left_out() -> None:
    view = filled([1])
    view.add(tid(2), NEVER, now=0.0)
    view.add(tid(2), NEVER, now=0.0)
    view.add(tid(3), Requirements(memory_bytes=2 << 30), now=0.0)
    assert (len(view), view.never_fitting) == (1, 2)
    view.remove(tid(2))
    assert view.never_fitting == 1


def test_what_never_fits_does_not_fill_the_window() -> None:
    view = QueueView("me", CAPACITY, limit=3)
    for number in range(10):
        view.add(tid(number), NEVER, now=0.0)
    view.add(tid(10), SMALL, now=0.0)
    assert ids(view) == [tid(10)]
    assert not view.is_truncated
    assert view.never_fitting == 3  # memory is bounded there too


def state(view: QueueView) -> tuple[bool, bool]:
    return view.is_truncated, view.needs_listing


def test_full_window_keeps_the_oldest_and_has_no_holes() -> None:
    view = filled([10, 20, 30], limit=3)
    assert state(view) == (False, False)
    view.add(tid(40), SMALL, now=0.0)
    assert state(view) == (True, False)
    assert ids(view) == [tid(10), tid(20), tid(30)]
    view.add(tid(15), SMALL, now=0.0)  # older than the youngest kept: that one goes
    assert ids(view) == [tid(10), tid(15), tid(20)]
    view.remove(tid(10))
    view.add(tid(35), SMALL, now=0.0)  # 30 was left out, so nothing younger may come in before it
    assert ids(view) == [tid(15), tid(20)]


def test_asks_for_a_listing_when_most_of_a_truncated_window_is_used_up() -> None:
    view = filled(list(range(9)), limit=8)
    assert state(view) == (True, False)
    for number in range(5):
        view.remove(tid(number))
    assert state(view) == (True, False)
    view.remove(tid(5))
    assert state(view) == (True, True)
    view.reset([(tid(6), SMALL, 0.0), (tid(7), SMALL, 0.0), (tid(8), SMALL, 0.0)], now=1.0)
    assert state(view) == (False, False)
    assert ids(view) == [tid(6), tid(7), tid(8)]


def test_empty_queue_needs_no_listing() -> None:
    assert not filled([]).needs_listing


def test_listing_replaces_everything_and_keeps_known_times() -> None:
    view = filled([1, 2])
    view.get(tid(2)).front_at = 3.0
    view.add(tid(9), NEVER, now=0.0)
    view.reset([(tid(2), SMALL, 0.0), (tid(3), SMALL, 4.0)], now=10.0)
    assert ids(view) == [tid(2), tid(3)]
    assert view.never_fitting == 0
    assert (view.get(tid(2)).seen_at, view.get(tid(2)).front_at) == (0.0, 3.0)
    assert view.get(tid(3)).age_s(10.0) == 4.0


def test_new_peers_give_new_ranks() -> None:
    view = filled(list(range(50)))
    assert {view.get(tid(n)).steps() for n in range(50)} == {0}
    view.set_nodes({f"peer{n}": CAPACITY for n in range(7)})
    assert {round(2 ** view.get(tid(n)).steps()) - 1 for n in range(50)} == set(range(8))
    more = {f"peer{n}": CAPACITY for n in range(40)}
    view.set_nodes(more)
    fresh = QueueView("me", CAPACITY)
    fresh.set_nodes(more)
    for number in range(50):
        fresh.add(tid(number), SMALL, now=0.0)
        assert view.get(tid(number)).steps() == fresh.get(tid(number)).steps()
    view.set_nodes({})
    assert {view.get(tid(n)).steps() for n in range(50)} == {0}


_ops = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "list"]), st.integers(0, 30), st.sampled_from([0.5, 1.0, 2.0, 9.0])),
    max_size=60,
)


@pytest.mark.parametrize("limit", [1, 4])
@given(ops=_ops)
def test_window_is_a_prefix_of_the_queue(limit: int, ops: list[tuple[str, int, float]]) -> None:
    """Whatever happens: at most `limit` offers, and exactly the oldest of those told that can fit here."""
    view = QueueView("me", CAPACITY, limit=limit)
    queue: dict[str, float] = {}
    for op, number, cpu in ops:
        task_id = tid(number)
        if op == "add" and task_id not in queue:
            queue[task_id] = cpu
            view.add(task_id, Requirements(cpu=cpu), now=0.0)
        elif op == "remove":
            queue.pop(task_id, None)
            view.remove(task_id)
        elif op == "list":
            view.reset([(t, Requirements(cpu=c), 0.0) for t, c in sorted(queue.items())], now=1.0)
        fitting = sorted(t for t, c in queue.items() if c <= lent(CAPACITY).milli_cpu / 1000)
        kept = ids(view)
        assert len(kept) <= limit
        assert kept == fitting[: len(kept)]
        assert view.is_truncated or kept == fitting
        if op == "list":
            assert kept == fitting[:limit]
