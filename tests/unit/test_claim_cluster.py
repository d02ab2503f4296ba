"""The claim policy played by several nodes in virtual time: how many claims are lost, and who gets how much.

A model of the parts that matter: a queue with guarded claims (the first one applied wins), a delay from sending a
claim to its being applied, from there to its answer, and to everybody's event; nodes with slots, which hold what they
have claimed ahead until there is room for it, and give it back when that takes too long. No etcd, no clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import pytest

from node.core.claim import ClaimSettings, Situation, plan_claims
from node.core.model import Capacity, Requirements
from node.core.peers import Peers, Place
from node.core.queue_view import QueueView
from node.core.requirements import NO_TERMS, Ledger, Reservation, Terms, reservation
from node.running.rates import Turnover
from node.running.runner import WAIT_MAX_S

GIB = 1 << 30
#: From sending to applied, from applied to the answer and to the events; the real ones are 1 to 4 ms.
SEND_S, ANSWER_S, EVENT_S = 0.0015, 0.001, 0.001


def task_ids(count: int, seed: int) -> list[str]:
    """UUIDv7-like: they sort in the order of the list."""
    draw = random.Random(seed)
    return [str(uuid.UUID(int=(0x0190 << 112) | (n << 80) | (7 << 76) | draw.getrandbits(76))) for n in range(count)]


def jain(values: list[float]) -> float:
    """Jain's index of fairness: 1 when all get the same, 1/n when one gets all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@dataclass
class SimulatedNode:
    id: str
    view: QueueView
    ledger: Ledger
    unstarted: int = 0
    starting: int = 0
    #: Claims ahead that are not answered, and won ones that wait for room, oldest first, with when they were won.
    ahead: int = 0
    waiting: dict[str, float] = field(default_factory=dict)
    most_waiting: int = 0
    turnover: Turnover = field(default_factory=Turnover)
    wake_at: float = math.inf
    won: int = 0


@dataclass
class Cluster:
    """Nodes that race for one queue. `duration` gives the seconds that a task runs."""

    capacities: Mapping[str, Capacity]
    duration: Callable[[str], float]
    make_view: Callable[[str, Capacity], QueueView] = QueueView
    settings: ClaimSettings = field(default_factory=ClaimSettings)
    #: A sandbox takes so long to start, two at a time on each node.
    start_s: float = 0.002
    dead: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.now = 0.0
        self.tried = 0
        self.winner: dict[str, str] = {}
        self.claimed_at: dict[str, float] = {}
        self.started_at: dict[str, float] = {}
        self.submitted_at: dict[str, float] = {}
        self.given_back = 0
        self.needs: dict[str, Requirements] = {}
        self._queued: dict[str, Requirements] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.nodes = {
            node_id: SimulatedNode(node_id, self.make_view(node_id, capacity), Ledger(capacity))
            for node_id, capacity in self.capacities.items()
        }
        for node in self.nodes.values():
            node.view.set_nodes(self.capacities)

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), do))

    def submit(self, ids: list[str], requirements: Requirements) -> None:
        for task_id in ids:
            self._queued[task_id] = self.needs[task_id] = requirements
            self.submitted_at.setdefault(task_id, self.now)
        for node in self.nodes.values():
            if node.id not in self.dead:
                self.after(EVENT_S, lambda node=node: self._seen(node, ids, requirements))  # type: ignore[misc]  # default

    def run(self, until_s: float = math.inf) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now, _, do = heapq.heappop(self._events)
            do()

    def join(self, node_id: str, capacity: Capacity) -> SimulatedNode:
        """A node that comes later: it lists the queue, and the others hear of it."""
        self.capacities = {**self.capacities, node_id: capacity}
        node = self.nodes[node_id] = SimulatedNode(node_id, self.make_view(node_id, capacity), Ledger(capacity))
        for one in self.nodes.values():
            self.after(EVENT_S, lambda one=one: one.view.set_nodes(self.capacities))  # type: ignore[misc]  # bound by default
        for task_id, requirements in self._queued.items():
            node.view.add(task_id, requirements, now=self.now, age_s=self.now - self.submitted_at[task_id])
        self.after(2 * EVENT_S, lambda: self._decide(node))
        return node

    def _seen(self, node: SimulatedNode, ids: list[str], requirements: Requirements) -> None:
        for task_id in ids:
            node.view.add(task_id, requirements, now=self.now)
        self._decide(node)

    def _decide(self, node: SimulatedNode) -> None:
        if node.id in self.dead:
            return
        situation = Situation(
            now=self.now,
            free=node.ledger.free,
            load=node.ledger.load,
            unstarted=node.unstarted,
            ahead=node.ahead + len(node.waiting),
            start_rate_per_s=2 / self.start_s,
            end_rate_per_s=node.turnover.per_s(self.now),
            smallest_end=node.turnover.smallest,
            round_trip_s=SEND_S + ANSWER_S,
        )
        plan = plan_claims(node.view, situation, self.settings)
        batch = []
        for task_id in plan.claim:
            offer = node.view.remove(task_id)
            assert offer is not None
            assert node.ledger.take(task_id, offer.requirements), "the plan does not fit"
            batch.append(task_id)
        if batch:
            node.unstarted += len(batch)
            self.tried += len(batch)
            self.after(SEND_S, lambda: self._apply(node, batch))
        ahead = [task_id for task_id in plan.ahead if node.view.remove(task_id) is not None]
        if ahead:
            node.ahead += len(ahead)
            self.tried += len(ahead)
            self.after(SEND_S, lambda: self._apply(node, ahead, is_ahead=True))
        if plan.look_again_at is not None and plan.look_again_at < node.wake_at:
            node.wake_at = plan.look_again_at
            self.after(max(0.0, plan.look_again_at - self.now) + 1e-6, lambda: self._look_again(node))

    def _look_again(self, node: SimulatedNode) -> None:
        node.wake_at = math.inf
        self._decide(node)

    def _apply(self, node: SimulatedNode, batch: list[str], *, is_ahead: bool = False) -> None:
        won = [task_id for task_id in batch if self._queued.pop(task_id, None) is not None]
        for task_id in won:
            self.winner[task_id] = node.id
            self.claimed_at[task_id] = self.now
        for other in self.nodes.values():
            self.after(EVENT_S, lambda other=other: self._gone(other, won))  # type: ignore[misc]  # bound by default
        answered = self._answered_ahead if is_ahead else self._answered
        self.after(ANSWER_S, lambda: answered(node, batch, set(won)))

    def _gone(self, node: SimulatedNode, ids: list[str]) -> None:
        for task_id in ids:
            node.view.remove(task_id)

    def _answered(self, node: SimulatedNode, batch: list[str], won: set[str]) -> None:
        node.won += len(won)
        for task_id in batch:
            if task_id in won:
                self._launch(node, task_id)
            else:
                node.unstarted -= 1
                node.ledger.release(task_id)
        self._decide(node)

    def _answered_ahead(self, node: SimulatedNode, batch: list[str], won: set[str]) -> None:
        node.won += len(won)
        node.ahead -= len(batch)
        for task_id in batch:
            if task_id in won:
                node.waiting[task_id] = self.now
                self.after(WAIT_MAX_S, lambda t=task_id, since=self.now: self._give_back(node, t, since))  # type: ignore[misc]  # bound by default
        node.most_waiting = max(node.most_waiting, len(node.waiting))
        self._start_waiting(node)
        self._decide(node)

    def _start_waiting(self, node: SimulatedNode) -> None:
        for task_id in [t for t in node.waiting if node.ledger.take(t, self.needs[t])]:
            del node.waiting[task_id]
            node.unstarted += 1
            self._launch(node, task_id)

    def _give_back(self, node: SimulatedNode, task_id: str, since: float) -> None:
        if node.waiting.get(task_id) == since:
            del node.waiting[task_id]
            node.won -= 1
            del self.winner[task_id]
            self.given_back += 1
            self.submit([task_id], self.needs[task_id])

    def _launch(self, node: SimulatedNode, task_id: str) -> None:
        node.starting += 1
        self.after(math.ceil(node.starting / 2) * self.start_s, lambda: self._start(node, task_id))

    def _start(self, node: SimulatedNode, task_id: str) -> None:
        node.starting -= 1
        node.unstarted -= 1
        self.started_at[task_id] = self.now
        self.after(self.duration(task_id), lambda: self._end(node, task_id))
        self._decide(node)

    def _end(self, node: SimulatedNode, task_id: str) -> None:
        node.ledger.release(task_id)
        node.turnover.add(reservation(self.needs[task_id]), self.now)
        self._start_waiting(node)
        self._decide(node)

    @property
    def tried_per_won(self) -> float:
        return self.tried / len(self.winner)

    def latencies(self) -> list[float]:
        return sorted(self.claimed_at[t] - self.submitted_at[t] for t in self.claimed_at)


class IndependentPlace(Place):
    """The design's draft: every node has a hash of its own for each task, and u x n is its rank."""

    salt = b""

    def steps(self, point: int) -> int:
        digest = blake2b(point.to_bytes(5, "big") + self.salt, digest_size=4).digest()
        return int(math.log2(1 + int.from_bytes(digest, "big") / 2**32 * self.count))


class IndependentPeers(Peers):
    def place(self, needs: Reservation, demanded: Terms = NO_TERMS) -> Place | None:
        place = super().place(needs, demanded)
        if place is None:
            return None
        own = type("OwnPlace", (IndependentPlace,), {"salt": self.me.encode()})
        made = own(place.count, place.start, place.weight, place.total)
        assert isinstance(made, Place)
        return made


class IndependentView(QueueView):
    def set_nodes(self, nodes: Mapping[str, Capacity]) -> None:
        self._peers = IndependentPeers(self._me, nodes, my_capacity=self._capacity)


class RacingView(QueueView):
    """Knows of no peers: everybody claims what comes."""

    def set_nodes(self, nodes: Mapping[str, Capacity]) -> None:
        pass


def eight(cpu: float = 2.0) -> dict[str, Capacity]:
    return {str(uuid.UUID(int=n * 7919 + 1)): Capacity(cpu, 64 * GIB) for n in range(8)}


def backlog(make_view: Callable[[str, Capacity], QueueView], *, tasks: int = 2000, cpu: float = 2.0) -> Cluster:
    """All tasks at once, each a few milliseconds long: the queue is far longer than what the nodes hold."""
    draw = random.Random(3)
    cluster = Cluster(eight(cpu), lambda _: draw.uniform(0.002, 0.010), make_view)
    cluster.submit(task_ids(tasks, seed=1), Requirements(cpu=0.1))
    cluster.run()
    assert len(cluster.winner) == tasks
    return cluster


def trickle(make_view: Callable[[str, Capacity], QueueView], *, tasks: int = 1000) -> Cluster:
    """One task every 5 ms for nodes that are a third busy."""
    draw = random.Random(4)
    cluster = Cluster(eight(4.0), lambda _: draw.uniform(0.03, 0.07), make_view)
    for number, task_id in enumerate(task_ids(tasks, seed=2)):
        cluster.after(number * 0.005, lambda t=task_id: cluster.submit([t], Requirements(cpu=1.0)))  # type: ignore[misc]  # bound by default
    cluster.run()
    assert len(cluster.winner) == tasks
    return cluster


@pytest.mark.parametrize("cpu", [2.0, 0.2], ids=["20 slots a node", "2 slots a node"])
def test_backlog_costs_hardly_more_than_one_claim_per_task_and_is_shared_evenly(cpu: float) -> None:
    cluster = backlog(QueueView, cpu=cpu)
    assert cluster.tried_per_won < 1.1
    assert jain([node.won for node in cluster.nodes.values()]) > 0.99


def test_trickle_costs_hardly_more_than_one_claim_per_task_and_waits_for_nobody_idle() -> None:
    cluster = trickle(QueueView)
    assert cluster.tried_per_won < 1.2
    assert jain([node.won for node in cluster.nodes.values()]) > 0.98
    latencies = cluster.latencies()
    # The node of rank 0 is seldom busy: half of the tasks wait for no step at all.
    assert latencies[len(latencies) // 2] < ClaimSettings().trickle_step_s / 2


@pytest.mark.parametrize("view", [IndependentView, RacingView])
def test_the_alternatives_lose_more_claims(view: Callable[[str, Capacity], QueueView]) -> None:
    """Why the ranks are as they are: independent hashes race at every step, no ranks race all the time."""
    assert backlog(view).tried_per_won > backlog(QueueView).tried_per_won + 0.15
    assert trickle(view).tried_per_won > trickle(QueueView).tried_per_won + 0.2


def test_node_twice_as_big_gets_about_twice_as_much() -> None:
    capacities = eight(1.0)
    big = sorted(capacities)[3]
    capacities[big] = Capacity(2.0, 64 * GIB)
    draw = random.Random(5)
    cluster = Cluster(capacities, lambda _: draw.uniform(0.02, 0.04))
    cluster.submit(task_ids(1500, seed=6), Requirements(cpu=0.25))
    cluster.run()
    others = [node.won for node in cluster.nodes.values() if node.id != big]
    assert 1.7 < cluster.nodes[big].won / (sum(others) / len(others)) < 2.3


def test_share_of_a_dead_node_is_taken_by_all_others_after_a_step() -> None:
    """Its key is still there: for a lease's time the others count it as a peer."""
    capacities = eight(2.0)
    dead = sorted(capacities)[5]
    draw = random.Random(7)
    cluster = Cluster(capacities, lambda _: draw.uniform(0.002, 0.010), dead=frozenset({dead}))
    cluster.submit(task_ids(1500, seed=8), Requirements(cpu=0.1))
    cluster.run()
    alive = [node.won for node in cluster.nodes.values() if node.id != dead]
    assert sum(alive) == 1500
    assert jain([float(won) for won in alive]) > 0.98
    # The two neighbours of the dead node race for its eighth, and all for the last few tasks.
    assert cluster.tried_per_won < 1.5


def test_under_a_backlog_nodes_claim_ahead_and_hold_nothing_for_long() -> None:
    cluster = backlog(QueueView, cpu=0.2)
    assert all(node.most_waiting > 0 for node in cluster.nodes.values())
    held_s = [cluster.started_at[t] - cluster.claimed_at[t] for t in cluster.started_at]
    assert max(held_s) < ClaimSettings().claim_ahead_s * 1.5
    assert cluster.given_back == 0


def test_what_a_node_holds_goes_to_others_when_its_tasks_turn_out_long() -> None:
    """Short tasks, then one long one for each slot of one node: what that node had claimed ahead runs elsewhere."""
    capacities = dict(list(eight(1.0).items())[:2])
    slow = sorted(capacities)[0]
    draw = random.Random(12)

    def duration(task_id: str) -> float:
        # Which tasks are long is known when they are claimed: those that the slow node starts after a while.
        return 30.0 if cluster.now > 0.5 and cluster.winner[task_id] == slow else draw.uniform(0.002, 0.010)

    cluster = Cluster(capacities, duration)
    cluster.submit(task_ids(2000, seed=13), Requirements(cpu=0.5))
    cluster.run(until_s=20)
    assert len(cluster.started_at) == 2000
    assert 0 < cluster.given_back <= 2 * cluster.nodes[slow].most_waiting
    assert max(cluster.started_at[t] - cluster.claimed_at[t] for t in cluster.started_at) < WAIT_MAX_S + 0.1


def test_a_joining_node_has_work_at_once_also_where_others_have_claimed_ahead() -> None:
    capacities = dict(list(eight(1.0).items())[:3])
    draw = random.Random(14)
    cluster = Cluster(capacities, lambda _: draw.uniform(0.002, 0.010))
    cluster.submit(task_ids(3000, seed=15), Requirements(cpu=0.5))
    cluster.run(until_s=1.0)
    assert any(node.waiting for node in cluster.nodes.values())
    newcomer = cluster.join(sorted(eight())[5], Capacity(1.0, 64 * GIB))
    cluster.run(until_s=1.5)
    assert newcomer.won > 0
    before = {node.id: node.won for node in cluster.nodes.values()}
    cluster.run(until_s=2.2)
    assert len(cluster.winner) < 3000, "the queue ran dry"
    assert jain([float(node.won - before[node.id]) for node in cluster.nodes.values()]) > 0.95


def test_a_task_that_fits_one_node_alone_goes_there_without_waiting() -> None:
    """Among eight, while the others would have their turns."""
    capacities = eight(2.0)
    big = sorted(capacities)[6]
    capacities[big] = Capacity(8.0, 64 * GIB)
    cluster = Cluster(capacities, lambda _: 0.05)
    (only,) = task_ids(1, seed=16)
    cluster.submit([only], Requirements(cpu=8.0))
    cluster.run()
    assert cluster.winner[only] == big
    assert cluster.claimed_at[only] - cluster.submitted_at[only] < 2 * (EVENT_S + SEND_S)


def test_big_task_is_not_starved_by_small_ones() -> None:
    """One task that needs a whole node, in a stream of small ones that always fill all nodes."""
    settings = ClaimSettings(hold_after_s=2.0)
    capacities = dict(list(eight(4.0).items())[:3])
    draw = random.Random(9)
    cluster = Cluster(capacities, lambda t: 0.5 if t == whole else draw.uniform(0.5, 1.5), settings=settings)
    ids = task_ids(1000, seed=10)
    whole = ids[40]
    for number, task_id in enumerate(ids):
        cpu = 4.0 if task_id == whole else 1.0
        cluster.after(number * 0.05, lambda t=task_id, c=cpu: cluster.submit([t], Requirements(cpu=c)))  # type: ignore[misc]  # bound by default
    cluster.run()
    waited_s = cluster.claimed_at[whole] - cluster.submitted_at[whole]
    # It cannot have been luck: the queue was never empty meanwhile.
    later = [t for t in ids if t > whole and cluster.claimed_at[t] > cluster.claimed_at[whole]]
    assert len(later) > 500
    assert settings.hold_after_s <= waited_s < settings.hold_after_s + 5
    assert len(cluster.winner) == len(ids)


def test_without_holding_the_big_task_starves() -> None:
    """The test above can fail: with nothing held, the big task waits until the queue runs dry."""
    settings = ClaimSettings(hold_after_s=1e9)
    capacities = dict(list(eight(4.0).items())[:1])
    cluster = Cluster(capacities, lambda _: 1.0, settings=settings)
    ids = task_ids(200, seed=11)
    for number, task_id in enumerate(ids):
        cpu = 4.0 if number == 20 else 1.0
        cluster.after(number * 0.2, lambda t=task_id, c=cpu: cluster.submit([t], Requirements(cpu=c)))  # type: ignore[misc]  # bound by default
    cluster.run()
    assert all(cluster.claimed_at[t] < cluster.claimed_at[ids[20]] for t in ids if t != ids[20])
