"""One run: nodes join, work comes, all of it ends; and what that cost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from node.core.model import Task, TaskSpec
from tests.simulation import clock
from tests.simulation.scale import loop
from tests.simulation.scale.etcd import ScaleEtcd, Service
from tests.simulation.scale.load import BIG_CPUS, CALL_TASKS, CALLERS, Plan, queued, work_s
from tests.simulation.scale.measures import Claims, Measures, jain
from tests.simulation.scale.nodes import ScaleNode, shared_reading
from tests.simulation.scale.speed import Speed
from tests.simulation.scale.voters import Voter

#: Of virtual time, beyond which a run is given up: so many times what the work takes at best, and so much more.
PATIENCE_TIMES, PATIENCE_S = 20.0, 300.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds."""

    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        ordered = sorted(values) or [0.0]
        return cls(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], ordered[-1])


@dataclass(frozen=True, slots=True)
class Result:
    """What one run tells; times are virtual but `real_s` and `cpu_s`."""

    plan: Plan
    claims: Claims
    ended: int
    given_back: int
    #: Of work done by capacity.
    jain: float
    drain_s: float
    #: At best: no node ever idle, or the end of the trickle.
    ideal_s: float
    start: Spread
    big_start: Spread
    #: Per node: of watches.
    messages: float
    events: float
    megabytes: float
    #: Per task: RPCs that write, what they are made of, RPCs that read, and records in these.
    writes: float
    items: float
    reads: float
    records: float
    #: Listings of the queue by all nodes; keys that they brought, and that were only counted for them, per task.
    listings: int
    listed: float
    counted: float
    #: Share of the time in which the leader applied, and the longest queue before it; the same of the busiest voter's
    #: other cores.
    leader_busy: float
    leader_wait_s: float
    voter_busy: float
    voter_wait_s: float
    pings: int
    unanswered: int
    real_s: float
    cpu_s: float


class Run:
    """Made on its own loop."""

    def __init__(self, plan: Plan, speed: Speed, tell: Callable[[int], None]) -> None:
        self._plan = plan
        self._chance = Random(plan.seed)
        self._measures = Measures(plan.tasks, tell)
        self._voters = [Voter(speed, self._chance) for _ in range(speed.voters)]
        self._service = Service(speed, self._voters)
        self._service.store.listeners.append(self._measures.changed)
        self._nodes = [
            ScaleNode(
                number,
                capacity,
                ScaleEtcd(self._service, self._voters[number % speed.voters]),
                self._measures,
                Random(self._chance.getrandbits(64)),
            )
            for number, capacity in enumerate(plan.capacities())
        ]
        self._stop = asyncio.Event()
        self._big: set[str] = set()

    async def run(self) -> Result:
        began_real = time.monotonic(), time.process_time()
        go, joined = asyncio.Event(), asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as group:
            lives = [
                group.create_task(node.run(joined.release, go, self._stop, self._plan.window)) for node in self._nodes
            ]
            for _ in self._nodes:
                await joined.acquire()
            go.set()
            await asyncio.sleep(1.0)
            began = clock.monotonic()
            self._leader_before, self._counts_before = self._service.leader.busy_s, self._service.feeds.sums()
            leader, counts = self._service.leader, self._service.counts
            self._rpcs_before = leader.rpcs, leader.items, counts.reads, counts.records
            self._voters_before = [voter.busy_s for voter in self._voters]
            await self._submit_all()
            submitted_s = clock.monotonic() - began
            await self._wait_ended(began)
            result = self._result(began, submitted_s, began_real)
            for life in lives:
                life.cancel()
        return result

    # The load

    async def _submit_all(self) -> None:
        ids = Random(self._plan.seed + 2)
        if self._plan.load == "backlog":
            await self._submit_backlog(ids)
        else:
            await self._submit_trickle(ids)

    async def _submit_backlog(self, ids: Random) -> None:
        """In large calls, through some nodes."""
        specs = list(self._plan.specs())
        calls = [specs[start : start + CALL_TASKS] for start in range(0, len(specs), CALL_TASKS)]

        async def caller(number: int) -> None:
            store = self._nodes[number * len(self._nodes) // CALLERS].store
            assert store is not None
            for call in calls[number::CALLERS]:
                tasks = [self._task(spec, ids) for spec in call]
                answers = await store.submit_many(sorted(tasks, key=lambda task: task.id), timeout_s=60.0)
                errors = [answer for answer in answers if isinstance(answer, Exception)]
                assert not errors, errors[0]

        await asyncio.gather(*map(caller, range(CALLERS)))

    async def _submit_trickle(self, ids: Random) -> None:
        """One by one, through any node, at a steady rate on average."""
        chance = Random(self._plan.seed + 3)
        rate = self._plan.rate_per_s()
        async with asyncio.TaskGroup() as group:
            for spec in self._plan.specs():
                await asyncio.sleep(chance.expovariate(rate))
                store = chance.choice(self._nodes).store
                assert store is not None
                group.create_task(store.submit(self._task(spec, ids), timeout_s=60.0))

    def _task(self, spec: TaskSpec, ids: Random) -> Task:
        task = queued(spec, clock.wall(), ids)
        if spec.requirements.cpu == BIG_CPUS:
            self._big.add(task.id)
        return task

    async def _wait_ended(self, began: float) -> None:
        until = began + PATIENCE_TIMES * self._ideal_s(0.0) + PATIENCE_S
        if self._measures.ended < self._plan.tasks:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(until - clock.monotonic()):
                    await self._measures.all_ended.wait()

    def _ideal_s(self, submitted_s: float) -> float:
        cpus = sum(capacity.cpu for capacity in self._plan.capacities())
        whole = work_s(self._plan.specs()) / cpus
        return max(whole, submitted_s + self._plan.task_s) if self._plan.load == "trickle" else whole

    # What came of it

    def _result(self, began: float, submitted_s: float, began_real: tuple[float, float]) -> Result:
        service, measures, tasks, nodes = self._service, self._measures, self._plan.tasks, len(self._nodes)
        drain_s = measures.last_end - began
        latencies = measures.start_latencies()
        messages, events, size = (
            now - before for now, before in zip(service.feeds.sums(), self._counts_before, strict=True)
        )
        rpcs, items, reads, records = self._rpcs_before
        shares = [measures.work_s.get(node.host_id, 0.0) / node.capacity.cpu for node in self._nodes]
        voter_s = [voter.busy_s - before for voter, before in zip(self._voters, self._voters_before, strict=True)]
        return Result(
            plan=self._plan,
            claims=measures.claims,
            ended=measures.ended,
            given_back=measures.given_back,
            jain=jain(shares),
            drain_s=drain_s,
            ideal_s=self._ideal_s(submitted_s),
            start=Spread.of(list(latencies.values())),
            big_start=Spread.of([latency for task_id, latency in latencies.items() if task_id in self._big]),
            messages=messages / nodes,
            events=events / nodes,
            megabytes=size / nodes / 1e6,
            writes=(service.leader.rpcs - rpcs) / tasks,
            items=(service.leader.items - items) / tasks,
            reads=(service.counts.reads - reads) / tasks,
            records=(service.counts.records - records) / tasks,
            listings=service.counts.listings,
            listed=service.counts.listed / tasks,
            counted=(service.counts.counted - service.counts.listed) / tasks,
            leader_busy=(service.leader.busy_s - self._leader_before) / drain_s,
            leader_wait_s=service.leader.longest_wait_s,
            voter_busy=max(voter_s) / drain_s / service.speed.other_cores,
            voter_wait_s=max(voter.longest_wait_s for voter in self._voters),
            pings=service.counts.pings,
            unanswered=sum(service.counts.unanswered.values()),
            real_s=time.monotonic() - began_real[0],
            cpu_s=time.process_time() - began_real[1],
        )


def simulate(plan: Plan, speed: Speed | None = None, tell: Callable[[int], None] = lambda _ended: None) -> Result:
    """tell: called with how many tasks have ended, after each."""

    async def whole() -> Result:
        with clock.virtual_world(Random(plan.seed + 4)), shared_reading():
            return await Run(plan, speed or Speed(), tell).run()

    return loop.run(whole())
