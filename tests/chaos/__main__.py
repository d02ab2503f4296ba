"""`make chaos MINUTES=10 [SEED=17]`, or `python -m tests.chaos --minutes 10 --seed 17`; see README.md here.

Exit status: 0 when nothing was found, 1 when something was, 2 where this machine cannot run it, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from tests.chaos import artifacts
from tests.chaos.run import FLAGS, NODES, Chaos
from tests.chaos.traces import left_behind
from tests.support.lab import Lab, laboratory

#: In the checkout, and ignored by git.
ARTIFACTS = Path(__file__).resolve().parents[2] / ".chaos"
FOUND, CANNOT, INTERRUPTED = 1, 2, 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--artifacts", type=Path, help="directory for what a failed run leaves; default: below .chaos")
    options = parser.parse_args()
    directory = options.artifacts or ARTIFACTS / f"{options.seed}-{time.strftime('%Y%m%dT%H%M%S')}"
    _Interrupt()
    _print(f"chaos: {options.minutes:g} minutes, SEED={options.seed}")
    try:
        flaws = _run(options.seed, options.minutes * 60.0, directory)
    except KeyboardInterrupt:
        _print("interrupted; everything was ended")
        return INTERRUPTED
    except (pytest.skip.Exception, pytest.fail.Exception) as lack:
        _print(f"this machine cannot run it: {lack}")
        return CANNOT
    if not flaws:
        return 0
    _print("\n".join(f"FLAW  {flaw}" for flaw in flaws))
    _print(f"what is needed to understand it: {directory}")
    _print(f"again: make chaos MINUTES={options.minutes:g} SEED={options.seed}")
    return FOUND


def _run(seed: int, seconds: float, directory: Path) -> list[str]:
    """The flaws of one run, from an empty machine to an empty machine."""
    flaws: list[str] = []
    with laboratory(has_disks=True) as lab:
        try:
            lab.grow(*NODES, voters=len(NODES), flags=FLAGS)
            chaos = Chaos(lab, seed, _print)
            if chaos.faults.fade_lack is not None:
                _print(f"no packet loss: {chaos.faults.fade_lack}")
            flaws += chaos.run(seconds)
            hosts = lab.host_ids()
            _print(f"chaos: SEED={seed}, {seconds / 60.0:g} minutes: {chaos.summary()}")
            if flaws:
                artifacts.keep(directory, lab, chaos.load, chaos.checks, chaos.story, flaws)
            flaws += _ended(lab)
        except KeyboardInterrupt:
            # In haste: nobody waits for tasks to be given back.
            for machine in lab.machines:
                machine.power_off()
            raise
    left = left_behind(lab.directory, hosts)
    if left:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "left").write_text("\n".join(left) + "\n")
    return flaws + left


def _ended(lab: Lab) -> list[str]:
    """Every node stops in order, in time."""
    try:
        lab.end()
    except AssertionError as error:
        return [f"StopsInOrder: {error}"]
    return []


class _Interrupt:
    """Interrupts the run once: what follows cleans up, and must not be interrupted."""

    def __init__(self) -> None:
        self._has_come = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._come)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if not self._has_come:
            self._has_come = True
            raise KeyboardInterrupt


def _print(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
