"""The guest of `make test-v2`, as far as it can be had without one: its first files, and what is made of its words."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.initramfs import archive
from tests.guest.machine import Boot, GuestError, directory


def read_archive(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Name -> mode and content, by the kernel's description of the format."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        begin = at + (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[begin : begin + size])
        at = begin + (size + 3) // 4 * 4


def test_an_archive_is_what_the_kernel_reads() -> None:
    files = {"init": b"#!/bin/sh\n", "bin/x": b"", "three": b"abc"}
    data = archive(files, ("bin",))
    assert len(data) % 4 == 0  # so that another may follow
    found = read_archive(data)
    assert list(found) == ["bin", "init", "bin/x", "three"]
    assert found["bin"] == (0o040755, b"")
    assert {name: content for name, (mode, content) in found.items() if mode == 0o100755} == files


@contextmanager
def booted(place: Path, script: str) -> Iterator[Boot]:
    """A shell in the place of QEMU: its output is the guest's, and it writes the status file and the console itself."""
    (place / "status").touch()
    output, theirs = os.pipe()
    with subprocess.Popen(["sh", "-c", script], stdout=theirs, cwd=place) as process:
        os.close(theirs)
        try:
            yield Boot(place, output)
        finally:
            process.kill()
            os.close(output)


def test_the_exit_status_is_the_one_that_the_guest_says(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    # What a command prints does not count, nor how QEMU ends.
    script = "echo up 1.5 >>status; echo exit 0; printf '\\377'; echo exit 7 >>status; echo late; exit 3"
    with booted(tmp_path, script) as boot:
        assert boot.wait(30) == 7
    assert capfdbinary.readouterr().out == b"exit 0\n\xfflate\n"


@pytest.mark.parametrize("said", ["", "up 1.5\\n", "up 1.5\\nexit 0"], ids=["nothing", "up", "half-a-line"])
def test_a_guest_that_dies_is_a_failure_with_its_last_words(tmp_path: Path, said: str) -> None:
    script = f"printf '{said}' >>status; seq 100 >console; echo 'Kernel panic' >>console"
    with booted(tmp_path, script) as boot, pytest.raises(GuestError) as failed:
        boot.wait(30)
    lines = str(failed.value).splitlines()
    assert "before the command did" in lines[0]
    assert lines[-1] == "Kernel panic"
    assert "50" not in lines


def test_a_guest_that_hangs_is_a_failure(tmp_path: Path) -> None:
    with booted(tmp_path, "echo up 1 >>status; exec sleep 600") as boot, pytest.raises(GuestError, match="did not end"):
        boot.wait(0.3)


def test_what_killed_boots_left_is_removed_and_what_is_in_use_stays(tmp_path: Path) -> None:
    left = tmp_path / "boots" / "left"
    left.mkdir(parents=True)
    (left / "disk").write_text("x")
    with directory(tmp_path / "boots") as first, directory(tmp_path / "boots") as second:
        assert sorted((tmp_path / "boots").iterdir()) == sorted([first, second])
    assert list((tmp_path / "boots").iterdir()) == []
