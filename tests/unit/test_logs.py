"""Log files: made, read forward, tailed, removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.logs import LogStore

TASK = "01930000-0000-7000-8000-0000000000ab"
OTHER = "01930000-0000-7000-8000-0000000001ab"


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(tmp_path)


def write(store: LogStore, data: bytes, task_id: str = TASK, attempt: int = 1) -> None:
    opened = store.create(task_id, attempt)
    os.write(opened.stdout, data)
    opened.close()


def tail(store: LogStore, lines: int) -> bytes:
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        reader.seek_to_last_lines(lines)
        return reader.read(1 << 20)


def test_a_reader_goes_on_where_it_stopped(store: LogStore) -> None:
    opened = store.create(TASK, 1)
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        assert reader.read() == b""
        os.write(opened.stdout, b"one")
        assert reader.read() == b"one"
        assert reader.read() == b""
        os.write(opened.stdout, b"two")
        assert reader.read(2) == b"tw"
        assert reader.read() == b"o"
    opened.close()


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
        (b"", 5, b""),
        (b"\n\n\n", 2, b"\n\n"),
        (b"no newline at all", 1, b"no newline at all"),
        (b"x" * 200_000 + b"\n" + b"y" * 100_000 + b"\n", 1, b"y" * 100_000 + b"\n"),
        (b"\n" * 70_000, 65_537, b"\n" * 65_537),
    ],
)
def test_tail_starts_at_the_last_lines(store: LogStore, written: bytes, lines: int, expected: bytes) -> None:
    write(store, written)
    assert tail(store, lines) == expected


def test_attempts_are_separate_and_start_empty(store: LogStore) -> None:
    write(store, b"first", attempt=1)
    write(store, b"second", attempt=2)
    write(store, b"", attempt=1)  # adopted again before it ever wrote
    assert tail(store, 10) == b""
    assert store.path(TASK, 2, "stdout").read_bytes() == b"second"


def test_remove_takes_every_file_of_that_task_and_no_other(store: LogStore) -> None:
    write(store, b"x", attempt=1)
    write(store, b"y", attempt=2)
    write(store, b"z", task_id=OTHER)
    store.remove(TASK)
    store.remove(TASK)
    assert store.task_ids() == {OTHER}
    assert store.find(TASK, 1, "stdout") is None


def test_a_reader_sees_what_comes_after_the_task_has_cut_its_output_off(store: LogStore) -> None:
    write(store, b"a long line\n")
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        assert reader.read() == b"a long line\n"
        os.truncate(store.path(TASK, 1, "stdout"), 0)
        assert reader.read() == b""
        store.path(TASK, 1, "stdout").write_bytes(b"new\n")
        assert reader.read() == b"new\n"


def test_files_may_be_appended_to_by_the_task_alone_and_links_are_not_followed(store: LogStore, tmp_path: Path) -> None:
    write(store, b"x")
    assert store.path(TASK, 1, "stdout").stat().st_mode & 0o777 == 0o602
    assert store.path(TASK, 1, "stdout").parent.stat().st_mode & 0o777 == 0o700
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    store.path(TASK, 2, "stderr").symlink_to(victim)
    with pytest.raises(OSError):
        store.create(TASK, 2)
    assert victim.read_bytes() == b"precious"


def test_a_full_directory_leaves_no_descriptor_open(store: LogStore, tmp_path: Path) -> None:
    write(store, b"x")
    store.path(TASK, 3, "stderr").mkdir()  # stands for whatever keeps the second file from being made
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        store.create(TASK, 3)
    assert len(os.listdir("/proc/self/fd")) == before
