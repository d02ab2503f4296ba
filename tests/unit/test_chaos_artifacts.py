"""What a failed run keeps: bounded, without secrets, and it says what was cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos import artifacts
from tests.chaos.artifacts import Kept, keep_node


@dataclass
class Node:
    """As much of a node as is kept of it."""

    data_dir: Path
    log: Path
    name: str = "a"
    host_id: str = "host"
    is_up: bool = True


def test_of_long_files_the_end_is_kept_and_that_is_told(tmp_path: Path) -> None:
    source = tmp_path / "long"
    source.write_text("".join(f"line {number:04d}\n" for number in range(100)))
    kept = Kept(tmp_path / "kept")
    kept.end_of("some/long", source, limit_bytes=25)
    kept.end_of("absent", tmp_path / "nothing")
    assert (tmp_path / "kept/some/long").read_text() == "line 0098\nline 0099\n"
    assert len(kept.cut) == 1


def test_a_hole_at_the_beginning_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "holed"
    with source.open("wb") as file:
        file.seek(4096)
        file.write(b"half\nwhole\n")
    Kept(tmp_path / "kept").end_of("holed", source)
    assert (tmp_path / "kept/holed").read_bytes() == b"half\nwhole\n"


def test_of_long_texts_the_beginning_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "FILE_BYTES", 20)
    kept = Kept(tmp_path)
    kept.text("text", (f"line {number}" for number in range(100)))
    assert (tmp_path / "text").read_text() == "line 0\nline 1\n"
    assert len(kept.cut) == 1


def test_of_a_data_directory_small_files_are_kept_and_no_keys(tmp_path: Path) -> None:
    data = tmp_path / "node"
    for name, size in {
        "cluster.json": 10, "pki/node.key": 10, "pki/ca.crt": 10, "etcd/etcd.log": 100_000, "etcd/data/db": 100_000,
        "logs/00/task.1.stdout": 10,
    }.items():  # fmt: skip
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * size)
    log = tmp_path / "a.log"
    log.write_text("it said\n")
    keep_node(Kept(tmp_path / "kept"), Node(data, log))
    root = tmp_path / "kept/nodes/a"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert found == {"output.log", "state.txt", "data/cluster.json", "data/pki/ca.crt", "data/etcd/etcd.log"}
