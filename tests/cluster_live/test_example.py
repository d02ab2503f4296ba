"""`make cluster`, for a few seconds, with two nodes: three would first be waited for until all vote."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.lab import require_lab

pytestmark = pytest.mark.cluster


def test_a_cluster_to_look_at_works_for_a_while_and_leaves_nothing() -> None:
    require_lab()
    before = set(Path(tempfile.gettempdir()).glob("pilfer-cluster-*"))
    done = subprocess.run(
        [sys.executable, "-m", "examples.cluster", "--nodes", "2", "--seconds", "4"],
        capture_output=True,
        text=True,
        timeout=110.0,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "export PILFER_ADDRESS=unix:" in done.stdout
    finished = [int(number) for number in re.findall(r"done (\d+)", done.stdout)]
    assert finished, done.stdout
    assert finished[-1] > 0, done.stdout
    assert set(Path(tempfile.gettempdir()).glob("pilfer-cluster-*")) == before
