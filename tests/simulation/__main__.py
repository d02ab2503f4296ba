"""Lives through worlds, and tells what went wrong in one.

python -m tests.simulation --seeds 1-300 [--jobs 2] [--stop]
python -m tests.simulation --seed 17 --story
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence

from tests.simulation.checks import BREAKS
from tests.simulation.world import Verdict, simulate


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_range, default=range(1, 301), help="FIRST-LAST")
    parser.add_argument("--seed", type=int, help="one world alone")
    parser.add_argument("--story", action="store_true", help="tell what happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop", action="store_true", help="at the first flaw")
    parser.add_argument("--rules", type=_names, default=frozenset(), help="NAME,NAME: only their flaws count")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of strings must be that of the seed, too.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    logging.disable()  # the nodes' own lines: a story has the times of the world
    if options.seed is not None:
        code = _tell([simulate(options.seed, with_story=options.story)], stop=False, rules=options.rules)
        sys.stdout.flush()
        os._exit(code)  # what is left of the world is not ended in order (loop.run)
    began = time.monotonic()
    # Workers are ended in the middle of their worlds, which then leave their files behind.
    with (
        tempfile.TemporaryDirectory(prefix="pilfer-simulations-") as tempfile.tempdir,
        multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=20) as pool,
    ):
        code = _tell(pool.imap(simulate, options.seeds), stop=options.stop, rules=options.rules)
    print(f"{len(options.seeds)} seeds in {time.monotonic() - began:.1f} s")
    return code


def _counting(flaws: Sequence[str], rules: frozenset[str]) -> list[str]:
    """Those of these rules; of all, where none are named. Where a node breaks, whatever else comes of it says nothing
    of the other rules."""
    if not rules:
        return list(flaws)
    told = {flaw: flaw.partition(" ")[0] for flaw in flaws}
    if BREAKS in told.values() and BREAKS not in rules:
        return []
    return [flaw for flaw, rule in told.items() if rule in rules]


def _tell(verdicts: Iterable[Verdict], *, stop: bool, rules: frozenset[str]) -> int:
    broken = runs = transitions = 0
    for verdict in verdicts:
        runs += verdict.runs
        transitions += verdict.transitions
        for line in verdict.story:
            print(line)
        if flaws := _counting(verdict.flaws, rules):
            broken += 1
            print(f"seed {verdict.seed}: {len(flaws)} flaws; {flaws[0]}")
            print(f"    again: python -m tests.simulation --seed {verdict.seed} --story")
            if stop:
                break
    print(f"{broken} worlds with flaws; {runs} runs, {transitions} transitions")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
