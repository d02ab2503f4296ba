"""How long a client tries, and the ids it makes: pure, so told in numbers."""

from __future__ import annotations

import random
import threading
import uuid

import pytest

from pilfer._retry import Patience
from pilfer.ids import new_task_id


def pauses(patience: Patience, *, start: float = 0.0) -> list[float]:
    """The pauses of a call that fails at once, each time, until it gives up."""
    now, found = start, []
    while (pause_s := patience.pause_s(now)) is not None:
        found.append(pause_s)
        now += pause_s
    return found


@pytest.mark.parametrize("seed", range(20))
def test_patience_ends_and_pauses_grow_to_a_second(seed: int) -> None:
    found = pauses(Patience(10.0, None, random.Random(seed)))
    assert 9.0 < sum(found) <= 10.0
    assert found[0] <= 0.05
    assert max(found) <= 1.0
    for number, pause_s in enumerate(found):
        full = min(0.05 * 2**number, 1.0)
        assert full / 2 <= pause_s <= full


def test_the_callers_deadline_comes_first() -> None:
    assert sum(pauses(Patience(10.0, 3.0), start=0.0)) < 3.0


def test_patience_starts_anew_after_a_success() -> None:
    patience = Patience(1.0, None)
    assert pauses(patience)
    assert patience.pause_s(5.0) is None
    patience.succeeded()
    assert patience.pause_s(1000.0) is not None


def test_no_patience_is_one_try() -> None:
    assert Patience(0.0, None).pause_s(0.0) is None


def test_ids_of_many_threads_are_distinct_and_each_threads_are_in_order() -> None:
    found: list[list[str]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda ids=ids: ids.extend(new_task_id() for _ in range(5000))) for ids in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [task_id for ids in found for task_id in ids]
    assert len({*everything}) == 20_000
    assert all(ids == sorted(ids) for ids in found)
    made = uuid.UUID(everything[0])
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_an_id_holds_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    far = 5_000_000_000_123
    monkeypatch.setattr("time.time_ns", lambda: far * 1_000_000 + 500_000)
    assert uuid.UUID(new_task_id()).int >> 80 == far
