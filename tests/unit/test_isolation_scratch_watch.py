"""Scratch directories held to their limits: real trees, a clock and a free space of the test's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation.scratch_policy import AGAIN_S, Space
from isolation.scratch_watch import ScratchWatch

MIB = 1 << 20
LIMIT = 64 * MIB
FREE = Space(100_000 * MIB, 10_000_000)


class Bench:
    """A watch, and what it reads and says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 100.0
        self.free = FREE
        self.is_broken = False
        self.over: list[tuple[str, str]] = []
        #: Whose processes the test itself has.
        self.own: set[str] = set()
        #: Names of which the processes were asked for: one for each walk.
        self.walks: list[str] = []
        self.fds = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in (root, "/proc")]
        self.watch = ScratchWatch(
            *self.fds,
            pids_of=self._pids_of,
            on_over=lambda name, words: self.over.append((name, words)),
            clock=lambda: self.now_s,
            limit_bytes=LIMIT,
            free=self._free,
        )

    def _pids_of(self, name: str) -> list[int]:
        self.walks.append(name)
        return [os.getpid()] if name in self.own else []

    def _free(self) -> Space:
        if self.is_broken:
            raise OSError(5, "broken disk")
        return self.free

    def add(self, name: str, wanted_bytes: int | None = None) -> None:
        (self.root / name).mkdir()
        self.watch.add(name, wanted_bytes)

    def write(self, name: str, mib: int) -> None:
        """Reserved is as good as written."""
        fd = os.open(self.root / name, os.O_CREAT | os.O_WRONLY)
        os.posix_fallocate(fd, 0, mib * MIB)
        os.close(fd)
        self.lose(mib)

    def lose(self, mib: int) -> None:
        self.free = Space(self.free.bytes - mib * MIB, self.free.files)

    def look(self, after_s: float = 0.1) -> None:
        """One look, and every step that it asks for."""
        self.now_s += after_s
        if self.watch.look():
            while not self.watch.step():
                pass

    def close(self) -> None:
        self.watch.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = Bench(tmp_path)
    yield made
    made.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_is_walked_while_nothing_is_written(bench: Bench) -> None:
    for number in range(10):
        bench.add(str(number))
    for _ in range(20):
        bench.look()
    assert bench.walks == []


def test_what_is_over_is_told_once_and_with_its_size(bench: Bench) -> None:
    bench.add("a")
    bench.add("b")
    bench.write("b/file", 70)
    for _ in range(10):
        bench.look()
    assert bench.over == [("b", "its scratch directory held 70.0 MiB or more, and may hold 64.0 MiB")]


def test_what_was_over_once_and_is_not_when_looked_at_again_goes_on(bench: Bench) -> None:
    bench.add("a")
    bench.write("a/file", 70)
    bench.now_s += 0.1
    assert bench.watch.look()
    while len(bench.walks) < 2:
        assert not bench.watch.step()
    (bench.root / "a" / "file").unlink()
    while not bench.watch.step():
        pass
    assert bench.over == []


def test_each_has_its_own_limit_but_no_more_than_all(bench: Bench) -> None:
    bench.add("small", 8 * MIB)
    bench.add("large", 1000 * MIB)
    bench.write("small/file", 10)
    bench.write("large/file", 60)
    bench.look()
    bench.look()
    assert [name for name, _ in bench.over] == ["small"]
    bench.write("large/more", 10)
    bench.look(AGAIN_S)
    assert [name for name, _ in bench.over] == ["small", "large"]


def test_what_others_free_hides_it_for_a_while_only(bench: Bench) -> None:
    bench.add("a")
    bench.write("a/file", 70)
    bench.lose(-70)
    bench.look()
    assert bench.over == []
    bench.look(AGAIN_S)
    assert [name for name, _ in bench.over] == ["a"]


def test_one_that_ends_while_it_is_walked_is_forgotten(bench: Bench) -> None:
    bench.add("a")
    bench.write("a/file", 70)
    bench.now_s += 0.1
    assert bench.watch.look()
    bench.watch.remove("a")
    bench.watch.remove("a")
    assert bench.watch.step()
    assert bench.watch.is_idle
    assert bench.over == []


def test_a_directory_that_cannot_be_opened_holds_nobody_up(bench: Bench) -> None:
    bench.add("gone")
    (bench.root / "gone").rmdir()
    bench.add("a")
    bench.write("a/file", 70)
    bench.look()
    bench.look(AGAIN_S)
    bench.look()
    assert [name for name, _ in bench.over] == ["a"]


def test_a_disk_that_does_not_answer_is_no_end(bench: Bench) -> None:
    bench.add("a")
    bench.write("a/file", 70)
    bench.is_broken = True
    bench.look()
    assert bench.over == []
    bench.look(AGAIN_S)
    assert [name for name, _ in bench.over] == ["a"]


def test_files_in_messages_count_when_much_is_gone_and_for_a_while(bench: Bench) -> None:
    bench.add("a")
    bench.add("b")
    bench.own.add("a")
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    socket.send_fds(ends[0], [b"x"], [bench.fds[0]])
    bench.lose(100)
    bench.look()
    bench.look(1.0)
    assert bench.over == [], "it may have been in passing"
    bench.look(AGAIN_S)
    bench.look()
    for end in ends:
        end.close()
    ((name, words),) = bench.over
    assert name == "a"
    assert words.startswith("100.0 MiB of its scratch file system are gone")


def test_files_in_messages_are_nothing_while_nothing_is_gone(bench: Bench) -> None:
    bench.add("a")
    bench.add("b")
    bench.own.add("a")
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    socket.send_fds(ends[0], [b"x"], [bench.fds[0]])
    bench.write("b/file", 60)
    for _ in range(4):
        bench.look(AGAIN_S)
    for end in ends:
        end.close()
    assert bench.over == []
