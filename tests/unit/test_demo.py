"""The demo's own judgement: it has to notice wrong outputs."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from examples.demo import FILES_MAX, Piece, python_files, spread


@pytest.fixture
def piece(tmp_path: Path) -> Piece:
    source = tmp_path / "source.py"
    source.write_text("print('hello')\n")
    made = Piece(source, tmp_path / "0001-source.py")
    made.compressed.write_bytes(gzip.compress(source.read_bytes()))
    made.checksum.write_text(hashlib.sha256(source.read_bytes()).hexdigest() + "  -\n")
    return made


def test_right_outputs_are_right(piece: Piece) -> None:
    assert piece.find_fault() is None


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", gzip.compress(b"else", mtime=0), gzip.compress(b"print('hello')\n", mtime=0)[:-4]],
    ids=["empty", "rubbish", "of something else", "cut off"],
)
def test_a_wrong_archive_is_noticed(piece: Piece, content: bytes) -> None:
    piece.compressed.write_bytes(content)
    assert piece.find_fault()


@pytest.mark.parametrize("content", ["", "0" * 64, "rubbish"])
def test_a_wrong_checksum_is_noticed(piece: Piece, content: str) -> None:
    piece.checksum.write_text(content)
    assert piece.find_fault()


def test_a_missing_output_is_noticed(piece: Piece) -> None:
    piece.checksum.unlink()
    assert piece.find_fault()


def test_the_input_is_bounded_and_from_everywhere(tmp_path: Path) -> None:
    files = [tmp_path / f"{n:05d}.py" for n in range(1000)]
    chosen = spread(files)
    assert FILES_MAX / 2 < len(chosen) <= FILES_MAX
    assert chosen[-1] >= files[-4]
    assert spread(files[:7]) == files[:7]
    for file in files[:3]:
        file.touch()
    (tmp_path / "link.py").symlink_to(files[0])
    (tmp_path / "directory.py").mkdir()
    assert python_files([tmp_path]) == files[:3]
