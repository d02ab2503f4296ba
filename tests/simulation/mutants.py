"""Deliberate defects, each a small change of the code, with what it does. The simulation must notice every one.

    python -m tests.simulation.mutants [--seeds 300] [--only NAME] [--write]

Each is applied to a copy of the packages, and the copy lives through worlds until one of them has a flaw, of a rule
that the mutant names: a defect is not noticed by whatever else it happens to break, and least by a change that does not
even run. A mutant that survives them all is a hole in the simulation, or a guard that nobody needs: both are worth
knowing. A few changes that do no harm (`harmless.py`) must survive. --write puts the table into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.cluster_mutants import CLUSTER_MUTANTS
from tests.simulation.harmless import HARMLESS
from tests.simulation.mutant import Mutant
from tests.simulation.node_mutants import NODE_MUTANTS
from tests.simulation.protocol_mutants import PROTOCOL_MUTANTS

ROOT = Path(__file__).parents[2]
#: What the simulation runs.
_COPIED = ("node", "etcd", "isolation", "pilfer", "tests")
#: For one of them; a crowded machine lives through a world in seconds.
LIMIT_S = 3600.0
#: Worlds through which a harmless change lives, at most.
HARMLESS_SEEDS = 100
#: Where the table goes.
_DOCUMENT = ROOT / "docs" / "reliability.md"
_FROM, _TO = "<!-- mutants: made by tests.simulation.mutants --write -->", "<!-- mutants: end -->"
_FLAW = re.compile(r"seed (\d+): \d+ flaws; (\w+)")
_PLACES = "pilfer-mutants-"

MUTANTS = (*PROTOCOL_MUTANTS, *NODE_MUTANTS, *CLUSTER_MUTANTS)


@dataclass(frozen=True)
class Found:
    """What became of one mutant."""

    mutant: Mutant
    took_s: float
    #: The world that killed it, and the rule that was broken there; empty where it survives.
    seed: str = ""
    rule: str = ""
    #: Why nothing can be said of it: it does not run, or takes too long.
    broke: str = ""

    @property
    def is_harmless(self) -> bool:
        return self.mutant in HARMLESS

    @property
    def is_as_wanted(self) -> bool:
        return not self.broke and self.is_harmless != bool(self.rule)


class Laboratory:
    """A directory in which mutants live, each in a copy. All are made of the code as it was at first, whoever edits it
    meanwhile. Whoever makes one closes it."""

    def __init__(self) -> None:
        _clear()
        self._place = Path(tempfile.mkdtemp(prefix=f"{_PLACES}{os.getpid()}-"))
        self._original = self._place / "original"
        self._running: set[subprocess.Popen[str]] = set()
        self._is_closed = False
        for package in _COPIED:
            shutil.copytree(ROOT / package, self._original / package, ignore=shutil.ignore_patterns("__pycache__"))

    def close(self) -> None:
        """Ends what runs, and leaves nothing."""
        self._is_closed = True
        for process in list(self._running):
            _end(process)
        shutil.rmtree(self._place, ignore_errors=True)

    def live(self, mutant: Mutant, seeds: int) -> Found:
        """Through so many worlds, or until it is noticed."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self._place) as directory:
            place = Path(directory)
            shutil.copytree(self._original, place, dirs_exist_ok=True)
            apply(mutant, place)
            code, out, errors = self._run(place, seeds, mutant.rules)
        took_s = time.monotonic() - began
        if code == 0:
            return Found(mutant, took_s)
        lines = (_FLAW.match(line) for line in out.splitlines())
        found = next(filter(None, lines), None)
        if found is None:
            return Found(mutant, took_s, broke=(errors.strip().splitlines() or ["without a word"])[-1])
        return Found(mutant, took_s, *found.groups())

    def _run(self, place: Path, seeds: int, rules: Sequence[str]) -> tuple[int, str, str]:
        """Its exit code and what it printed."""
        command = [sys.executable, "-m", "tests.simulation", "--seeds", f"1-{seeds}", "--stop", "--jobs", "1"]
        process = subprocess.Popen(
            command + (["--rules", ",".join(rules)] if rules else []),
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place), "PYTHONHASHSEED": "0", "TMPDIR": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it has children
        )
        self._running.add(process)
        if self._is_closed:
            _end(process)
        try:
            out, errors = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            _end(process)
            process.communicate()
            return 1, "", f"it takes longer than {LIMIT_S:g} s"
        finally:
            self._running.discard(process)
        return process.returncode, out, errors


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _clear() -> None:
    """What runs left behind that were killed."""
    for place in Path(tempfile.gettempdir()).glob(f"{_PLACES}*"):
        pid = place.name.removeprefix(_PLACES).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(place, ignore_errors=True)


def apply(mutant: Mutant, place: Path) -> None:
    """Raises ValueError where the code is not as the mutant knows it: then the mutant is to be brought up to date."""
    for file, before, after in mutant.changes:
        path = place / file
        text = path.read_text()
        if text.count(before) != 1:
            raise ValueError(f"{mutant.name}: {file} has its text {text.count(before)} times")
        path.write_text(text.replace(before, after))


def _tell(found: Found) -> None:
    survives = "lives, and does no harm" if found.is_harmless else "SURVIVES"
    killed = f"{found.seed:>4}  {found.rule:24}" if found.rule else f"{found.broke or survives:30}"
    print(f"{killed}{found.took_s:6.0f} s  {found.mutant.name}", flush=True)


def write(all_found: Sequence[Found]) -> None:
    """Puts the table between its marks."""
    text = _DOCUMENT.read_text()
    before, _, rest = text.partition(_FROM)
    _, mark, after = rest.partition(_TO)
    if not mark:
        raise ValueError(f"{_DOCUMENT.name} has no marks for the table: {_FROM} and {_TO}")
    lines = ["| defect | in | killed by world | which breaks |", "|---|---|---|---|"]
    for found in all_found:
        killed = found.seed or ("none, and it does no harm" if found.is_harmless else "none: it survives")
        where = "the instrument" if found.mutant.is_of_the_instrument else "the product"
        lines.append(f"| {found.mutant.name} | {where} | {found.broke or killed} | {found.rule} |")
    _DOCUMENT.write_text(f"{before}{_FROM}\n" + "\n".join(lines) + f"\n{_TO}{after}")


def _live_all(mutants: Sequence[Mutant], seeds: int, places: int) -> list[Found]:
    """Told as they come."""

    def live(mutant: Mutant) -> Found:
        return laboratory.live(mutant, min(seeds, HARMLESS_SEEDS) if mutant in HARMLESS else seeds)

    laboratory, all_found = Laboratory(), []
    try:
        with ThreadPoolExecutor(places) as pool:
            try:
                for found in pool.map(live, mutants):
                    all_found.append(found)
                    _tell(found)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                laboratory.close()
                raise
    finally:
        laboratory.close()
    return all_found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300, help="worlds that each mutant must not survive")
    parser.add_argument("--only", default="", help="mutants with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help="the table into docs/reliability.md")
    options = parser.parse_args()
    chosen = [mutant for mutant in (*MUTANTS, *HARMLESS) if options.only in mutant.name]
    # As Ctrl-C: what runs is ended, and its directory goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    all_found = _live_all(chosen, options.seeds, options.jobs)
    defects = [found for found in all_found if not found.is_harmless]
    print(f"{sum(bool(found.rule) for found in defects)} of {len(defects)} mutants killed")
    for found in all_found:
        if found.is_harmless and found.rule:
            print(f"taken for a defect, and does no harm: {found.mutant.name}")
        if found.broke:
            print(f"nothing can be said of it: {found.mutant.name}: {found.broke}")
    if options.write:
        write(all_found)
    return 0 if all(found.is_as_wanted for found in all_found) else 1


if __name__ == "__main__":
    sys.exit(main())
