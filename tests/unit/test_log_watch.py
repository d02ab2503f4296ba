"""Output beyond its limit: what stays on the disk, and what readers are told. Real files, written at full speed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.core.log_cap import Span
from node.running import log_watch
from node.running.log_reader import LogReader, Piece
from node.running.logs import LogStore, OpenLog
from tests.support.holes import can_punch
from tests.support.require import require
from tests.support.wait import wait_until

TASK = "01930000-0000-7000-8000-0000000000ab"
MIB = 1 << 20
LIMIT = 2 * MIB
#: The file system's own tables, and the block that a cut leaves.
TABLES = 64 * 1024

#: Writes lines of 16 bytes, each of which is its own number, so that any part of a file can be checked.
WRITER = """
import os, sys
total = int(sys.argv[1])
for start in range(0, total // 16, 4096):
    os.write(1, b"".join(b"%015d\\n" % n for n in range(start, start + 4096)))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    require("holes", is_there=can_punch(tmp_path), reason="the file system of the test's directory punches no holes")
    made = LogStore(tmp_path, LIMIT)
    yield made
    made.close()


def text(offset: int, length: int) -> bytes:
    """What WRITER writes there."""
    first = offset // 16
    lines = b"".join(b"%015d\n" % n for n in range(first, (offset + length) // 16 + 1))
    return lines[offset - first * 16 :][:length]


def writer(opened: OpenLog, total: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(total)], stdout=opened.stdout, stderr=opened.stderr)


def read_all(store: LogStore, stream: str = "stdout") -> list[Piece]:
    reader = store.find(TASK, 1, stream)
    assert reader is not None
    with reader:
        reader.end_here()
        return list(iter_pieces(reader))


def iter_pieces(reader: LogReader) -> Iterator[Piece]:
    while not (piece := reader.read()).is_empty:
        yield piece


def check(pieces: list[Piece], size: int) -> int:
    """That they are the stream, in order, but for what is told as missing; gives how much that is."""
    position = missing = 0
    for piece in pieces:
        position += piece.missing_bytes
        missing += piece.missing_bytes
        assert piece.offset == position
        assert piece.data == text(position, len(piece.data))
        position += len(piece.data)
    assert position == size
    return missing


def on_disk(opened: OpenLog) -> int:
    return sum(os.fstat(fd).st_blocks for fd in opened.fds) * 512


async def test_of_a_long_output_the_beginning_and_the_end_are_kept(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    process = writer(opened, 40 * MIB)
    await wait_until(lambda: process.poll() is not None, 60)
    watched = os.dup(opened.stdout)
    await store.settle(TASK, 1)
    assert os.fstat(watched).st_size == 40 * MIB  # offsets are what they were
    assert os.fstat(watched).st_blocks * 512 <= LIMIT + TABLES
    os.close(watched)
    pieces = read_all(store)
    assert check(pieces, 40 * MIB) >= 38 * MIB
    gap = next(piece for piece in pieces if piece.missing_bytes)
    assert gap.offset - gap.missing_bytes >= LIMIT // 2 - TABLES
    assert 40 * MIB - gap.offset >= LIMIT // 4


async def test_blocks_are_freed_while_it_is_written(store: LogStore) -> None:
    """Without a watch the whole of it would be there until its end."""
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, 10 * MIB))
    assert on_disk(opened) >= 10 * MIB
    await wait_until(lambda: on_disk(opened) <= LIMIT + TABLES, 10)
    os.write(opened.stdout, text(10 * MIB, 10 * MIB))
    await wait_until(lambda: on_disk(opened) <= LIMIT + TABLES, 10)
    await store.settle(TASK, 1)
    check(read_all(store), 20 * MIB)


async def test_nothing_is_lost_of_what_is_written_while_holes_are_punched(store: LogStore) -> None:
    """A writer that is always far over its limit: its blocks are no reason to touch its end."""
    opened = store.open(TASK, 1)
    block = b"x" * (MIB // 2)
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set() and written < 2048 * MIB:
            written += os.write(opened.stdout, block)

    thread = threading.Thread(target=write)
    thread.start()
    await wait_until(lambda: written >= 512 * MIB, 100)
    stop.set()
    thread.join()
    assert os.fstat(opened.stdout).st_size == written
    await store.settle(TASK, 1)


async def test_a_follower_beside_a_fast_writer_gets_no_zeros(store: LogStore) -> None:
    """It reads where holes are being punched: what it gets is what was written, or told as missing."""
    opened = store.open(TASK, 1)
    process = writer(opened, 160 * MIB)
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    pieces: list[Piece] = []
    ended = threading.Event()

    def follow() -> None:
        while True:
            is_last = ended.is_set()
            pieces.extend(iter_pieces(reader))
            if is_last:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    await wait_until(lambda: process.poll() is not None, 120)
    await store.settle(TASK, 1)
    ended.set()
    thread.join()
    reader.close()
    check(pieces, 160 * MIB)


@pytest.mark.parametrize("hole", [Span(0, MIB), Span(MIB // 2, MIB), Span(0, MIB // 2), Span(65536, 131072)])
async def test_a_hole_that_is_punched_between_the_question_and_the_read(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, hole: Span
) -> None:
    """The reader asked where data are, then they are punched, then it reads zeros."""
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, MIB))
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    real = os.pread
    zeros: list[bool] = []

    def late(fd: int, size: int, offset: int) -> bytes:
        if not zeros:
            log_watch.punch(opened.stdout, hole)
        data = real(fd, size, offset)
        zeros.append(b"\0" in data)
        return data

    monkeypatch.setattr(os, "pread", late)
    with reader:
        pieces = []
        while not (piece := reader.read(MIB)).is_empty:
            pieces.append(piece)
    monkeypatch.undo()
    assert zeros[0], "the punch came too late to be seen"
    assert check(pieces, MIB) == hole.length
    await store.settle(TASK, 1)


async def test_output_that_is_cut_off_between_the_question_and_the_read(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, b"old" * 1000)
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    real = os.pread

    def late(fd: int, size: int, offset: int) -> bytes:
        monkeypatch.undo()
        os.truncate(opened.spares[0], 0)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", late)
    with reader:
        assert reader.read().is_empty
        os.write(opened.stdout, b"new\n")
        assert reader.read() == Piece(0, 0, b"new\n")
    await store.settle(TASK, 1)


async def test_each_stream_is_sure_of_half(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stderr, text(0, LIMIT // 2))
    os.write(opened.stdout, text(0, 10 * MIB))
    await wait_until(lambda: on_disk(opened) <= LIMIT + TABLES, 10)
    await store.settle(TASK, 1)
    assert check(read_all(store, "stderr"), LIMIT // 2) == 0
    assert check(read_all(store), 10 * MIB) >= 10 * MIB - LIMIT // 2


async def test_who_was_handed_a_descriptor_of_it_cannot_fill_it_either(store: LogStore) -> None:
    """By a task that is over, over a socket in a shared directory."""
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, MIB))
    handed_on = os.dup(opened.stdout)
    await store.settle(TASK, 1)
    path = store.path(TASK, 1, "stdout")
    before = len(descriptors_of(path))
    os.write(handed_on, text(MIB, 20 * MIB))
    assert path.stat().st_blocks * 512 >= 20 * MIB
    await wait_until(lambda: path.stat().st_blocks * 512 <= LIMIT + TABLES, 20)
    assert before > 1
    os.close(handed_on)
    await wait_until(lambda: descriptors_of(path) == [], 20, what="it is watched no more")


def descriptors_of(path: Path) -> list[Path]:
    """Of this process."""
    found = []
    for place in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if place.readlink() == path:
                found.append(place)
    return found


async def test_a_log_that_nobody_holds_is_watched_no_more(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, b"x")
    await store.settle(TASK, 1)
    assert descriptors_of(store.path(TASK, 1, "stdout")) == []


async def test_output_within_the_limit_is_left_alone(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, LIMIT - MIB))
    os.write(opened.stderr, text(0, MIB))
    await store.settle(TASK, 1)
    assert check(read_all(store), LIMIT - MIB) == check(read_all(store, "stderr"), MIB) == 0


async def test_room_that_a_task_reserves_behind_its_output_is_let_go(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, 1000))
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size = 1
    assert libc.fallocate(opened.stdout, keep_size, ctypes.c_int64(0), ctypes.c_int64(64 * MIB)) == 0
    assert on_disk(opened) >= 64 * MIB
    await wait_until(lambda: on_disk(opened) <= LIMIT + TABLES, 10)
    await store.settle(TASK, 1)
    assert check(read_all(store), 1000) == 0


async def test_a_task_that_writes_into_its_holes_gains_nothing(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, 20 * MIB))
    await wait_until(lambda: on_disk(opened) <= LIMIT + TABLES, 10)
    again = os.open(opened.spares[0] if not opened.is_named else opened.names[0], os.O_WRONLY)
    os.pwrite(again, b"x" * 15 * MIB, 2 * MIB)
    os.close(again)
    assert on_disk(opened) >= 10 * MIB
    await wait_until(lambda: on_disk(opened) <= LIMIT + TABLES, 10)
    await store.settle(TASK, 1)


async def test_a_file_that_is_long_and_empty_is_told_as_missing(store: LogStore) -> None:
    """`truncate -s 1P /dev/stdout`: read at once, not for a day."""
    opened = store.open(TASK, 1)
    os.write(opened.stdout, b"begin\n")
    os.ftruncate(opened.stdout, 1 << 42)
    os.write(opened.stdout, b"end\n")
    await store.settle(TASK, 1)
    pieces = read_all(store)
    assert sum(piece.missing_bytes for piece in pieces) > (1 << 42) - MIB
    assert sum(len(piece.data) for piece in pieces) < MIB
    assert pieces[-1].data.endswith(b"end\n")
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        reader.seek_to_last_lines(1)
        assert b"".join(piece.data for piece in iter_pieces(reader)).endswith(b"end\n")


async def test_the_last_lines_begin_after_what_is_missing(store: LogStore) -> None:
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, 20 * MIB))
    await store.settle(TASK, 1)
    whole = read_all(store)
    gap = next(piece for piece in whole if piece.missing_bytes)
    reader = store.find(TASK, 1, "stdout")
    assert reader is not None
    with reader:
        reader.seek_to_last_lines(3)
        assert [piece.data for piece in iter_pieces(reader)] == [text(20 * MIB - 48, 48)]
        # More lines than are kept behind the gap: from the gap on, which is told.
        reader.seek_to_last_lines(1_000_000)
        assert reader.read() == gap


async def test_without_holes_what_comes_after_the_limit_is_kept(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(fd: int, span: Span) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(log_watch, "punch", cannot)
    opened = store.open(TASK, 1)
    os.write(opened.stdout, b"x" * 10 * MIB)
    await wait_until(lambda: on_disk(opened) == 0, 10)
    os.write(opened.stdout, b"then")
    await store.settle(TASK, 1)
    assert read_all(store) == [Piece(0, 0, b"then")]
    assert "cannot punch holes" in caplog.text


async def test_an_error_of_the_disk_is_told_and_costs_the_node_nothing(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(fd: int, span: Span) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(log_watch, "punch", fails)
    opened = store.open(TASK, 1)
    os.write(opened.stdout, text(0, 10 * MIB))
    await store.settle(TASK, 1)
    assert "cannot be cut" in caplog.text
    assert check(read_all(store), 10 * MIB) == 0


@pytest.mark.parametrize("trace", ["attribute", "room"])
async def test_a_file_with_a_trace_of_its_task_is_not_used_again(store: LogStore, trace: str) -> None:
    opened = store.open(TASK, 1)
    if trace == "attribute":
        os.setxattr(opened.stdout, "user.message", b"to the next")
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.fallocate(opened.stdout, 1, ctypes.c_int64(0), ctypes.c_int64(MIB)) == 0
    await store.settle(TASK, 1)
    for number in range(2, 300):
        assert opened.spares[0] not in store.open(TASK, number).spares
        await store.settle(TASK, number)
