"""Hosts that come and go while everything else goes on: joins, removals, lost disks.

An errand is a generator: it does one thing and yields until it can do the next, so that faults hit a host in the middle
of its joining or leaving as they hit any other. There is one errand at a time. That is a rule for whoever runs a
cluster, too: a second disk must not be lost before the vote of the first one's host has gone to another, or three
voters are one, and nothing acknowledged is safe any more.

What is checked on the way: a host that was removed stays out (`RemovedStaysOut`) until its data directory is empty, and
every errand comes to its end within a bounded time once nothing is hurt any more (`HostsComeAndGo`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator

from pilfer import Client, NotFound, PreconditionFailed
from tests.chaos.asking import ask
from tests.chaos.faults import Faults
from tests.chaos.power import Power
from tests.support.lab import Lab, LabNode

Errand = Generator[None, None, None]

#: Machines that are no part of the cluster at the beginning.
NEWCOMERS = ("f", "g")
WEIGHTS = {"join": 2, "leave": 2, "leave for good": 1, "lose a disk": 2}
#: Never fewer hosts than these: three that vote, and one that can take a seat.
LEAST = 4
#: How long a host that leaves may take to give its tasks back, and to stop.
DRAIN_S, STOP_S = 15.0, 60.0
#: A host that was removed and starts nevertheless is refused within this, if a voter can be asked at all.
REFUSED_S = 20.0
#: Between two questions to the cluster.
LOOK_S = 0.5


class Members:
    """The errand that is under way, if any."""

    def __init__(
        self, lab: Lab, power: Power, faults: Faults, tell: Callable[[str], None], *, flags: tuple[str, ...] = ()
    ) -> None:
        """flags: of newcomers."""
        self._lab = lab
        self._power = power
        self._faults = faults
        self._tell = tell
        self._flags = flags
        self._errand: Errand | None = None
        self._looked = 0.0
        #: What the errand waits for, in words.
        self.waits_for = ""
        #: What must never be, in words.
        self.flaws: list[str] = []
        #: Errands that came to their end.
        self.done = 0

    @property
    def is_busy(self) -> bool:
        return self._errand is not None

    def begin(self, kind: str, rng: random.Random) -> bool:
        """Begins one of WEIGHTS; False where it is not possible now."""
        if self.is_busy:
            return False
        self._errand = self._find_errand(kind, rng)
        return self.is_busy

    def tick(self) -> None:
        """Goes on with the errand. To be called often, by the thread that made the lab."""
        now = time.monotonic()
        if self._errand is None or now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            next(self._errand)
        except StopIteration:
            self._errand = None
            self.done += 1

    def _find_errand(self, kind: str, rng: random.Random) -> Errand | None:
        outside = [name for name in NEWCOMERS if name not in self._lab.nodes]
        if kind == "join":
            return self._join(rng, rng.choice(outside)) if outside else None
        victim = self._lab.nodes[rng.choice(sorted(self._lab.nodes.keys() - {self._power.spared}))]
        if len(self._lab.nodes) <= LEAST or not (victim.data_dir / "host_id").exists():
            return None
        if kind == "lose a disk":
            return self._lose_disk(rng, victim) if self._are_votes_safe() else None
        newcomers = [self._lab.nodes[name] for name in NEWCOMERS if name in self._lab.nodes]
        if kind == "leave for good":
            return self._leave(rng, rng.choice(newcomers), is_back=False) if newcomers else None
        return self._leave(rng, victim, is_back=victim.name not in NEWCOMERS)

    def _are_votes_safe(self) -> bool:
        """Whether one disk may be lost: three vote, and each of them is there."""
        voting = self._lab.voting_hosts()
        return len(voting) >= 3 and voting <= {node.host_id for node in self._lab.voters()}

    # Errands

    def _join(self, rng: random.Random, name: str) -> Errand:
        self._tell(f"{name} joins")
        machine = next((node for node in self._lab.machines if node.name == name), None)
        if machine is None:
            machine = self._lab.add(name, *self._flags)
        else:
            self._lab.take_in(machine)
        yield from self._wait_ready(rng, machine)

    def _leave(self, rng: random.Random, node: LabNode, *, is_back: bool) -> Errand:
        """Drained, stopped, removed; it comes back, if it does, with an empty directory."""
        self._tell(f"{node.name} leaves: drained, then stopped, then removed")
        name, let_finish = node.name, rng.random() < 0.5
        yield from self._wait("its drain is answered", lambda: self._is_drained_or_off(rng, name, let_finish))
        yield from self._pause(rng.uniform(0.0, DRAIN_S))
        undo = self._power.keep_off([node])
        try:
            if node.is_up:
                node.terminate()
            yield from self._wait("it stops", lambda: not node.is_up, limit_s=STOP_S)
            if node.is_up:
                node.power_off()
            yield from self._removed(rng, node)
            if rng.random() < 0.5:
                yield from self._come_back_with_old_data(node)
            self._lab.wipe(node)
            yield from self._pause(rng.choice((0.0, 5.0, 20.0)))
            if is_back:
                self._lab.take_in(node)
        finally:
            undo()
        if is_back:
            self._tell(f"{name} joins again, with an empty directory")
            yield from self._wait_ready(rng, node)

    def _lose_disk(self, rng: random.Random, node: LabNode) -> Errand:
        self._tell(f"{node.name} loses its disk")
        undo = self._power.keep_off([node])
        try:
            host_id = node.host_id
            self._lab.wipe(node)
            yield from self._pause(rng.choice((0.0, 5.0, 20.0, 40.0)))
            yield from self._removed(rng, node, host_id)
            self._lab.take_in(node)
        finally:
            undo()
        self._tell(f"{node.name} joins again, with an empty directory")
        yield from self._wait_ready(rng, node)
        yield from self._wait("three vote, without the lost one", lambda: self._is_replaced(host_id))

    # Their steps

    def _is_drained_or_off(self, rng: random.Random, name: str, let_finish: bool) -> bool:
        node = self._lab.nodes[name]
        return not node.is_up or ask(self._lab, rng, lambda c: c.drain(name, let_finish=let_finish)) is not None

    def _removed(self, rng: random.Random, node: LabNode, host_id: str = "") -> Errand:
        host_id = host_id or node.host_id
        self._lab.let_go(node)
        yield from self._wait(f"{node.name} (host {host_id}) is removed", lambda: self._remove(rng, host_id))
        self._power.removed.add(host_id)
        self._tell(f"{node.name} is removed")

    def _remove(self, rng: random.Random, host_id: str) -> bool:
        """Repeating it is harmless: who did not hear the answer asks again."""

        def call(client: Client) -> bool:
            try:
                client.remove(host_id)
            except NotFound:
                return True
            except PreconditionFailed:
                # Its lease lives yet.
                return False
            return True

        return bool(ask(self._lab, rng, call))

    def _come_back_with_old_data(self, node: LabNode) -> Errand:
        """RemovedStaysOut."""
        self._tell(f"{node.name} starts with the directory of before its removal")
        node.begin()
        yield from self._wait("it is refused", lambda: not node.is_up, limit_s=REFUSED_S)
        if node.is_up:
            view = node.find_view()
            if view is not None and view.state != "gone":
                self.flaws.append(f"RemovedStaysOut: {node.name} ({node.host_id}) was removed, and serves: {view}")
        else:
            self._power.judge_end(node)

    def _wait_ready(self, rng: random.Random, node: LabNode) -> Errand:
        """Power starts it, as often as it takes."""
        yield from self._wait(f"{node.name} is ready", lambda: self._is_ready(rng, node))
        self._tell(f"{node.name} is ready")

    def _is_ready(self, rng: random.Random, node: LabNode) -> bool:
        if not node.is_up or not (node.data_dir / "host_id").exists():
            return False
        views = ask(self._lab, rng, lambda client: client.nodes()) or []
        return any(view.host_id == node.host_id and view.state == "ready" for view in views)

    def _is_replaced(self, host_id: str) -> bool:
        return self._are_votes_safe() and host_id not in self._lab.voting_hosts()

    def _wait(self, what: str, condition: Callable[[], bool], *, limit_s: float | None = None) -> Errand:
        self.waits_for = what
        until = time.monotonic() + limit_s if limit_s is not None else None
        while not condition() and (until is None or time.monotonic() < until):
            yield

    def _pause(self, seconds: float) -> Errand:
        over = time.monotonic() + seconds
        yield from self._wait("a while", lambda: time.monotonic() > over)
