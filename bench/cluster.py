"""The proof of the cluster: each of its promises measured over many rounds, with real nodes in a laboratory.

    python -m bench.cluster [--rounds N] [--tasks N] [--only WORD,...] [--write]

A round puts beating tasks on three nodes, does something bad to one of them, and reads the witness's clock. After each
measurement every overlap of two runs of one task is counted (there must be none), and at the end the history is judged
from its first revision to its last. `--write` puts the table into docs/benchmarks.md between its markers.

It takes a while: a round of freezing or cutting takes about 12 s. The table is written after each line, so that what
was measured is not lost when the rest is cut short.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.support.beats import overlaps
from tests.support.lab import Lab, LabNode, laboratory
from tests.support.wait import wait_until_sync

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- cluster: begin -->", "<!-- cluster: end -->"
NODES = ("a", "b", "c")
SHORT_CUT_S = 3.0
#: Between two losses of a node while the many tasks run.
LOSS_EVERY_S = 8.0
DOWN_S = 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    what: str
    limit: str
    measured: str
    rounds: int


def spread_of(seconds: Sequence[float]) -> str:
    """Median, 95th percentile and worst."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"p50 {statistics.median(ordered):.2f} s, p95 {p95:.2f} s, worst {ordered[-1]:.2f} s"


def _are_gone(pids: set[int]) -> bool:
    return not any(map(psutil.pid_exists, pids))


class Bench:
    """Rounds on one cluster of three."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self._lab = lab
        self._rng = rng

    def _rest(self) -> None:
        self._lab.heal()
        self._lab.clear()

    def _victim(self, *, is_leader: bool) -> LabNode:
        return self._lab.get_leader() if is_leader else self._lab.get_follower()

    def kills(self, rounds: int, *, is_leader: bool) -> list[Line]:
        """kill -9 of a node process."""
        gone, elsewhere = [], []
        for _ in range(rounds):
            placed = self._lab.spread()
            victim = self._victim(is_leader=is_leader)
            pids = victim.task_processes()
            start = time.monotonic()
            victim.kill()
            wait_until_sync(partial(_are_gone, pids), every_s=0.002)
            gone.append(time.monotonic() - start)
            elsewhere.append(self._lab.wait_moved(placed[victim.name]) - start)
            self._rest()
        of = "kill -9 of a node process, etcd's leader with it" if is_leader else "kill -9 of a node process"
        return [
            Line(f"{of}: its tasks' processes are gone", "1 s", spread_of(gone), rounds),
            Line(f"{of}: its tasks run elsewhere", f"{9 if is_leader else 6} s p95", spread_of(elsewhere), rounds),
        ]

    def restarts(self, rounds: int) -> list[Line]:
        """A node process that is killed and started again at once."""
        taken = []
        for _ in range(rounds):
            placed = self._lab.spread()
            victim = self._victim(is_leader=False)
            victim.kill()
            start = time.monotonic()
            self._lab.begin(victim)
            taken.append(self._lab.wait_moved(placed[victim.name]) - start)
            victim.wait_serving()
            self._rest()
        return [Line("node process restarted on the same host: its tasks run again", "2 s", spread_of(taken), rounds)]

    def freezes(self, rounds: int) -> list[Line]:
        """A node that stands still, or is cut off, in turns: leader and follower, alone and with its spawner."""
        by_fault: dict[str, list[float]] = {}
        for number in range(rounds):
            placed = self._lab.spread()
            is_leader = number % 4 == 3
            victim = self._victim(is_leader=is_leader)
            fault = ("SIGSTOP of the node", "cut off", "SIGSTOP of node and spawner", "cut off, etcd's leader")[
                number % 4
            ]
            start = time.monotonic()
            if "cut" in fault:
                self._lab.network.unplug(victim.name)
            else:
                victim.pause("node", *(["spawner"] if "spawner" in fault else []))
            by_fault.setdefault(fault, []).append(self._lab.wait_moved(placed[victim.name]) - start)
            # While its tasks run elsewhere it comes back to life: now or never would they run twice.
            self._lab.heal()
            self._lab.clear()
        together = overlaps(self._lab.witness.look())
        lines = [
            Line(
                f"{fault}: running elsewhere",
                "9 s p95" if "leader" in fault else "6 s p95",
                spread_of(taken),
                len(taken),
            )
            for fault, taken in by_fault.items()
        ]
        return [*lines, Line("overlapping runs in all rounds so far", "0", str(len(together)), rounds)]

    def short_cuts(self, rounds: int) -> list[Line]:
        """A cut that is healed before the lease can run out."""
        killed, silences = 0, []
        for number in range(rounds):
            placed = self._lab.spread()
            victim = self._victim(is_leader=number % 2 == 1)
            self._lab.network.unplug(victim.name)
            time.sleep(SHORT_CUT_S)  # how long the cut lasts is what is measured
            self._lab.network.heal()
            healed = time.monotonic()
            for ids in placed.values():
                for task_id in ids:
                    self._lab.witness.wait_beat_after(task_id, healed + 2.0)
                    runs = self._lab.witness.runs.of(task_id)
                    killed += len(runs) - 1
                    silences.append(runs[0].longest_silence_s)
            self._rest()
        words = f"{killed} (longest freeze {max(silences):.2f} s)"
        return [Line("cut of 3 s healed before the TTL: tasks killed", "0", words, rounds)]

    def leader_kills(self, rounds: int) -> list[Line]:
        """The leading etcd is killed; a submit through another node, begun at once, is answered."""
        taken = []
        for _ in range(rounds):
            victim = self._victim(is_leader=True)
            other = self._lab.any_node(but=[victim])
            start = time.monotonic()
            victim.kill_part("etcd")
            self._lab.submit(self._lab.witness.task(0.0), through=other)
            taken.append(time.monotonic() - start)
            self._rest()
        return [Line("etcd leader killed: submits answered again", "2 s", spread_of(taken), rounds)]

    def cancels(self, rounds: int) -> list[Line]:
        """Submitted through one node, running on another, canceled through the third."""
        taken: list[float] = []
        while len(taken) < rounds:
            placed = self._lab.spread(1)
            names = list(placed)
            for number, name in enumerate(names):
                (task_id,) = placed[name]
                with self._lab.nodes[names[(number + 1) % len(names)]].client() as client:
                    start = time.monotonic()
                    client.cancel(task_id)
                    client.wait(task_id, timeout_s=30.0)
                    taken.append(time.monotonic() - start)
            self._rest()
        return [
            Line("cancel of a running task through another node, to its end", "0.5 s", spread_of(taken), len(taken))
        ]

    def everything(self, rounds: int) -> list[Line]:
        """Every process of the cluster killed at once, and all nodes started again."""
        taken = []
        for _ in range(rounds):
            placed = self._lab.spread()
            for node in self._lab.up():
                for part in ("spawner", "etcd"):
                    node.kill_part(part)
                node.kill()
            start = time.monotonic()
            for node in self._lab.nodes.values():
                self._lab.begin(node)
            ids = [task_id for of_one in placed.values() for task_id in of_one]
            taken.append(self._lab.wait_moved(ids, 90.0) - start)
            for node in self._lab.nodes.values():
                node.wait_serving()
            self._rest()
        return [Line("whole cluster kill -9 and restart: all tasks run again", "10 s", spread_of(taken), rounds)]

    def many(self, tasks: int) -> list[Line]:
        """Many short tasks, while one node after the other is killed and comes back."""
        spec = self._lab.witness.task(0.02, cpu=0.5, max_attempts=1000)
        ids = self._lab.submit(*[spec] * tasks)
        losses, start = 0, time.monotonic()
        while self._is_open():
            victim = self._rng.choice(self._lab.up())
            victim.kill()
            losses += 1
            time.sleep(DOWN_S)  # how long a node is down, part of the load
            self._lab.begin(victim)
            victim.wait_serving()
            time.sleep(LOSS_EVERY_S - DOWN_S)  # the pace of the losses
        taken = time.monotonic() - start
        self._rest()
        judged = self._lab.judge(expect_ended=True)
        unheard = sum(not self._lab.witness.look().of(task_id) for task_id in ids)
        together = overlaps(self._lab.witness.runs)
        words = (
            f"0 lost, 0 doubled, 0 left ({losses} losses in {taken:.0f} s, {judged['requeued']} tasks requeued; "
            f"{unheard} never heard, {len(together)} overlaps; {judged['transitions']} transitions judged)"
        )
        return [Line(f"3 nodes, any one lost at any moment, {tasks:,} tasks", "0 lost, 0 doubled, 0 left", words, 1)]

    def _is_open(self) -> bool:
        with self._lab.any_node().client(patience_s=20.0) as client:
            return any(True for status in ("queued", "running") for _ in client.list(status=status, limit=1))


def measure(bench: Bench, rounds: int, tasks: int) -> dict[str, Callable[[], list[Line]]]:
    """What there is to measure, by its word."""
    return {
        "kill": lambda: bench.kills(rounds, is_leader=False),
        "leader": lambda: bench.kills(rounds, is_leader=True),
        "restart": lambda: bench.restarts(rounds),
        "freeze": lambda: bench.freezes(rounds),
        "cut": lambda: bench.short_cuts(rounds),
        "etcd": lambda: bench.leader_kills(rounds),
        "many": lambda: bench.many(tasks),
        "cancel": lambda: bench.cancels(rounds),
        "all": lambda: bench.everything(rounds),
    }


HEAD = ("| what | at most | measured | rounds |", "|---|---|---|---|")


def merged(before: str, lines: Sequence[Line]) -> list[str]:
    """The rows of a table, with those that were measured anew in the place of the old ones, and new ones at its end."""
    rows: dict[str, str] = {}
    for row in before.splitlines():
        if row.startswith("| ") and row not in HEAD:
            rows[row.split(" | ")[0].removeprefix("| ")] = row
    for line in lines:
        rows[line.what] = f"| {line.what} | {line.limit} | {line.measured} | {line.rounds} |"
    return list(rows.values())


def write(lines: Sequence[Line]) -> None:
    """Puts the rows into the report; what was not measured now stays as it was."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = REPORT.read_text()
    if BEGIN not in text:
        text += f"\n## A cluster of three\n\n`python -m bench.cluster --write`.\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    head = (
        f"Measured on {today}: three nodes on one machine of {os.cpu_count()} cores, {memory_gib:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}, lease TTL 5 s."
    )
    table = "\n".join(["", head, "", *HEAD, *merged(old, lines), ""])
    REPORT.write_text(f"{before}{BEGIN}{table}{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=10, help="of each kind (default 10; the proof asks for 100 freezes)"
    )
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--only", default="", help="some of: kill leader restart freeze cut etcd many cancel all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    lines: list[Line] = []
    with laboratory() as lab:
        lab.grow(*NODES, voters=len(NODES))
        measurements = measure(Bench(lab, random.Random(options.seed)), options.rounds, options.tasks)
        for word in options.only.split(",") if options.only else measurements:
            found = measurements[word]()
            for line in found:
                print(f"{line.what} (at most {line.limit}): {line.measured}", flush=True)
            lines += found
            if options.write:
                write(lines)
        judged = lab.judge(expect_ended=True)
        print(f"history: {judged}; overlaps: {overlaps(lab.witness.look())}")


if __name__ == "__main__":
    main()
