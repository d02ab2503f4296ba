"""Log files: made, read forward, tailed, removed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.running.logs import SPARES_MAX, LogStore
from tests.support.wait import wait_until

TASK = "01930000-0000-7000-8000-0000000000ab"
OTHER = "01930000-0000-7000-8000-0000000001ab"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    made = LogStore(tmp_path)
    yield made
    made.close()


async def write(store: LogStore, data: bytes, task_id: str = TASK, attempt: int = 1) -> None:
    """An attempt that writes this and ends."""
    os.write(store.open(task_id, attempt).stdout, data)
    await store.settle(task_id, attempt)


def read(store: LogStore, task_id: str = TASK, attempt: int = 1, stream: str = "stdout") -> bytes:
    reader = store.find(task_id, attempt, stream)
    if reader is None:
        return b""
    with reader:
        return reader.read(1 << 20).data


def spares(root: Path) -> set[str]:
    return {entry.name for entry in (root / "spare").iterdir()}


async def test_a_reader_goes_on_where_it_stopped(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        assert reader.read().data == b""
        os.write(opened.stdout, b"one")
        assert reader.read().data == b"one"
        assert reader.read().data == b""
        os.write(opened.stdout, b"two")
        assert reader.read(2).data == b"tw"
        await store.settle(TASK, 1)
        assert reader.read().data == b"o"


async def test_a_reader_sees_what_comes_after_the_task_has_cut_its_output_off(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, b"a long line\n")
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        assert reader.read().data == b"a long line\n"
        os.truncate(opened.spares[0], 0)
        assert reader.read().data == b""
        os.write(opened.stdout, b"new\n")
        assert reader.read().data == b"new\n"
    await store.settle(TASK, 1)


@pytest.mark.parametrize(
    ("written", "lines", "expected"),
    [
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 99, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 0, b""),
        (b"\n\n\n", 2, b"\n\n"),
        (b"no newline at all", 1, b"no newline at all"),
        (b"x" * 200_000 + b"\n" + b"y" * 100_000 + b"\n", 1, b"y" * 100_000 + b"\n"),
        (b"\n" * 70_000, 65_537, b"\n" * 65_537),
    ],
)
async def test_tail_starts_at_the_last_lines(store: LogStore, written: bytes, lines: int, expected: bytes) -> None:
    await write(store, written)
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        reader.seek_to_last_lines(lines)
        assert reader.read(1 << 20).data == expected


async def test_attempts_and_streams_are_separate(store: LogStore) -> None:
    await write(store, b"first", attempt=1)
    opened = store.open(TASK, 2)
    os.write(opened.stderr, b"oops")
    await store.settle(TASK, 2)
    assert [read(store, attempt=n) for n in (1, 2, 3)] == [b"first", b"", b""]
    assert read(store, attempt=2, stream="stderr") == b"oops"


async def test_output_has_its_name_before_the_end_is_recorded(store: LogStore, tmp_path: Path) -> None:
    await write(store, b"kept")
    assert (tmp_path / TASK[-2:] / f"{TASK}.1.stdout").read_bytes() == b"kept"


async def test_output_of_a_task_that_runs_on_outlives_a_dead_node(store: LogStore, tmp_path: Path) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, b"so far")
    await wait_until(lambda: store.path(TASK, 1, "stdout").exists(), 5)
    os.write(opened.stdout, b", so good")
    after = LogStore(tmp_path)
    assert read(after) == b"so far, so good"
    after.close()
    await store.settle(TASK, 1)
    assert read(store) == b"so far, so good"


async def test_what_a_dead_node_had_made_ahead_is_removed(store: LogStore, tmp_path: Path) -> None:
    opened = store.open(TASK, 1)
    store.close()
    assert spares(tmp_path)
    opened.close()
    LogStore(tmp_path).close()
    assert not spares(tmp_path)


async def test_empty_files_do_not_pile_up(store: LogStore, tmp_path: Path) -> None:
    for number in range(500):
        store.open(TASK, number)
        await store.settle(TASK, number)
    store.close()
    assert len(spares(tmp_path)) < 2 * SPARES_MAX
    assert not list((tmp_path / TASK[-2:]).iterdir())


async def test_files_that_stayed_empty_are_used_again(store: LogStore, tmp_path: Path) -> None:
    """ext4 takes 30 times as long to make a file where many were removed in the last 5 s."""
    os.write(store.open(OTHER, 0).stdout, b"named")
    await store.settle(OTHER, 0)  # by the thread that makes the spares, after those: it makes no more meanwhile
    first = store.open(TASK, 1).spares
    await store.settle(TASK, 1)
    for number in range(1, SPARES_MAX):
        opened = store.open(OTHER, number)
        await store.settle(OTHER, number)
        if opened.spares[0] in first:
            return
    pytest.fail("never used again")


@pytest.mark.parametrize("how", [os.O_WRONLY | os.O_APPEND, os.O_RDONLY])
async def test_a_file_that_somebody_still_has_open_is_not_used_again(store: LogStore, tmp_path: Path, how: int) -> None:
    """A task may have handed its descriptor to another one; a reader may still follow."""
    opened = store.open(TASK, 1)
    path = opened.spares[0]
    kept = os.open(path, how)
    await store.settle(TASK, 1)
    try:
        for number in range(2 * SPARES_MAX):
            assert path not in store.open(OTHER, number).spares
    finally:
        os.close(kept)
        for number in range(2 * SPARES_MAX):
            await store.settle(OTHER, number)


async def test_a_descriptor_that_was_handed_on_keeps_its_file_from_being_used_again(store: LogStore) -> None:
    """The same open file, and not another one of the same path: as when it was passed over a socket."""
    opened = store.open(TASK, 1)
    path, kept = opened.spares[0], os.dup(opened.stdout)
    await store.settle(TASK, 1)
    try:
        for number in range(2 * SPARES_MAX):
            assert path not in store.open(OTHER, number).spares
    finally:
        os.close(kept)
        for number in range(2 * SPARES_MAX):
            await store.settle(OTHER, number)


async def test_remove_takes_every_file_of_that_task_and_no_other(store: LogStore) -> None:
    await write(store, b"x", attempt=1)
    await write(store, b"y", attempt=2)
    await write(store, b"z", task_id=OTHER)
    store.remove(TASK)
    store.remove(TASK)
    assert (read(store), read(store, OTHER)) == (b"", b"z")


async def test_files_may_be_appended_to_by_the_task_alone(store: LogStore) -> None:
    await write(store, b"x")
    assert store.path(TASK, 1, "stdout").stat().st_mode & 0o777 == 0o602
    assert store.path(TASK, 1, "stdout").parent.stat().st_mode & 0o777 == 0o700


def open_below(store: LogStore) -> list[str]:
    """Files of this store that the process has open; what others open and close meanwhile does not count."""
    directory = store.path(TASK, 1, "stdout").parent.parent.as_posix()
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    return sorted(target for target in targets if target.startswith(directory))


async def test_an_error_leaves_no_descriptor_open(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(store, b"x")
    before = open_below(store)
    real = os.open

    def second_fails(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            return real(path, flags, mode)
        monkeypatch.setattr(os, "open", fails)
        return real(path, flags, mode)

    def fails(path: str, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", second_fails)
    with pytest.raises(OSError):
        store.open(TASK, 2)
    monkeypatch.undo()
    assert open_below(store) == before
