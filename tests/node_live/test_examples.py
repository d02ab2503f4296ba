"""The examples do what they say, against a real node."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.checksum_tree import regular_files
from tests.support.node_process import LiveNode, live_node

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def node() -> Iterator[LiveNode]:
    with live_node("--cpu", "2") as started:
        yield started


def start(node: LiveNode, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"examples.{module}", *arguments],
        env=os.environ | {"PILFER_ADDRESS": node.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_checksums_are_those_of_the_files(node: LiveNode) -> None:
    # Part of the interpreter's own library would do as well, but tasks must see it: this is in every Debian.
    tree = Path("/usr/share/doc/libc6")
    if not tree.is_dir():
        tree = Path("/usr/share/perl5")
    files = regular_files(tree)
    assert files
    process = start(node, "checksum_tree", str(tree))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    expected = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}\n" for file in files)
    assert out.decode() == expected


def test_a_service_comes_to_its_own_end(node: LiveNode) -> None:
    process = start(node, "watch_service", "--ticks", "3", "--interval", "0.05")
    out, err = process.communicate(timeout=60)
    lines = out.decode().splitlines()
    assert process.returncode == 0, err
    assert [line for line in lines if "tick" in line] == [f"attempt 1: tick {n}" for n in (1, 2, 3)]
    assert lines[-1] == "complete: exited, exit code 0, 1 attempts"


def test_a_service_is_canceled_by_ctrl_c_and_tidies_up(node: LiveNode) -> None:
    process = start(node, "watch_service", "--ticks", "1000", "--interval", "0.05")
    assert process.stdout is not None
    while b"tick 1" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert b"cancel: requested" in out
    assert b"tidying up" in out
    assert out.decode().splitlines()[-1].startswith("canceled: canceled, exit code 0")
