"""What was there is kept, and something is in place, wherever the change is broken off."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from node.datadir import DataDirError
from node.files import exchange
from node.recovery.put_in_place import check_can_change, put_in_place


@pytest.fixture
def made_and_there(tmp_path: Path) -> tuple[Path, Path]:
    made, there = tmp_path / "copy" / "data", tmp_path / "data"
    for directory, content in ((made, "new"), (there, "old")):
        directory.mkdir(parents=True)
        (directory / "file").write_text(content)
    return made, there


def test_what_was_there_is_kept_beside_what_takes_its_place(made_and_there: tuple[Path, Path], tmp_path: Path) -> None:
    made, there = made_and_there
    kept = put_in_place(made, there, "data.before-")
    assert kept is not None
    assert kept.name.startswith("data.before-2")
    assert ((there / "file").read_text(), (kept / "file").read_text()) == ("new", "old")
    assert not made.exists()
    assert put_in_place(kept, tmp_path / "elsewhere", "data.before-") is None
    assert (tmp_path / "elsewhere" / "file").read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_was_there_is_kept_however_it_ends_after_the_change(
    made_and_there: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """What the operator's command clears when it ends is the place of the copy."""
    made, there = made_and_there

    def exchange_and_end(one: Path, other: Path) -> None:
        exchange(one, other)
        raise error

    monkeypatch.setattr("node.recovery.put_in_place.exchange", exchange_and_end)
    with pytest.raises(error):
        put_in_place(made, there, "data.before-")
    shutil.rmtree(made.parent)
    (kept,) = there.parent.glob("data.before-*")
    assert ((there / "file").read_text(), (kept / "file").read_text()) == ("new", "old")


def test_an_error_changes_nothing(made_and_there: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made, there = made_and_there

    def fail(_one: Path, _other: Path) -> None:
        raise OSError(errno.EIO, "simulated")

    monkeypatch.setattr("node.recovery.put_in_place.exchange", fail)
    with pytest.raises(OSError, match="simulated"):
        put_in_place(made, there, "data.before-")
    assert ((there / "file").read_text(), (made / "file").read_text()) == ("old", "new")
    assert not list(there.parent.glob("data.before-*"))


def test_data_that_cannot_be_exchanged_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    there, link = tmp_path / "data", tmp_path / "link"
    check_can_change(there)
    there.mkdir()
    check_can_change(there)
    link.symlink_to(there)
    with pytest.raises(DataDirError, match="symbolic link"):
        check_can_change(link)
    with pytest.raises(DataDirError, match="mount point"):
        check_can_change(Path("/proc"))
