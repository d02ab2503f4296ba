"""Which etcd is taken, and which is refused."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from etcd.binary import EtcdNotFound, find_etcd, parse_version, refusal


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ((3, 3, 27), True),
        ((3, 4, 22), True),
        ((3, 4, 23), False),
        ((3, 4, 45), False),
        ((3, 5, 0), True),
        ((3, 5, 1), True),
        ((3, 5, 2), True),
        ((3, 5, 3), False),
        ((3, 5, 30), False),
        ((3, 6, 0), False),
    ],
)
def test_refused_versions(version: tuple[int, int, int], refused: bool) -> None:
    why = refusal(version)
    assert (why is not None) == refused
    if why:
        assert ".".join(map(str, version)) in why
        assert "3.4.23" in why


def test_version_from_output() -> None:
    assert parse_version("etcd Version: 3.5.30\nGit SHA: x\n") == (3, 5, 30)
    assert parse_version("something else 1.2.3") is None


def program(directory: Path, version: str) -> Path:
    """A program that says it is that etcd."""
    directory.mkdir(exist_ok=True)
    path = directory / "etcd"
    path.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_order_setting_then_beside_the_interpreter_then_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, beside, on_path = (
        program(tmp_path / name, version) for name, version in (("a", "3.5.30"), ("b", "3.4.45"), ("c", "3.4.23"))
    )
    monkeypatch.setattr(sys, "executable", str(beside.parent / "python"))
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    assert find_etcd(str(named)).version == (3, 5, 30)
    assert find_etcd(None).version_text == "3.4.45"
    beside.unlink()
    found = find_etcd(None)
    assert (found.path, found.version) == (on_path, (3, 4, 23))
    on_path.unlink()
    with pytest.raises(EtcdNotFound, match="make setup"):
        find_etcd(None)


def test_a_setting_that_cannot_be_used_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    program(tmp_path / "good", "3.5.30")
    with pytest.raises(EtcdNotFound, match="not an executable file"):
        find_etcd(str(tmp_path / "absent"))
    with pytest.raises(EtcdNotFound, match=r"3\.5\.1"):
        find_etcd(str(program(tmp_path / "bad", "3.5.1")))


def test_a_program_that_is_no_etcd_is_named(tmp_path: Path) -> None:
    path = tmp_path / "etcd"
    path.write_text("#!/bin/sh\necho hello\n")
    path.chmod(0o755)
    with pytest.raises(EtcdNotFound, match="hello"):
        find_etcd(str(path))
