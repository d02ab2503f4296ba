"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from node.files import exchange, write_atomic


def test_it_replaces_and_sets_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o077)
    try:
        write_atomic(path, b"one", mode=0o644)
        write_atomic(path, b"two", mode=0o644)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_bytes(b"mine")
    path.symlink_to(target)
    write_atomic(path, b"new")
    assert target.read_bytes() == b"mine"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


def test_an_exchange_leaves_no_moment_without_either(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    missing: list[Path] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            missing.extend(path for path in (one, other) if not path.exists())

    watching = threading.Thread(target=watch)
    watching.start()
    for _ in range(3000):
        exchange(one, other)
    over.set()
    watching.join()
    assert missing == []
    (one / "file").write_text("of one")
    exchange(one, other)
    assert (other / "file").read_text() == "of one"
