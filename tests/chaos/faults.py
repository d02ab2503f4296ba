"""What is done to a cluster, each fault undone by itself: processes, cables, disks, leadership.

A fault is drawn from a random generator of its own and from the nodes that there are. What cannot be done at that
moment (the part is not there, the machine is off) is not done, and nothing is drawn again, so that a seed tells the
same story as far as the processes let it. Undoing never waits: a machine that shall be on again is started by `Power`.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psutil

from pilfer import Client
from pilfer.types import NodeView
from tests.chaos.asking import ask
from tests.chaos.power import Power
from tests.support.lab import PARTS, Lab, LabNode

#: How often each is drawn, in proportion.
WEIGHTS = {
    "kill": 5, "pause": 5, "power off": 2, "stop": 2, "restart": 2, "blackout": 1,
    "unplug": 2, "lose": 3, "cut": 2, "partition": 2, "fade": 3,
    "fill the disk": 3, "move the leader": 2, "drain": 2,
}  # fmt: skip
#: What ends or stops processes, at once or (etcd, where nothing can be written) a moment later.
OF_PROCESSES = frozenset({"kill", "pause", "power off", "stop", "restart", "blackout", "fill the disk"})
#: Shares of packets that a fading cable loses each way: from hardly noticed to hardly usable.
FADES = (0.02, 0.1, 0.3, 0.6)
UNDRAIN_EVERY_S = 1.0


@dataclass(frozen=True)
class Wound:
    """A fault."""

    words: str
    #: None of what is over with, or mends itself.
    undo: Callable[[], None] | None = None


class Faults:
    """All kinds, on one lab."""

    def __init__(self, lab: Lab, power: Power, *, on_full_disk: Callable[[], None] | None = None) -> None:
        self._lab = lab
        self._power = power
        self._on_full_disk = on_full_disk
        #: Names of nodes whose drain is not undone yet, and that no wound wants to be drained.
        self._to_undrain: set[str] = set()
        self._drained: set[str] = set()
        self._asked = 0.0
        #: By name, how many wounds hold parts of it still.
        self._paused: Counter[str] = Counter()
        #: When a node was killed alone, or with parts of its machine: by its id, with time.monotonic(). Those whose
        #: spawner stands still are left out: it cannot kill anything.
        self.deaths: dict[str, float] = {}
        #: Why cables do not fade here; None where they do.
        self.fade_lack = lab.network.find_fade_lack()
        self._kinds: dict[str, Callable[[random.Random, LabNode, list[LabNode]], Wound | None]] = {
            "kill": self._kill, "pause": self._pause, "power off": self._power_off, "stop": self._stop,
            "restart": self._restart, "blackout": self._blackout,
            "unplug": self._unplug, "lose": self._lose, "cut": self._cut, "partition": self._partition,
            "fade": self._fade, "fill the disk": self._fill, "move the leader": self._move_leader, "drain": self._drain,
        }  # fmt: skip

    def begin(self, kind: str, rng: random.Random) -> Wound | None:
        """Does one of WEIGHTS to whom rng chooses; None where that is not possible now."""
        nodes = [self._lab.nodes[name] for name in sorted(self._lab.nodes)]
        if kind in OF_PROCESSES:
            nodes = [node for node in nodes if node.name != self._power.spared]
        rng.shuffle(nodes)
        return self._kinds[kind](rng, nodes[0], nodes[1:])

    # Processes

    def _kill(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        """One part, several of one machine at once, or the same part of two machines."""
        parts = rng.sample(PARTS, rng.choice((1, 1, 1, 2, 3)))
        victims = [victim, *others[: rng.choice((0, 0, 0, 1))]]
        found = [(node, part, process) for node in victims for part in parts if (process := _find(node, part))]
        if not found:
            return None
        down = [node for node, part, _ in found if part == "node"]
        with self._noted(down):
            for _, _, process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        words = f"kill -9 of {', '.join(f'{part} of {node.name}' for node, part, _ in found)}"
        return Wound(words, self._power.keep_off(down))

    @contextlib.contextmanager
    def _noted(self, victims: list[LabNode]) -> Iterator[None]:
        """These nodes are killed within."""
        ids = [_find_id(node) for node in victims if self._paused[node.name] <= 0]
        yield
        now = time.monotonic()
        for node_id in filter(None, ids):
            self.deaths.setdefault(node_id, now)

    def _pause(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        parts = rng.sample(PARTS, rng.choice((1, 1, 2, 3)))
        victims = [victim, *others[: rng.choice((0, 0, 0, 1))]]
        # The node is asked last: its children are found through it.
        parts.sort(key=lambda part: part == "node")
        found = [(node, part) for node in victims for part in parts if _find(node, part)]
        if not found:
            return None
        for node, part in found:
            with contextlib.suppress(AssertionError, psutil.NoSuchProcess):
                node.pause(part)

        self._paused.update(node.name for node in victims)

        def undo() -> None:
            self._paused.subtract(node.name for node in victims)
            for node in victims:
                node.resume()

        return Wound(f"SIGSTOP of {', '.join(f'{part} of {node.name}' for node, part in found)}", undo)

    def _power_off(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        victims = [node for node in (victim, *others[: rng.choice((0, 0, 1))]) if node.is_up]
        for node in victims:
            node.power_off()
        return Wound(f"power off {_names(victims)}", self._power.keep_off(victims)) if victims else None

    def _blackout(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        """The whole cluster at once: the node processes alone, or all that runs."""
        victims = [node for node in (victim, *others) if node.is_up]
        if rng.random() < 0.5:
            with self._noted(victims):
                for node in victims:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        psutil.Process(node.pid).kill()
            words = "kill -9 of every node at once"
        else:
            for node in victims:
                node.power_off()
            words = "power off everything"
        return Wound(words, self._power.keep_off(victims)) if victims else None

    def _stop(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        if not victim.is_up:
            return None
        victim.terminate()
        return Wound(f"SIGTERM to {victim.name}", self._power.keep_off([victim]))

    def _restart(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        """Started again as soon as it has ended, in order or not."""
        is_in_order = rng.random() < 0.5
        if not victim.is_up:
            return None
        if is_in_order:
            victim.terminate()
        else:
            with self._noted([victim]):
                victim.kill()
        return Wound(f"restart {victim.name} by {'SIGTERM' if is_in_order else 'kill -9'}")

    # Cables

    def _unplug(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        self._lab.network.unplug(victim.name)
        return Wound(f"unplug {victim.name}", lambda: self._lab.network.plug(victim.name))

    def _lose(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        """One way only."""
        to = others[: rng.randint(1, len(others))]
        return self._lost(f"lose what {victim.name} sends to {_names(to)}", {victim.name: {node.name for node in to}})

    def _cut(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        one, other = victim.name, others[0].name
        return self._lost(f"cut between {one} and {other}", {one: {other}, other: {one}})

    def _partition(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        at = rng.randint(0, len(others) - 1)
        side, rest = [victim, *others[:at]], others[at:]
        there, here = {node.name for node in rest}, {node.name for node in side}
        ways = {node.name: there for node in side} | {node.name: here for node in rest}
        return self._lost(f"partition {_names(side)} from {_names(rest)}", ways)

    def _lost(self, words: str, ways: dict[str, set[str]]) -> Wound:
        """Only what was not lost before is found again when this is undone."""
        new = {sender: to - self._lab.network[sender].lost_to for sender, to in ways.items()}
        for sender, receivers in new.items():
            if receivers:
                self._lab.network.lose(sender, *sorted(receivers))

        def undo() -> None:
            for sender, receivers in new.items():
                self._lab.network.find(sender, *receivers)

        return Wound(words, undo)

    def _fade(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        share, victims = rng.choice(FADES), [victim, *others[: rng.choice((0, 0, 1, len(others)))]]
        victims = [node for node in victims if not self._lab.network[node.name].faded]
        if self.fade_lack is not None or not victims:
            return None
        for node in victims:
            self._lab.network.fade(node.name, share)

        def undo() -> None:
            for node in victims:
                self._lab.network.fade(node.name, 0.0)

        return Wound(f"the cables of {_names(victims)} lose {share:.0%} of all packets", undo)

    # Disks

    def _fill(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        victims = [victim, *others[: rng.choice((0, 0, 1))]]
        found = [(node, node.disk) for node in victims if node.disk is not None and not node.disk.is_filled]
        if not found:
            return None
        if self._on_full_disk is not None:
            self._on_full_disk()
        for _, disk in found:
            disk.fill()
        self._power.note_full(node for node, _ in found)

        def undo() -> None:
            self._power.note_full(node for node, _ in found)
            for _, disk in found:
                disk.free()

        return Wound(f"fill {', '.join(disk.path.name for _, disk in found)}", undo)

    # In order

    def _move_leader(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        if not victim.is_up or victim.etcd_port is None:
            return None
        leader = self._lab.find_leader()
        if leader is None or leader is victim or not self._lab.find_move_leader(victim):
            return None
        return Wound(f"etcd's leader moves from {leader.name} to {victim.name}")

    def _drain(self, rng: random.Random, victim: LabNode, others: list[LabNode]) -> Wound | None:
        let_finish, name = rng.random() < 0.5, victim.name
        if ask(self._lab, rng, lambda client: client.drain(name, let_finish=let_finish)) is None:
            # Not answered is not refused: it may hold, or come to hold yet.
            self._to_undrain.add(name)
            return None
        self._drained.add(name)

        def undo() -> None:
            self._drained.discard(name)
            self._to_undrain.add(name)

        return Wound(f"drain {name}{', letting its tasks finish' if let_finish else ''}", undo)

    def undrain(self, rng: random.Random) -> bool:
        """Undoes what drains it can; whether none is left that should be undone. To be called now and then; asks the
        cluster less often, since an answer may take its time."""
        self._to_undrain &= set(self._lab.nodes)
        if time.monotonic() < self._asked + UNDRAIN_EVERY_S:
            return not self._to_undrain
        self._asked = time.monotonic()
        for name in sorted(self._to_undrain - self._drained):
            if ask(self._lab, rng, partial(_undrain, name)) is not None:
                self._to_undrain.discard(name)
        return not self._to_undrain


def _undrain(name: str, client: Client) -> NodeView:
    return client.drain(name, undo=True)


def _find(node: LabNode, part: str) -> psutil.Process | None:
    return node.find_part(part) if node.is_up else None


def _find_id(node: LabNode) -> str | None:
    """Of the node that runs there, as it has noted it down before it runs anything."""
    try:
        found = json.loads((node.data_dir / "incarnation.json").read_text())
    except (OSError, ValueError):
        return None
    return str(found["node_id"])


def _names(nodes: list[LabNode]) -> str:
    return "+".join(node.name for node in nodes)
