"""Some hundred worlds in every run of the tests; `make test-sim` lives through thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.harmless import HARMLESS
from tests.simulation.mutant import Mutant
from tests.simulation.mutants import MUTANTS, Laboratory

ROOT = Path(__file__).parents[2]
#: Seeds of one process; several run beside each other.
BLOCK = 50
#: Seeds that once showed a defect, with the defect. What is drawn has changed since, so that none of them is the world
#: any more that it was then; each defect of the product has a test of its own besides (docs/reliability.md).
REGRESSIONS: dict[int, str] = {
    281: "a look at the queue that was due in less than the clock's resolution looked again and again",
    1887: "two of three voters were removed within the same seconds, and the third had no quorum for good",
    2988: "a start whose first listing was not answered waited for 30 s",
    4429: "as 1887: both were cut off when they were removed, and refused when they came back",
    9918: "of the checker: a submit that nobody waited for any more was written after the time to forget had begun",
}


#: A place that every node comes by.
_NOWHERE, _ENDS = "node/running/own_keys.py", "await asyncio.sleep(TICK_S)"


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    made = Laboratory()
    yield made
    made.close()


def _simulate(*arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.parametrize("block", range(6))
def test_worlds_are_without_flaws(block: int) -> None:
    done = _simulate("--seeds", f"{block * BLOCK + 1}-{(block + 1) * BLOCK}", "--jobs", "1")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


def test_what_was_mended_stays_mended() -> None:
    for seed, defect in REGRESSIONS.items():
        done = _simulate("--seed", str(seed))
        assert done.returncode == 0, f"{defect}\n{done.stdout[-20_000:]}"


def test_one_seed_is_one_story() -> None:
    first, second = (_simulate("--seed", "7", "--story").stdout for _ in range(2))
    assert first.count("\n") > 20
    assert first == second


def test_a_world_that_hangs_is_told() -> None:
    """In a process of its own: what hangs is left as it is."""
    code = """
from tests.simulation import world

async def spin(_world):
    while True:
        pass

world.HUNG_S, world.World.run = 1, spin
(flaw,) = world.simulate(1).flaws
assert flaw.startswith("NothingHangs"), flaw
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_defect_is_noticed_and_told(laboratory: Laboratory) -> None:
    """The checkers can fail. All defects: `make test-mutants`."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "a move leaves the old index key")
    found = laboratory.live(mutant, 20)
    assert found.rule == "StatusAgreesWithRecord"
    assert int(found.seed) > 0
    assert found.is_as_wanted


def test_a_defect_is_not_noticed_by_something_else(laboratory: Laboratory) -> None:
    """A change that does not run is not killed, and neither is one that breaks another rule than its own."""
    name = "no such name"
    assert laboratory.live(Mutant(name, _NOWHERE, _ENDS, f"{_ENDS}\n(", ("NoTwoLiveRuns",)), 1).broke
    found = laboratory.live(Mutant(name, _NOWHERE, _ENDS, f"raise RuntimeError({name!r})", ("NoTwoLiveRuns",)), 3)
    assert not found.rule
    assert not found.is_as_wanted
    found = laboratory.live(Mutant(name, _NOWHERE, _ENDS, f"raise RuntimeError({name!r})", ("NothingBreaks",)), 3)
    assert found.rule == "NothingBreaks"


def test_every_mutant_fits_the_code() -> None:
    tellers = [file for file in Path(__file__).parent.glob("*.py") if not file.stem.endswith(("mutants", "simulation"))]
    told = "".join(file.read_text() for file in (*tellers, ROOT / "tests/support/history.py"))
    for mutant in (*MUTANTS, *HARMLESS):
        for path, before, after in mutant.changes:
            assert (ROOT / path).read_text().count(before) == 1, mutant.name
            assert before != after
        for rule in mutant.rules:
            assert f'"{rule}"' in told, f"{mutant.name}: nobody tells of {rule}"
    assert all(mutant.rules for mutant in MUTANTS)
    assert not any(mutant.rules for mutant in HARMLESS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
