"""Who sandboxes run as: the ring of user ids, the ranges that may be asked for, and what a user namespace maps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.config import FIRST_UID, NOBODY, UID_COUNT, SpawnerConfig, problem_of_uids
from isolation.errors import StepFailed
from isolation.users import Users, find_users

WHOLE = "         0          0 4294967295\n"


@pytest.fixture
def proc_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "self").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def _write_maps(tmp_path: Path, uid_map: str, gid_map: str) -> None:
    (tmp_path / "self" / "uid_map").write_text(uid_map)
    (tmp_path / "self" / "gid_map").write_text(gid_map)


CONFIG = SpawnerConfig("h", Path("/s"))


@given(st.integers(2, 6), st.lists(st.booleans(), max_size=60), st.data())
def test_the_longest_unused_goes_first(count: int, takes: list[bool], data: st.DataObject) -> None:
    users = Users(2000, count, 7, start=data.draw(st.integers(0, count - 1)))
    unused: list[int] = []  # in the order in which they were given back; those never used are older than all of these
    never_used = set(range(2000, 2000 + count))
    taken: list[int] = []
    for take in takes:
        if take and len(taken) < count:
            uid = users.take()
            assert uid not in taken
            if never_used:
                never_used.remove(uid)
            else:
                assert uid == unused.pop(0)
            taken.append(uid)
        elif taken:
            uid = taken.pop(data.draw(st.integers(0, len(taken) - 1)))
            users.give_back(uid)
            unused.append(uid)


def test_a_range_can_be_used_up() -> None:
    users = Users(2000, 2, 7, start=1)
    assert [users.take(), users.take()] == [2001, 2000]
    with pytest.raises(StepFailed, match="every user id"):
        users.take()
    users.give_back(2000)
    assert users.take() == 2000


def test_one_is_for_all() -> None:
    users = Users(NOBODY, 1, NOBODY)
    assert [users.take() for _ in range(3)] == [NOBODY] * 3
    users.give_back(NOBODY)
    assert users.take() == NOBODY


def test_each_start_begins_elsewhere(tmp_path: Path, proc_fd: int) -> None:
    _write_maps(tmp_path, WHOLE, WHOLE)
    found = [find_users(CONFIG, proc_fd) for _ in range(8)]
    assert {missing for _, missing in found} == {()}
    first = {users.take() for users, _ in found}
    assert first <= set(range(FIRST_UID, FIRST_UID + UID_COUNT))
    assert len(first) > 1
    assert {users.gid for users, _ in found} == {FIRST_UID}


@pytest.mark.parametrize(
    ("uid_map", "gid_map"),
    [
        ("0 100000 65536\n", WHOLE),
        (WHOLE, "0 100000 65536\n"),
        (f"0 0 {FIRST_UID}\n{FIRST_UID} {FIRST_UID} {UID_COUNT - 1}\n", WHOLE),
        (f"0 0 {FIRST_UID + 5}\n{FIRST_UID + 6} {FIRST_UID + 6} {UID_COUNT}\n", WHOLE),
        ("", ""),
    ],
)
def test_a_range_that_is_not_mapped_falls_back_and_is_told(
    tmp_path: Path, proc_fd: int, uid_map: str, gid_map: str
) -> None:
    _write_maps(tmp_path, uid_map, gid_map)
    users, missing = find_users(CONFIG, proc_fd)
    assert (users.take(), users.take(), users.gid) == (NOBODY, NOBODY, NOBODY)
    assert len(missing) == 1
    assert "a user of its own for each task" in missing[0]


def test_a_range_may_be_mapped_in_pieces(tmp_path: Path, proc_fd: int) -> None:
    pieces = f"{FIRST_UID + 5} 900005 {UID_COUNT}\n0 0 {FIRST_UID + 5}\n"
    _write_maps(tmp_path, pieces, WHOLE)
    assert find_users(CONFIG, proc_fd)[1] == ()


@pytest.mark.parametrize(
    ("first", "count", "problem"),
    [
        (FIRST_UID, UID_COUNT, ""),
        (NOBODY, 1, ""),
        (100_000, 1, ""),
        (2**31 - 10, 10, ""),
        (2**31 - 10, 11, "negative"),
        (999, 2, "system's own"),
        (0, 1, "system's own"),
        (-5, 1, "system's own"),
        (100_000, 0, "from 1"),
        (100_000, 1_000_001, "from 1"),
        (65_000, 1000, "65534"),
        (65_535, 1, "65535"),
    ],
)
def test_ranges(first: int, count: int, problem: str) -> None:
    said = problem_of_uids(first, count)
    assert problem in said
    assert bool(said) == bool(problem)
