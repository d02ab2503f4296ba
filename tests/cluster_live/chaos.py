"""Chaos: a cluster under load, hurt again and again by faults that one seed draws, then healed and judged.

    make chaos MINUTES=10 [SEED=17]         or         python -m tests.cluster_live.chaos --minutes 10 --seed 17

The load is a steady crowd of beating tasks, submitted and at times canceled through whichever node is up. Every step
does one or two bad things to random nodes, waits a moment that may be shorter or longer than a lease, undoes them, and
goes on, at times before all is well again. At the end everything is healed, and then:

* every acknowledged task must end by itself within a bounded time (required progress);
* the witness must have heard no two runs of a task together, none out of order, and no node beyond its capacity;
* the history of etcd must be legal from its first revision to its last.

The seed repeats the faults and their order, not the timing of real processes; the story is told as it happens.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence

from pilfer import PilferError
from tests.support.beats import excesses
from tests.support.lab import CPU, PARTS, Lab, LabNode, laboratory
from tests.support.wait import wait_until_sync

NODES = ("a", "b", "c", "d")
#: Four nodes, of which three vote: one is a plain client of the others.
VOTERS = 3
#: Kept open; more than there is room for, so that the queue is never empty.
LOAD = 3 * CPU * len(NODES) // 2
#: Between one look at the load and the next.
TICK_S = 0.2
CANCEL_SHARE = 0.05
SECOND_FAULT_SHARE = 0.3
#: All tasks end within this, once everything is healed.
PROGRESS_S = 90.0
HEAL_S = 120.0
ATTEMPTS = 1000


class Chaos:
    """One run on one lab."""

    def __init__(self, lab: Lab, seed: int, tell: Callable[[str], None]) -> None:
        self._lab = lab
        self._random = random.Random(seed)
        self._tell = tell
        self._open: list[str] = []
        #: Names of nodes whose drain is not undone yet.
        self._drained: set[str] = set()
        self._started = time.monotonic()
        self.steps = 0

    def run(self, seconds: float) -> None:
        """Hurts it for so long; raises AssertionError for whatever must never be."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._step()
        self._say("healing")
        self._undo()
        wait_until_sync(self._is_undrained, HEAL_S, what="the drains are undone", every_s=TICK_S)
        self._lab.heal(timeout_s=HEAL_S)
        self._wait_all_ended()
        self._judge()

    def _step(self) -> None:
        self.steps += 1
        nodes = list(self._lab.nodes.values())
        victim, other = self._random.sample(nodes, 2)
        self._fault(victim)
        if self._random.random() < SECOND_FAULT_SHARE:
            self._fault(other)
        self._work(self._random.choice((0.5, 2.0, 3.0, 6.0, 9.0)))
        self._undo()
        self._work(self._random.choice((0.0, 0.5, 2.0, 6.0)))

    def _fault(self, victim: LabNode) -> None:
        faults = (self._kill, self._kill, self._pause, self._pause, self._unplug, self._lose, self._cut, self._stop)
        self._random.choice((*faults, self._move_leader, self._partition, self._drain))(victim)

    # What is done

    def _kill(self, node: LabNode) -> None:
        part = self._random.choice(PARTS)
        if node.is_up and node.find_part(part) is not None:
            self._say(f"kill -9 of the {part} of {node.name}")
            node.kill_part(part)

    def _pause(self, node: LabNode) -> None:
        parts = self._random.sample(PARTS, self._random.choice((1, 1, 2, 3)))
        there = [part for part in parts if node.is_up and node.find_part(part) is not None]
        # The node is asked last: its children are found through it.
        there.sort(key=lambda part: part == "node")
        if there:
            self._say(f"SIGSTOP of {'+'.join(there)} of {node.name}")
            node.pause(*there)

    def _unplug(self, node: LabNode) -> None:
        self._say(f"unplug {node.name}")
        self._lab.network.unplug(node.name)

    def _lose(self, node: LabNode) -> None:
        others = [name for name in self._lab.nodes if name != node.name]
        to = self._random.sample(others, self._random.randint(1, len(others)))
        self._say(f"lose what {node.name} sends to {', '.join(to)}")
        self._lab.network.lose(node.name, *to)

    def _cut(self, node: LabNode) -> None:
        other = self._random.choice([name for name in self._lab.nodes if name != node.name])
        self._say(f"cut between {node.name} and {other}")
        self._lab.network.cut(node.name, other)

    def _partition(self, node: LabNode) -> None:
        names = self._random.sample(list(self._lab.nodes), len(self._lab.nodes))
        at = self._random.randint(1, len(names) - 1)
        self._say(f"partition {names[:at]} from {names[at:]}")
        self._lab.network.partition(names[:at], names[at:])

    def _stop(self, node: LabNode) -> None:
        if node.is_up:
            self._say(f"SIGTERM to {node.name}")
            node.terminate()

    def _move_leader(self, node: LabNode) -> None:
        leader = self._lab.find_leader()
        if leader is not None and node.is_up and node is not leader and node.etcd_port is not None:
            self._say(f"move etcd's leader from {leader.name} to {node.name}")
            self._lab.find_move_leader(node)

    def _drain(self, node: LabNode) -> None:
        self._say(f"drain {node.name}")
        self._drained.add(node.name)
        self._ask_drain(node.name, undo=False)

    def _ask_drain(self, name: str, *, undo: bool) -> bool:
        """Whether it was answered."""
        up = self._lab.up()
        if not up:
            return False
        try:
            with self._random.choice(up).client(patience_s=0.0, timeout_s=2.0) as client:
                client.drain(name, undo=undo)
        except (PilferError, OSError):
            return False
        return True

    def _is_undrained(self) -> bool:
        """Undoes what drains it can; whether none is left."""
        self._drained = {name for name in self._drained if not self._ask_drain(name, undo=True)}
        return not self._drained

    def _undo(self) -> None:
        self._say("undo")
        for node in self._lab.nodes.values():
            node.resume()
        self._lab.network.heal()
        for node in self._lab.nodes.values():
            if not node.is_up:
                self._lab.begin(node)
        # What is not answered is tried again at the next undoing, and insisted on at the end.
        self._is_undrained()

    # Load

    def _work(self, seconds: float) -> None:
        """Keeps the crowd up for so long."""
        until = time.monotonic() + seconds
        while True:
            self._top_up()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(TICK_S, left))

    def _top_up(self) -> None:
        up = self._lab.up()
        if not up:
            return
        through = self._random.choice(up)
        try:
            # A node that is stopped or cut off must not hold the crowd up for long.
            with through.client(patience_s=0.0, timeout_s=1.0) as client:
                if self._open:
                    self._open = [task.id for task in client.status(self._open) if not task.status.is_terminal]
                missing = LOAD - len(self._open)
                durations = [self._random.choice((0.05, 0.3, 1.0, 4.0)) for _ in range(missing)]
                specs = [self._lab.witness.task(s, cpu=1.0, max_attempts=ATTEMPTS) for s in durations]
                ids = list(client.submit_many(specs))
                self._open += ids
                self._lab.submitted += ids
                canceled = [task_id for task_id in ids if self._random.random() < CANCEL_SHARE]
                if canceled:
                    client.cancel(canceled)
        except (PilferError, OSError):
            return

    # The end

    def _wait_all_ended(self) -> None:
        deadline = time.monotonic() + PROGRESS_S
        left: Sequence[str] = ()
        while time.monotonic() < deadline:
            try:
                with self._lab.any_node().client(patience_s=5.0) as client:
                    left = [t.id for status in ("queued", "running") for t in client.list(status=status)]
            except PilferError as error:
                left = [str(error)]
            if not left:
                return
            time.sleep(TICK_S)
        raise AssertionError(f"not ended within {PROGRESS_S} s after all was healed: {left}")

    def _judge(self) -> None:
        judged = self._lab.judge(expect_ended=True)
        flaws = self._lab.witness.flaws()
        runs = self._lab.witness.runs
        flaws += excesses(runs, dict.fromkeys(runs.node_ids, CPU))
        assert not flaws, "\n".join(flaws)
        assert len(runs.by_task) > 0, "nothing ran at all"
        self._say(f"{self.steps} steps, {len(runs.by_task)} tasks heard, {runs.beats} beats; history: {judged}")

    def _say(self, what: str) -> None:
        self._tell(f"{time.monotonic() - self._started:7.1f} s  {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    options = parser.parse_args()
    print(f"chaos: {options.minutes:g} minutes, SEED={options.seed}", flush=True)
    with laboratory() as lab:
        lab.grow(*NODES, voters=VOTERS)
        try:
            Chaos(lab, options.seed, lambda words: print(words, flush=True)).run(options.minutes * 60.0)
        except AssertionError as error:
            print(f"chaos: {error}\nagain: make chaos MINUTES={options.minutes:g} SEED={options.seed}", flush=True)
            for node in lab.nodes.values():
                print(f"--- {node.name}\n{node.tail(400)}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
