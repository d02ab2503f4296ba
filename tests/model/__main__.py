"""The model at the command line.

python -m tests.model            every scenario under the rules, and every flaw (seconds)
python -m tests.model NAME ...   these flaws alone, with their shortest interleavings
python -m tests.model --deep     the rules with larger fault budgets, and without each second line (ten minutes)

Exit status 1: the rules are violated, or a flaw does not break the invariant that it names.
"""

from __future__ import annotations

import sys
import time

from tests.model.explore import explore
from tests.model.flaws import FLAWS, SECOND_LINES, without
from tests.model.moves import Model
from tests.model.state import ALL, SCENARIOS, Rules


def main(names: list[str]) -> int:
    runs = [("rules", Rules(), scenario, 2) for scenario in SCENARIOS]
    if names == ["--deep"]:
        runs = [("rules", Rules(), scenario, 2) for scenario in ALL]
        runs += [("rules, 3 hosts", Rules(), scenario, 3) for scenario in ("crash", "partition")]
        runs += [
            (f"without {name}: {guard.name}", without((name, guard)), scenario, 2)
            for name, guard in SECOND_LINES
            for scenario in SCENARIOS
        ]
    elif names:
        runs = [(name, FLAWS[name].rules, FLAWS[name].scenario, 2) for name in names]
    else:
        runs += [(name, flaw.rules, flaw.scenario, 2) for name, flaw in FLAWS.items()]
    wrong = 0
    for title, rules, scenario, hosts in runs:
        begun = time.monotonic()
        found = explore(Model(rules, ALL[scenario], hosts))
        wrong += found.breaks != (FLAWS[title].breaks if title in FLAWS else None)
        verdict = f"{found.violation} ({len(found.trace)} steps)" if found.violation else "holds"
        seconds = time.monotonic() - begun
        print(f"{title:40} {scenario:26} {found.states:8} states {seconds:5.1f} s  {verdict}", flush=True)
        if names and found.violation:
            print("".join(f"    {number:2} {step}\n" for number, step in enumerate(found.trace, 1)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
