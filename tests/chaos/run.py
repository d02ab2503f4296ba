"""One run of chaos: a cluster under load is hurt again and again, then healed, drained of its tasks, and judged.

What is drawn: for each step a kind of fault, a generator of its own for the details, how long it lasts, and how long it
is until the next; now and then one waits until all others are undone. Up to three are open at once. Beside them one
host at a time comes or goes (`members.py`), and at drawn moments an operator does something (`recovery.py`), for which
everything is healed, and after which it goes on. The seed repeats all of that and its order, not the timing of real
processes: two runs of one seed are two lives.

At the end every fault is undone, and what was promised must come: every errand ends, all nodes are ready, etcd is
whole, every task ends. Each of these has a bound, generous for a machine that does other things beside: exceeding it is
a flaw, not a broken instrument.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import faults, load, members, recovery, verdicts
from tests.chaos.checks import Checks
from tests.chaos.faults import Faults
from tests.chaos.load import Load
from tests.chaos.members import Members
from tests.chaos.power import Power
from tests.chaos.recovery import Operator
from tests.support.lab import Lab
from tests.support.wait import wait_until_sync

NODES = ("a", "b", "c", "d", "e")
#: Flags of every node.
FLAGS = (*load.FLAGS, *recovery.FLAGS)
TICK_S = 0.1
#: Open faults at once, at most.
OPEN_MAX = 3
#: A fault lasts so long (a lease: 5 s; a voter keeps its vote for 30 s), and the next one comes after such a pause.
LASTS_S = (0.5, 2.0, 3.0, 6.0, 6.0, 9.0, 9.0, 15.0, 40.0)
PAUSES_S = (0.0, 0.5, 2.0, 4.0, 8.0)
#: Steps before which all else is undone.
ALONE_SHARE = 0.4
#: Steps that begin an errand of a host instead of a fault.
ERRAND_SHARE = 0.12
HEAL_S = 240.0
#: All tasks end within this, once everything is healed and no more are submitted.
PROGRESS_S = 240.0
#: Runs in which one machine is spared what ends processes, and for which part of them: so that its node, spawner and
#: etcd live for long enough to be seen to grow. What it shows is worth more than the same faults on one machine more.
SPARED_SHARE = 0.8
SPARED_FOR = 0.5
#: Between two looks at what the checks have found.
LOOK_S = 5.0


def draw_spared(seed: int) -> str:
    """The machine that is spared for a while; empty: none."""
    rng = random.Random(f"{seed}/spared")
    return rng.choice(NODES) if rng.random() < SPARED_SHARE else ""


@dataclass(frozen=True)
class Step:
    """What is drawn of one step, before anything is looked at."""

    number: int
    #: Of faults.WEIGHTS or members.WEIGHTS.
    kind: str
    is_errand: bool
    is_alone: bool
    lasts_s: float
    pause_s: float
    #: For the details.
    seed: str


def draw(seed: int, number: int) -> Step:
    """The same for the same seed and number, whatever happened in between."""
    rng = random.Random(f"{seed}/{number}")
    is_errand = rng.random() < ERRAND_SHARE
    weights = members.WEIGHTS if is_errand else faults.WEIGHTS
    (kind,) = rng.choices(list(weights), list(weights.values()))
    return Step(
        number, kind, is_errand,
        is_alone=rng.random() < ALONE_SHARE, lasts_s=rng.choice(LASTS_S), pause_s=rng.choice(PAUSES_S),
        seed=f"{seed}/{number}/details",
    )  # fmt: skip


class Chaos:
    """One run on one lab, by the thread that made the lab. Says what it finds; raises nothing for it."""

    def __init__(self, lab: Lab, seed: int, tell: Callable[[str], None], *, has_operator: bool = True) -> None:
        """has_operator: whether the steps of recovery.py are among it."""
        self.lab = lab
        self._seed = seed
        self._tell_all = tell
        self._began = time.monotonic()
        self.story: list[str] = []
        self.load = Load(lab, random.Random(f"{seed}/load"), self._say)
        self.power = Power(lab, self._say)
        self.faults = Faults(lab, self.power, on_full_disk=self._note_full_disk)
        self.checks = Checks(lab, self.load, self._say, deaths=self.faults.deaths)
        self.members = Members(lab, self.power, self.faults, self._say, flags=FLAGS)
        self._rng = random.Random(f"{seed}/answers")
        answers = random.Random(f"{seed}/operator")
        self.operator = Operator(lab, self.load, self.checks, self.power, answers, self._say)
        self._has_operator = has_operator
        #: Open wounds: when they are undone, what they are, and how.
        self._wounds: list[tuple[float, str, Callable[[], None]]] = []
        self.steps = 0
        self.done: dict[str, int] = {}
        self.flaws: list[str] = []

    def run(self, seconds: float) -> list[str]:
        """Hurts it for so long, heals it, and judges; the flaws, in words."""
        self.load.start()
        self.checks.start()
        try:
            self._go_on(seconds)
            self._say("the end: healing")
            self.heal()
            self.operator.check_snapshots()
            self.load.stop()
            self.wait_all_ended()
        except Exception as error:  # whatever broke is a finding, and the checks are still asked
            # What a step, or the healing, waits for in vain is a promise; anything else is a broken instrument.
            is_promise = isinstance(error, AssertionError)
            what = "it did not come" if is_promise else f"the instrument: the run broke off: {type(error).__name__}"
            self.flaws.append(f"{what}: {error}")
            self._say("".join(traceback.format_exception(error)))
        self.flaws += self.members.flaws + verdicts.told(self.power.flaws)
        self.flaws += self.checks.finish()
        return self.flaws

    def summary(self) -> str:
        """What was done and found, in one line."""
        done = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.done.items()))
        found = f"{len(self.flaws)} flaws" if self.flaws else "no flaw"
        ended = ", ".join(f"{count} x {why}" for why, count in sorted(self.power.ended.items())) or "none"
        return f"{self.steps} steps ({done}); nodes that ended by themselves: {ended}; {self.checks.summary()}; {found}"

    # While it goes on

    def _go_on(self, seconds: float) -> None:
        began = next_step = looked = time.monotonic()
        errands = recovery.schedule(random.Random(f"{self._seed}/schedule"), seconds) if self._has_operator else []
        step = draw(self._seed, 0)
        self.power.spared = draw_spared(self._seed)
        if self.power.spared:
            self._say(f"{self.power.spared} is spared what ends processes for {seconds * SPARED_FOR:.0f} s")
        while (now := time.monotonic()) < began + seconds:
            self._tick()
            if self.power.spared and now > began + seconds * SPARED_FOR:
                self._say(f"{self.power.spared} is spared no more")
                self.power.spared = ""
            if errands and now - began >= errands[0][0]:
                self._operate(errands.pop(0)[1])
            elif now >= next_step and len(self._wounds) < (1 if step.is_alone else OPEN_MAX):
                self._take(step)
                next_step = now + step.pause_s
                step = draw(self._seed, step.number + 1)
            if now - looked > LOOK_S:
                looked = now
                if self.checks.flaws_so_far() or self.power.flaws:
                    self._say("a check has found something: no more faults")
                    return
            time.sleep(TICK_S)

    def _take(self, step: Step) -> None:
        self.steps += 1
        rng = random.Random(step.seed)
        if step.is_errand:
            if self.members.begin(step.kind, rng):
                self._count(step.kind)
            return
        wound = self.faults.begin(step.kind, rng)
        if wound is None:
            return
        self._count(step.kind)
        lasts = f", for {step.lasts_s:g} s" if wound.undo is not None else ""
        self._say(f"[{step.number}] {wound.words}{lasts}")
        if wound.undo is not None:
            self._wounds.append((time.monotonic() + step.lasts_s, wound.words, wound.undo))

    def _tick(self) -> None:
        now = time.monotonic()
        for wound in [wound for wound in self._wounds if wound[0] <= now]:
            self._wounds.remove(wound)
            self._say(f"undo: {wound[1]}")
            wound[2]()
        self.power.tick()
        self.members.tick()
        self.faults.undrain(self._rng)

    def _operate(self, kind: str) -> None:
        if kind == "restore" and self.power.spared:
            kind = "back up"  # where everything is lost, nobody is spared
        if kind != "back up":
            self._say(f"healing before the operator's {kind}")
            self.heal()
        self.operator.do(kind)
        self._count(kind)

    # Healing

    def heal(self) -> None:
        """Undoes everything; every errand comes to its end, and all is whole."""
        for _, _, undo in self._wounds:
            undo()
        self._wounds.clear()
        self._wait("HostsComeAndGo: the errand is done", lambda: not self.members.is_busy)
        self._wait("every drain is undone", lambda: self.faults.undrain(self._rng))
        self.lab.unhurt()
        # A node that is stopping yet is started again when it has ended.
        self._wait("every node is ready, and etcd has all its members", self.lab.is_whole)
        self.lab.tidy()

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        def goes_on() -> bool:
            self._tick()
            return condition()

        try:
            wait_until_sync(goes_on, HEAL_S, what=what, every_s=TICK_S)
        except AssertionError as error:
            errand = f"; its errand waits until {self.members.waits_for}" if self.members.is_busy else ""
            raise AssertionError(f"{error}{errand}; nodes: {self.lab.states()}") from None

    def wait_all_ended(self) -> None:
        """EventuallyTerminal."""
        began = time.monotonic()
        wait_until_sync(
            lambda: not self._unended(), PROGRESS_S, what="EventuallyTerminal: every task ends, once all is healed",
            every_s=1.0,
        )  # fmt: skip
        self._say(f"all tasks have ended after {time.monotonic() - began:.1f} s")

    def _unended(self) -> list[str]:
        with self.lab.any_node().client(patience_s=20.0) as client:
            return [task.id for status in ("queued", "running") for task in client.list(status=status)]

    # Telling

    def _note_full_disk(self) -> None:
        self.load.disk_was_full = True

    def _count(self, kind: str) -> None:
        self.done[kind] = self.done.get(kind, 0) + 1

    def _say(self, what: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {what}"
        self.story.append(line)
        self._tell_all(line)
