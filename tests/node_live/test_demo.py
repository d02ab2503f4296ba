"""`make demo` as a whole, set-up aside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.require import require

pytestmark = pytest.mark.node


def test_the_demo_works_and_leaves_its_outputs_alone_behind(tmp_path: Path) -> None:
    require("isolation", is_there=os.geteuid() == 0, reason="sandboxes need root")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "examples.demo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = tmp_path.iterdir()
    outputs = directory / "outputs"
    assert str(outputs) in done.stdout
    assert "all right" in done.stdout
    assert "tasks/s" in done.stdout
    # Neither the node's data nor its log is kept.
    assert list(directory.iterdir()) == [outputs]
    suffixes = [path.suffix for path in outputs.iterdir()]
    assert suffixes.count(".gz") == suffixes.count(".sha256") == len(suffixes) / 2
    assert len(suffixes) >= 400
    assert not [
        p.pid for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info.get("cmdline") or [])
    ]
