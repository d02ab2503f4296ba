"""Scratch directories, and their removal in small steps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from isolation.scratch import SPARE, STEP_ENTRIES, TRASH, ScratchRoot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "scratch"


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _tidy(scratch: ScratchRoot) -> int:
    steps = 1
    while not scratch.tidy():
        steps += 1
    return steps


def test_made_and_removed(root: Path) -> None:
    scratch = ScratchRoot(root)
    assert root.stat().st_mode & 0o777 == 0o700
    scratch.make("a", os.getuid(), os.getgid())
    with pytest.raises(FileExistsError):
        scratch.make("a", os.getuid(), os.getgid())
    scratch.remove("a")
    scratch.remove("a")
    assert names_in(root) == [SPARE, TRASH]
    scratch.close()
    assert names_in(root) == []


def test_an_empty_one_is_used_again_as_if_it_were_new(root: Path) -> None:
    scratch = ScratchRoot(root)
    first = scratch.make("a", os.getuid(), os.getgid())
    inode = (root / first).stat().st_ino
    scratch.remove("a")
    second = scratch.make("b", os.getuid(), os.getgid())
    assert second == scratch.path_of("b")
    assert (root / second).stat().st_ino == inode
    assert names_in(root) == [SPARE, TRASH]
    scratch.remove("b")
    scratch.close()
    assert names_in(root) == []


@pytest.mark.parametrize("trace", ["mode", "attribute", "file"])
def test_one_with_a_trace_of_its_task_is_not_used_again(root: Path, trace: str) -> None:
    scratch = ScratchRoot(root)
    own = root / scratch.make("a", os.getuid(), os.getgid())
    if trace == "mode":
        own.chmod(0o711)
    elif trace == "attribute":
        os.setxattr(own, "user.message", b"to the next")
    else:
        (own / "file").touch()
    scratch.remove("a")
    assert names_in(root / SPARE) == []
    second = root / scratch.make("b", os.getuid(), os.getgid())
    assert second.stat().st_mode & 0o777 == 0o700
    assert os.listxattr(second) == []
    assert names_in(second) == []
    _tidy(scratch)
    scratch.remove("b")
    scratch.close()


def test_removal_of_much_goes_in_steps(root: Path) -> None:
    scratch = ScratchRoot(root)
    own = root / scratch.make("a", os.getuid(), os.getgid())
    for i in range(STEP_ENTRIES * 3):
        (own / str(i)).touch()
    scratch.remove("a")
    assert names_in(root) == [SPARE, TRASH]  # out of the way at once
    assert _tidy(scratch) >= 3
    assert names_in(root / TRASH) == []
    scratch.close()


def test_deep_nesting_takes_no_depth(root: Path) -> None:
    scratch = ScratchRoot(root)
    own = root / scratch.make("a", os.getuid(), os.getgid())
    here = os.open(own, os.O_RDONLY)
    for _ in range(3000):  # far beyond the recursion limit, and PATH_MAX
        os.mkdir("d" * 20, dir_fd=here)
        deeper = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    scratch.remove("a")
    _tidy(scratch)
    assert names_in(root / TRASH) == []
    scratch.close()


def test_links_are_removed_and_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    scratch = ScratchRoot(root)
    own = root / scratch.make("a", os.getuid(), os.getgid())
    (own / "link").symlink_to(outside)
    (own / "dangling").symlink_to("/nowhere")
    os.mkfifo(own / "fifo")
    scratch.remove("a")
    _tidy(scratch)
    assert names_in(root / TRASH) == []
    assert (outside / "kept").exists()
    scratch.close()


def test_a_full_disk_is_no_error_of_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no block for one more name in the trash: it is put there later, and nothing else suffers."""
    scratch = ScratchRoot(root)
    for name in ("a", "b"):
        (root / scratch.make(name, os.getuid(), os.getgid()) / "file").touch()

    def rename(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "rename", rename)
        scratch.remove("a")
    assert names_in(root / scratch.make("a", os.getuid(), os.getgid())) == []
    scratch.remove("b")
    _tidy(scratch)
    scratch.remove("a")
    assert names_in(root / TRASH) == []
    scratch.close()
    assert names_in(root) == []


def test_what_an_earlier_run_left_is_removed(root: Path) -> None:
    (root / "old" / "sub").mkdir(parents=True)
    (root / "file").touch()
    (root / "link").symlink_to("/etc")
    (root / TRASH / "t1" / "t2").mkdir(parents=True)
    scratch = ScratchRoot(root)
    _tidy(scratch)
    assert names_in(root) == [SPARE, TRASH]
    assert names_in(root / TRASH) == []
    scratch.close()
