"""A secret in the arguments: gone from what other users can read, on a real process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node import process_title

SECRET = "pilfer-join:AbC-123_xyz"

#: Answers each line on its input with whether the secret is gone, and goes on living so that it can be looked at.
_PROGRAM = """
import os, sys
from node.process_title import wipe
for line in sys.stdin:
    print(wipe(line.strip()), sys.argv[-1], os.environ.get("PILFER_JOIN_TOKEN"), flush=True)
"""


@contextmanager
def program(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **(environment or {})},
    )
    try:
        with process:
            yield process
            assert process.stdin is not None
            process.stdin.close()
    finally:
        process.kill()


def ask(process: subprocess.Popen[str], secret: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(secret + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def shown(process: subprocess.Popen[str], what: str) -> bytes:
    return Path(f"/proc/{process.pid}/{what}").read_bytes()


@pytest.mark.parametrize(
    "arguments", [("--token", SECRET), (f"--token={SECRET}",), ("start", "--token", SECRET, "--again", SECRET)]
)
def test_it_is_gone_from_the_arguments(arguments: tuple[str, ...]) -> None:
    with program(*arguments) as process:
        assert ask(process, "nothing of the kind").startswith("True")
        before = shown(process, "cmdline")
        assert SECRET.encode() in before
        # What Python knows of it stays: whoever needs the token has read it already, or reads it later.
        assert ask(process, SECRET) == f"True {arguments[-1]} None"
        assert shown(process, "cmdline") == before.replace(SECRET.encode(), b"*" * len(SECRET))


def test_it_is_gone_from_the_environment() -> None:
    with program(environment={"PILFER_JOIN_TOKEN": SECRET, "A": "a"}) as process:
        ask(process, "nothing of the kind")
        before = shown(process, "environ")
        assert f"PILFER_JOIN_TOKEN={SECRET}".encode() in before
        ask(process, SECRET)
        assert shown(process, "environ") == before.replace(SECRET.encode(), b"*" * len(SECRET))


@pytest.mark.parametrize("text", ["", "start", "a"])
def test_what_is_too_short_for_a_secret_stays(text: str) -> None:
    with program("start", "--token", "a") as process:
        ask(process, "nothing of the kind")  # it runs; before its exec there is nothing to be seen
        before = shown(process, "cmdline"), shown(process, "environ")
        assert ask(process, text) == "True a None"
        assert (shown(process, "cmdline"), shown(process, "environ")) == before


@pytest.mark.parametrize("stat", [b"", b"1 (a) b) S 1 2", b"1 (a) S " + b"0 " * 50])
def test_where_it_cannot_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stat: bytes
) -> None:
    path = tmp_path / "stat"
    path.write_bytes(stat)
    monkeypatch.setattr(process_title, "_STAT", path)
    with caplog.at_level(logging.WARNING):
        assert not process_title.wipe(SECRET)
    assert "--token-file" in caplog.text
    assert SECRET not in caplog.text


def test_memory_that_may_not_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process_title, "_MEMORY", tmp_path / "missing")
    assert not process_title.wipe(SECRET)
    assert "--token-file" in caplog.text
