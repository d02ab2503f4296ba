"""Counting a tree that its task changes meanwhile, in steps."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isolation import scratch_tree
from isolation.scratch_policy import Space
from isolation.scratch_tree import Count, Nameless, Tree

MIB = 1 << 20
LIMIT = Space(1024 * MIB, 100_000)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "a").mkdir()
    before = descriptors()
    yield tmp_path / "a"
    assert descriptors() == before
    # pytest's own removal is recursive, and what is deeper than that stays.
    subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def walk(root: Path, limit: Space = LIMIT) -> Count:
    """The whole of it in one go."""
    count = Count(limit)
    parent = os.open(root.parent, os.O_RDONLY)
    tree = Tree(parent, root.name, count)
    steps = 0
    while not tree.step():
        steps += 1
        assert steps < 100_000, "it has no end"
    tree.close()
    os.close(parent)
    return count


def blocks(root: Path) -> int:
    """As du(1) counts, without the directory itself."""
    seen: dict[int, int] = {}
    for directory, _, names in os.walk(root):
        for path in [Path(directory), *(Path(directory, name) for name in names)]:
            found = path.lstat()
            seen[found.st_ino] = found.st_blocks * 512
    del seen[root.stat().st_ino]
    return sum(seen.values())


def fill(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)


def test_an_ordinary_tree(root: Path) -> None:
    for number in range(20):
        (root / f"d{number}" / "e").mkdir(parents=True)
        for i in range(30):
            fill(root / f"d{number}" / "e" / str(i), 5000 * (i % 3))
    count = walk(root)
    assert count.used == Space(blocks(root), 20 + 20 + 600)


def test_an_empty_one(root: Path) -> None:
    assert walk(root).used == Space(0, 0)


def test_deep_nesting_takes_no_descriptors_and_no_path(root: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(3000):  # far beyond the recursion limit, PATH_MAX and the descriptors of a process
        os.mkdir("d" * 20, dir_fd=here)
        deeper = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=deeper))
        os.close(here)
        here = deeper
    os.close(here)
    assert walk(root).files == 6000


def test_links_are_counted_and_not_followed(root: Path) -> None:
    fill(root.parent / "outside", MIB)
    (root / "link").symlink_to(root.parent / "outside")
    (root / "up").symlink_to("..")
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "fifo")
    count = walk(root)
    assert count.files == 4
    assert count.bytes < MIB


def test_a_sparse_file_has_its_blocks_and_several_names_have_them_once(root: Path) -> None:
    (root / "sparse").touch()
    os.truncate(root / "sparse", 1 << 40)
    fill(root / "a", MIB)
    for number in range(10):
        os.link(root / "a", root / f"b{number}")
    count = walk(root)
    assert count.files == 12
    assert MIB <= count.bytes < 2 * MIB


def test_names_count_as_files_so_that_the_walk_has_an_end(root: Path) -> None:
    (root / "a").touch()
    for number in range(500):
        os.link(root / "a", root / f"b{number}")
    count = walk(root, Space(MIB, 100))
    assert count.is_over
    assert count.files == 101  # not further than it must


@pytest.mark.parametrize("limit", [Space(10 * MIB, 100_000), Space(1024 * MIB, 50)])
def test_it_ends_when_the_limit_is_passed(root: Path, limit: Space) -> None:
    for number in range(300):
        fill(root / str(number), 100_000)
    count = walk(root, limit)
    assert count.is_over
    assert count.files < 150


def in_steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tree, Count, int]:
    """A walk of one entry or directory per step."""
    monkeypatch.setattr(scratch_tree, "STEP_ENTRIES", 1)
    count = Count(LIMIT)
    parent = os.open(root.parent, os.O_RDONLY)
    return Tree(parent, root.name, count), count, parent


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_what_is_moved_meanwhile_leads_nowhere_else(root: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """At any step, the directory that the walk is in goes elsewhere, where the names are the same: it must not walk up
    into what is not its own, and must still see what was not moved."""
    outside = root.parent
    for number in range(4):
        (root / f"d{number}" / "e" / "f").mkdir(parents=True)
        (root / f"d{number}" / "g" / "h").mkdir(parents=True)
        (outside / f"d{number}" / "g").mkdir(parents=True)
        fill(outside / f"d{number}" / "large", 10 * MIB)
    tree, count, parent = in_steps(root, monkeypatch)
    for step in itertools.count():
        assert step < 1000
        if step == at:
            for number in range(4):
                (root / f"d{number}" / "e").rename(outside / f"d{number}" / "e")
        if tree.step():
            break
    tree.close()
    os.close(parent)
    assert count.bytes < 10 * MIB
    assert 12 <= count.files <= 20


def test_what_goes_before_it_is_looked_at_counts_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a task that makes and removes files all the time keeps the walk in one directory."""
    for number in range(100):
        (root / str(number)).touch()
    tree, count, parent = in_steps(root, monkeypatch)
    for _ in range(10):
        tree.step()
    for number in range(100):
        (root / str(number)).unlink()
    while not tree.step():
        pass
    tree.close()
    os.close(parent)
    assert count.files == 100


def test_a_file_that_is_renamed_without_end_counts_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readdir may give it under each of its names."""
    fill(root / "large0", 4 * MIB)
    for number in range(200):
        (root / f"other{number}").touch()
    tree, count, parent = in_steps(root, monkeypatch)
    for step in itertools.count():
        (root / f"large{step}").rename(root / f"large{step + 1}")
        if tree.step():
            break
    tree.close()
    os.close(parent)
    assert count.bytes < 8 * MIB


def test_a_tree_that_goes_while_it_is_walked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "d" / "e" / "f").mkdir(parents=True)
    tree, count, parent = in_steps(root, monkeypatch)
    for _ in range(4):
        tree.step()
    for name in ("d/e/f", "d/e", "d"):
        (root / name).rmdir()
    while not tree.step():
        pass
    tree.close()
    os.close(parent)
    assert count.files <= 3


def nameless(count: Count) -> Count:
    proc = os.open("/proc", os.O_RDONLY)
    found = Nameless(proc, [os.getpid(), 2**22 + 1], count)
    while not found.step():
        pass
    found.close()
    os.close(proc)
    return count


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_files_without_a_name_are_found_while_somebody_has_them(root: Path, how: str) -> None:
    fill(root / "a", 4 * MIB)
    fd = os.open(root / "a", os.O_RDWR)
    assert nameless(walk(root)).bytes < 8 * MIB, "with a name it counts once"
    with contextlib.ExitStack() as kept:
        if how == "open":
            kept.callback(os.close, fd)
        else:
            kept.enter_context(mapped(fd))
            os.close(fd)
        (root / "a").unlink()
        assert nameless(walk(root)).bytes >= 4 * MIB
    assert nameless(walk(root)).bytes < 4 * MIB


@contextmanager
def mapped(fd: int) -> Iterator[None]:
    """By mmap(2) itself: Python's keeps a descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = ctypes.c_void_p(libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0)))
    try:
        yield
    finally:
        libc.munmap(address, ctypes.c_size_t(4096))


def test_a_thread_may_have_descriptors_of_its_own(root: Path) -> None:
    """And is found by them, though the number of its process leads to those of another thread alone."""
    fill(root / "a", 4 * MIB)
    fd = os.open(root / "a", os.O_RDWR)
    (root / "a").unlink()
    is_apart, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        ctypes.CDLL(None).unshare(0x400)  # CLONE_FILES
        is_apart.set()
        may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert is_apart.wait(20)
        os.close(fd)  # here; there it stays open
        assert nameless(walk(root)).bytes >= 4 * MIB
    finally:
        may_end.set()
        thread.join()
    assert nameless(walk(root)).bytes < 4 * MIB


@pytest.mark.parametrize(("bound", "value"), [("_DESCRIPTORS_MAX", 2), ("_MAPS_BYTES_MAX", 300)])
def test_what_lies_behind_too_many_others_counts_as_hidden(
    root: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    assert nameless(walk(root)).in_flight == 0
    monkeypatch.setattr(scratch_tree, bound, value)
    assert nameless(walk(root)).in_flight == 1


def test_files_in_messages_are_known_to_be_there(root: Path) -> None:
    """Not how large they are: no name, no descriptor and no mapping leads to them."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    fill(root / "a", MIB)
    fd = os.open(root / "a", os.O_RDONLY)
    socket.send_fds(ends[0], [b"x"], [fd, fd])
    os.close(fd)
    (root / "a").unlink()
    assert nameless(walk(root)).in_flight == 2
    for end in ends:
        end.close()
    assert nameless(walk(root)).in_flight == 0
