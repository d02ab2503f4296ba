"""A short piece of chaos: that it runs, and finds nothing; that it leaves nothing when it is interrupted. At length:
`make chaos`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.chaos.__main__ import INTERRUPTED
from tests.chaos.run import FLAGS, NODES, Chaos
from tests.chaos.traces import left_behind
from tests.support.lab import laboratory, require_lab
from tests.support.wait import wait_until_sync

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seed", [2])
def test_half_a_minute_of_chaos(seed: int) -> None:
    with laboratory(has_disks=True) as lab:
        lab.grow(*NODES, voters=len(NODES), flags=FLAGS)
        chaos = Chaos(lab, seed, print, has_operator=False)
        assert chaos.run(30.0) == []
        assert chaos.steps > 3


def test_an_interrupted_run_ends_everything(tmp_path: Path) -> None:
    require_lab()
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "10", "--artifacts", str(tmp_path / "kept")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as run:
        try:
            found: list[Path] = []

            def is_growing() -> bool:
                found[:] = Path(tempfile.gettempdir()).glob(f"pilfer-lab-{run.pid}-*/*.disk/node/host_id")
                return len(found) > 1

            wait_until_sync(is_growing, 60.0, what="two nodes have begun")
            directory, hosts = found[0].parents[2], [path.read_text().strip() for path in found]
            assert all(len(host_id) == 36 for host_id in hosts)
            run.send_signal(signal.SIGTERM)
            # While it cleans up, it is not to be disturbed.
            run.send_signal(signal.SIGINT)
            told, _ = run.communicate(timeout=90.0)
        finally:
            run.kill()
    assert run.returncode == INTERRUPTED, told
    assert "interrupted" in told
    assert left_behind(directory, hosts) == []
    assert not (tmp_path / "kept").exists()
