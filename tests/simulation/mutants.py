"""Deliberate defects, each a small change of the code, with what it does. The simulation must notice every one.

    python -m tests.simulation.mutants [--seeds 300] [--only NAME] [--write]

Each is applied to a copy of the packages, and the copy lives through worlds until one of them has a flaw. A mutant that
survives them all is a hole in the simulation, or a guard that nobody needs: both are worth knowing. A few changes that
do no harm (`harmless.py`) must survive. --write puts the table into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
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

ROOT = Path(__file__).parents[2]
#: What the simulation runs; the rest of the tree is linked.
_COPIED = ("node", "etcd", "isolation", "pilfer", "tests")
#: For one of them; a crowded machine lives through a world in seconds.
LIMIT_S = 3600.0
#: Worlds through which a harmless change lives, at most.
HARMLESS_SEEDS = 100
#: Where the table goes.
_DOCUMENT = ROOT / "docs" / "reliability.md"
_FROM, _TO = "<!-- mutants: made by tests.simulation.mutants --write -->", "<!-- mutants: end -->"
_FLAW = re.compile(r"seed (\d+): \d+ flaws; (\w+)")


_TRANSITIONS = "etcd/transitions.py"
_SWEEPER = "node/cluster/sweeper.py"
_KEEPER = "node/cluster/lease_keeper.py"
_INCARNATION = "node/incarnation.py"
_RUNNER = "node/running/runner.py"
_CLAIMER = "node/running/claimer.py"
_OWN_KEYS = "node/running/own_keys.py"
_HOST = "tests/simulation/host.py"
_SANDBOXES = "tests/simulation/sandboxes.py"
_TELL = "if fence.answered(lane, answer.ttl_s):\n                            "
_EACH = "        for command in list(self.commands.values()):\n            "
_LATER = "            self.process.call_later(0.001, "

MUTANTS = (
    # guards
    Mutant(
        "a claim does not compare the record's mod_revision",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT, Guard.NODE_MINE),",
        "guards=(Guard.NODE_MINE,),",
    ),
    Mutant(
        "a claim does not look whether its node lives",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT, Guard.NODE_MINE),",
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT),",
    ),
    Mutant(
        "an owner's write does not look whether its node lives",
        _TRANSITIONS,
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)",
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE)",
    ),
    Mutant(
        "an owner's write compares nothing but its node",
        _TRANSITIONS,
        "_AS_OWNER = (Guard.RECORD_UNCHANGED, Guard.CLAIM_MINE, Guard.NODE_MINE)",
        "_AS_OWNER = (Guard.NODE_MINE,)",
    ),
    Mutant(
        "a requeue does not look whether the owner is gone",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),",
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT),",
        # Alone it does no harm: a sweep lists nodes and tasks at one revision, and no node comes back.
        beside=((_SWEEPER, "            seen.nodes,\n", "            frozenset({self._identity.node_id}),\n"),),
    ),
    Mutant(
        "a requeue does not compare the record",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.RUNNING_PRESENT, Guard.OWNER_GONE),",
        "guards=(Guard.OWNER_GONE,),",
    ),
    Mutant(
        "a cancel of a queued task does not compare the record",
        _TRANSITIONS,
        "guards=(Guard.RECORD_UNCHANGED, Guard.QUEUED_PRESENT),\n        writes=_MOVE,\n        reads=(Read.RECORD,),",
        "guards=(),\n        writes=_MOVE,\n        reads=(Read.RECORD,),",
    ),
    Mutant(
        "a request to cancel does not touch the running key",
        _TRANSITIONS,
        "writes=(Write.TOUCH_RUNNING, Write.RECORD),",
        "writes=(Write.RECORD,),",
    ),
    Mutant(
        "a move leaves the old index key",
        _TRANSITIONS,
        "_MOVE = (Write.REMOVE_INDEX, Write.ADD_INDEX, Write.RECORD)",
        "_MOVE = (Write.ADD_INDEX, Write.RECORD)",
    ),
    Mutant(
        "a submit writes over what is there",
        _TRANSITIONS,
        "guards=(Guard.RECORD_ABSENT,),",
        "guards=(),",
    ),
    # the lifecycle
    Mutant(
        "a requeue forgets that a cancel was asked for",
        "etcd/store.py",
        "after = lifecycle.requeue(seen.task, now=now)",
        'after = lifecycle.requeue(__import__("dataclasses").replace(seen.task, cancel_requested=False), now=now)',
    ),
    # the fence
    Mutant(
        "the deadline lies after the end of the lease",
        "node/core/fence.py",
        "MARGIN_S = 0.5",
        "MARGIN_S = -3.0",
    ),
    Mutant(
        "the deadline counts from the answer, not from the sending",
        _KEEPER,
        _TELL + "self._on_deadline(fence.deadline)",
        _TELL + "self._on_deadline(self._clock() + self._ttl_s)",
    ),
    Mutant(
        "a lost lease kills nothing, and the next life does not wait",
        _INCARNATION,
        "await _first_of(gone, hurried, timeout_s=FENCE_MAX_S)\n",
        "return\n",
        beside=((_INCARNATION, "self._around.spawner.fence()\n", "pass\n"),),
    ),
    Mutant(
        "the lease is revoked while commands may live",
        "node/lives.py",
        "await self._close(revoke=incarnation.is_gone)",
        "await self._close(revoke=True)",
        # Alone it does no harm: a stop waits until nothing lives, a spawner that does not kill is killed before the
        # patience (10 s) is over, and so is, by its PID 1, what a spawner leaves that hears of no deadline.
        beside=(
            (_SANDBOXES, "if silent_s >= SILENT_S:", "if False:"),
            (_SANDBOXES, "if not command.is_frozen:", "if False:"),
        ),
    ),
    Mutant(
        "the deadline of a lease is never told",
        _KEEPER,
        _TELL + "self._on_deadline(fence.deadline)",
        _TELL + "pass",
    ),
    # watches and sweeps
    Mutant(
        "a watch begins without a listing",
        "etcd/watch.py",
        "yield Listing(listed.kvs, listed.revision, listed.more)",
        "yield Listing((), listed.revision, listed.more)",
    ),
    Mutant(
        "a watch begins a revision late",
        "etcd/watch.py",
        "start_revision=listed.revision + 1",
        "start_revision=listed.revision + 2",
    ),
    Mutant(
        "nobody sweeps at the start or on a tick",
        _SWEEPER,
        "if left or not self._is_swept or (is_tick and is_tick_mine(self._live, self._identity.node_id)):",
        "if False:",
    ),
    Mutant(
        "the news of a death has nobody look",
        _SWEEPER,
        "gone = self._gone.setdefault(node_id, _Gone(time.monotonic()))",
        "gone = _Gone(time.monotonic())",
    ),
    # claims
    Mutant(
        "a claim without an answer is taken for a failed one",
        _CLAIMER,
        "unknown.append((offer, seen))",
        "self._lost(offer)",
        # Alone it costs 5 s: the comparison of the own keys gives back what nobody knows. That one alone is for a
        # claim that is given up on, which no node does that lives: it asks until it is answered.
        beside=((_OWN_KEYS, "await self._give_back(task_id, fence_revision)", "pass"),),
    ),
    Mutant(
        "an end without an answer is not written again",
        _RUNNER,
        "while not self.is_lost:",
        "for _ in range(1):",
    ),
    Mutant(
        "claims are booked nowhere",
        _CLAIMER,
        "if not self._ledger.take(task_id, offer.requirements):",
        "if False:",
    ),
    Mutant(
        "what is released was never there",
        _RUNNER,
        "        self._ledger.release(run.task.id)\n        if run.sandbox is not None:",
        "        if run.sandbox is not None:",
    ),
    Mutant(
        "a cancel that comes before the claim's answer is forgotten",
        _OWN_KEYS,
        "version = self._touched.pop(claim.task.id, None)",
        "version = None",
    ),
    Mutant(
        "a touched key is not looked at, and never compared",
        _OWN_KEYS,
        "if seen.task.cancel_requested:",
        "if False:",
    ),
    Mutant(
        "a stop does not give back what it runs",
        _INCARNATION,
        "        await self._drain(lost, hurry)",
        "        pass",
    ),
    # hosts, and the instruments themselves
    Mutant(
        "two nodes of one host may live beside each other",
        "node/cluster/host_record.py",
        "if seen.record is not None:\n        compares.append",
        "if False:\n        compares.append",
        # Alone it does no harm: a start looks first, a node that is gone never comes back under its id, and whoever
        # registers in between writes the host's record, which is compared.
        beside=((_KEEPER, "if seen.record is None or not seen.is_in_use:", "if True:"),),
    ),
    Mutant(
        "a start clears nothing that was left",
        _HOST,
        "self._host.end_leftovers(but=self.spawner)",
        "pass",
    ),
    Mutant(
        "a start clears what the other node of its machine runs",
        _HOST,
        "if spawner is but or not self._is_mine(spawner):",
        "if spawner is but:",
    ),
    Mutant(
        "a spawner ignores the deadline",
        _SANDBOXES,
        "command.freeze()",
        "pass",
        # Alone it kills what could have gone on: PID 1 of each sandbox ends it 0.3 s later, before the lease does.
        beside=((_SANDBOXES, "if not command.is_frozen:", "if False:"),),
    ),
    Mutant(
        "commands outlive a node that was killed",
        _SANDBOXES,
        "self.process.call_later(self._chance.uniform(*ORPHANS_DIE_S), self.end_all)",
        "pass",
    ),
    Mutant(
        "a thaw comes before the kill",
        _SANDBOXES,
        "self._is_closed = True\n" + _EACH + 'command.end("fence")',
        "self._is_closed = True\n" + _EACH + "command.thaw()\n" + _LATER + 'command.end, "fence")',
    ),
    *NODE_MUTANTS,
    *CLUSTER_MUTANTS,
)


def run_mutant(mutant: Mutant, seeds: int) -> tuple[str | None, float]:
    """The first flaw, None where it survives; and the seconds that took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pilfer-mutant-") as directory:
        place = Path(directory)
        for package in _COPIED:
            shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
        apply(mutant, place)
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", f"1-{seeds}", "--stop", "--jobs", "1"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place), "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    took_s = time.monotonic() - began
    if done.returncode == 0:
        return None, took_s
    flaws = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
    return (flaws[0] if flaws else f"it broke: {done.stderr.strip().splitlines()[-1:]}"), took_s


def apply(mutant: Mutant, place: Path) -> None:
    """Raises ValueError where the code is not as the mutant knows it: then the mutant is to be brought up to date."""
    for file, before, after in mutant.changes:
        path = place / file
        text = path.read_text()
        if text.count(before) != 1:
            raise ValueError(f"{mutant.name}: {file} has its text {text.count(before)} times")
        path.write_text(text.replace(before, after))


@dataclass(frozen=True)
class Row:
    """What became of one mutant."""

    name: str
    #: Of the world that killed it, and the rule that it broke first there; empty where it survives.
    seed: str
    rule: str
    took_s: float
    is_harmless: bool

    @property
    def is_as_wanted(self) -> bool:
        return self.is_harmless != bool(self.rule)


def _row(mutant: Mutant, seeds: int) -> Row:
    is_harmless = mutant in HARMLESS
    flaw, took_s = run_mutant(mutant, min(seeds, HARMLESS_SEEDS) if is_harmless else seeds)
    found = _FLAW.match(flaw or "")
    seed, rule = found.groups() if found else ("", flaw or "")
    return Row(mutant.name, seed, rule, took_s, is_harmless)


def _tell(row: Row) -> None:
    survives = "lives, and does no harm" if row.is_harmless else "SURVIVES"
    killed = f"{row.seed:>4}  {row.rule:24}" if row.rule else f"{survives:30}"
    print(f"{killed}{row.took_s:6.0f} s  {row.name}", flush=True)


def write(rows: Sequence[Row]) -> None:
    """Puts the table between its marks."""
    text = _DOCUMENT.read_text()
    before, _, rest = text.partition(_FROM)
    _, mark, after = rest.partition(_TO)
    if not mark:
        raise ValueError(f"{_DOCUMENT.name} has no marks for the table: {_FROM} and {_TO}")
    lines = ["| defect | killed by world | which breaks |", "|---|---|---|"]
    for row in rows:
        killed = row.seed or ("none, and it does no harm" if row.is_harmless else "none: it survives")
        lines.append(f"| {row.name} | {killed} | {row.rule} |")
    _DOCUMENT.write_text(f"{before}{_FROM}\n" + "\n".join(lines) + f"\n{_TO}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300, help="worlds that each mutant must not survive")
    parser.add_argument("--only", default="", help="mutants with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help="the table into docs/reliability.md")
    options = parser.parse_args()
    chosen = [mutant for mutant in (*MUTANTS, *HARMLESS) if options.only in mutant.name]
    rows: list[Row] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda mutant: _row(mutant, options.seeds), chosen):
            rows.append(row)
            _tell(row)
    defects = [row for row in rows if not row.is_harmless]
    print(f"{sum(bool(row.rule) for row in defects)} of {len(defects)} mutants killed")
    for row in rows:
        if row.is_harmless and row.rule:
            print(f"taken for a defect, and does no harm: {row.name}")
    if options.write:
        write(rows)
    return 0 if all(row.is_as_wanted for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
