"""When a scratch directory is measured, and what is too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.scratch_policy import (
    AGAIN_S,
    FILES_MAX,
    FILES_MIN,
    Known,
    Space,
    default_bytes,
    is_worth_measuring,
    limit_of,
    next_to_measure,
    routine_rest_s,
    unexplained_bytes,
    words,
)

MIB = 1 << 20
LIMIT = Space(1024 * MIB, 65_536)
FREE = Space(100_000 * MIB, 10_000_000)
EMPTY = Space(0, 0)


def fallen(mib: float, files: int = 0) -> Space:
    return Space(FREE.bytes - int(mib * MIB), FREE.files - files)


@pytest.mark.parametrize(
    ("wanted", "allowed", "expected"),
    [
        (None, 1024 * MIB, LIMIT),
        (512 * MIB, 1024 * MIB, Space(512 * MIB, 32_768)),
        (4096 * MIB, 1024 * MIB, LIMIT),
        (1 * MIB, 1024 * MIB, Space(1 * MIB, FILES_MIN)),
        (None, 1 << 50, Space(1 << 50, FILES_MAX)),
    ],
)
def test_what_a_tree_may_hold(wanted: int | None, allowed: int, expected: Space) -> None:
    assert limit_of(wanted, allowed) == expected


def test_by_default_a_quarter_of_the_file_system() -> None:
    assert default_bytes(400 * MIB) == 100 * MIB
    assert default_bytes(0) == 1  # of a file system that does not say: never without a limit


@pytest.mark.parametrize(
    ("used", "free", "after_s", "expected"),
    [
        # Nothing was written anywhere.
        (EMPTY, FREE, 1.0, False),
        # Half of what is left to it.
        (EMPTY, fallen(511), 1.0, False),
        (EMPTY, fallen(512), 1.0, True),
        (Space(1000 * MIB, 10), fallen(31), 1.0, False),
        # Near its limit: a thirty-second part of that, not less and less.
        (Space(1000 * MIB, 10), fallen(32), 1.0, True),
        (Space(1024 * MIB, 10), fallen(31), 1.0, False),
        # Files alone.
        (EMPTY, fallen(0, 32_767), 1.0, False),
        (EMPTY, fallen(0, 32_768), 1.0, True),
        # More is free than before: somebody removed much.
        (EMPTY, fallen(-500), 1.0, False),
        # From time to time anyway.
        (EMPTY, fallen(-500), AGAIN_S, True),
    ],
)
def test_when_it_is_worth_it(used: Space, free: Space, after_s: float, *, expected: bool) -> None:
    assert is_worth_measuring(Known(used, FREE, 10.0), LIMIT, free, 10.0 + after_s) is expected


@pytest.mark.parametrize(
    ("after_s", "free", "expected"),
    [
        # It took 2 s: not again within 2 s, however much is written.
        (1.9, fallen(5000), False),
        (2.1, fallen(5000), True),
        # And without a reason only after 20 times as long.
        (39.0, FREE, False),
        (40.0, FREE, True),
    ],
)
def test_a_large_tree_leaves_time_for_other_work(after_s: float, free: Space, *, expected: bool) -> None:
    assert is_worth_measuring(Known(EMPTY, FREE, 10.0, took_s=2.0), LIMIT, free, 10.0 + after_s) is expected


def test_nothing_is_walked_without_a_reason_while_that_is_not_due() -> None:
    known = Known(EMPTY, FREE, 10.0)
    late = 10.0 + 100 * AGAIN_S
    assert not is_worth_measuring(known, LIMIT, FREE, late, is_routine_due=False)
    assert is_worth_measuring(known, LIMIT, fallen(600), late, is_routine_due=False)
    assert next_to_measure([("a", known, LIMIT)], FREE, late, is_routine_due=False) is None
    assert routine_rest_s(0.01) == 1.0


def test_the_fullest_is_measured_first_then_the_newest() -> None:
    now = 11.0

    def tree(name: str, mib: int) -> tuple[str, Known, Space]:
        return name, Known(Space(mib * MIB, 0), FREE, 10.0), LIMIT

    trees = [tree("old", 0), tree("full", 900), tree("half", 500), tree("new", 0)]
    assert next_to_measure(trees, fallen(600), now) == "full"
    assert next_to_measure([trees[0], trees[3]], fallen(600), now) == "new"
    assert next_to_measure(trees, FREE, now) is None
    assert next_to_measure([], fallen(600), now) is None


@given(st.integers(0, 1024 * MIB), st.integers(0, 65_536), st.integers(0, 4096 * MIB), st.integers(0, 200_000))
def test_what_is_over_by_a_step_is_never_passed_over(used: int, files: int, written: int, made: int) -> None:
    """With nothing freed by others: once a tree holds more than its limit and the least step, it is measured."""
    known = Known(Space(used, files), FREE, 10.0)
    holds = Space(used + written, files + made)
    is_over = holds.bytes > LIMIT.bytes * 33 // 32 or holds.files > LIMIT.files * 33 // 32
    free = Space(FREE.bytes - written, FREE.files - made)
    assert not is_over or is_worth_measuring(known, LIMIT, free, 10.5)


@pytest.mark.parametrize(
    ("free", "used", "expected"),
    [
        (fallen(100), [], 100),
        (fallen(100), [30, 50], 20),
        (fallen(100), [200], 0),
        (fallen(-100), [], 0),
    ],
)
def test_what_is_gone_that_nobody_has(free: Space, used: list[int], expected: int) -> None:
    assert unexplained_bytes(FREE, free, [Space(mib * MIB, 1) for mib in used]) == expected * MIB


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (Space(1025 * MIB, 0), "its scratch directory held 1025.0 MiB or more, and may hold 1024.0 MiB"),
        (Space(0, 70_000), "its scratch directory held 70000 files or more, and may hold 65536"),
    ],
)
def test_what_is_told(used: Space, said: str) -> None:
    assert used.is_over(LIMIT)
    assert words(used, LIMIT) == said
