"""One world: hosts, an etcd, people who submit and cancel, faults, and the checkers. All of it drawn from one seed.

A world has two halves. In the first, work comes in and faults befall hosts, processes, links and etcd. In the second
nothing new happens and everything is healed; then every task must reach its end in bounded virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from etcd import keys
from etcd.batcher import Batcher
from etcd.errors import StoreError
from etcd.store import TaskStore
from node.core import lifecycle
from node.core.model import Capacity, Requirements, Status, Task, TaskSpec
from tests.simulation import clock, loop
from tests.simulation.cancelers import Cancelers
from tests.simulation.cancels import Cancels
from tests.simulation.checks import Checks
from tests.simulation.faults import Faults
from tests.simulation.forgetting import Forgetting
from tests.simulation.host import STOP_WAIT_S, Host
from tests.simulation.loop import SimLoop
from tests.simulation.members import RESTORED_S, Members
from tests.simulation.network import Cluster, Link
from tests.simulation.newcomers import Newcomers
from tests.simulation.promises import Promises
from tests.simulation.repeats import TRY_S, Repeats, draw_limits
from tests.simulation.themes import Theme, theme_of
from tests.simulation.upheavals import Upheavals
from tests.support.fake_store import Change

#: From the end of the faults to the end of every task: leases, two TTLs of a host that waits for its own last one,
#: retries; the work that is left comes on top.
PATIENCE_S = 240.0
#: Share of the tasks that somebody cancels the moment they are claimed.
UNWANTED = 0.1
#: How long these take at most: longer than it takes until a cancel is obeyed of which the news was lost.
UNWANTED_S = (20.0, 60.0)
#: Share of those that somebody cancels at all.
CANCELED = 0.3
#: How long commands take at most, in seconds: in most worlds, and where all come at once.
DURATIONS_S = (0.01, 0.3, 2.0, 8.0, 20.0)
BURST_S = (0.01, 0.01, 0.01, 0.05, 8.0)
#: Share of the tasks that may be run only once.
ONCE = 0.15
#: What hosts lend, and what tasks ask for: everything fits everywhere, and not beside each other.
MEMORY_BYTES = (4 << 30, 16 << 30)
NEEDS_BYTES = (None, None, 1 << 30, 3 << 30)
#: From the moment at which nothing more needs to be kept until all is forgotten: looks each 5 s, a duty that changes
#: hands.
FORGET_S = 20.0
#: A submit that nobody waits for any more may be written so long after etcd has a leader again.
LATE_S = 6.0
CALL_S = 20.0
#: Of virtual time: how often somebody who waits for something looks, or tries again.
LOOK_S = 0.5
#: Of real time. A world takes a tenth of a second; a crowded machine has it wait.
HUNG_S = 60


@dataclass(frozen=True)
class Size:
    """How large a world is, and how long its first half."""

    hosts: int
    tasks: int
    #: In virtual seconds.
    troubled_s: float
    faults: int
    #: All tasks come at once, and most are short.
    is_burst: bool = False


def draw_size(chance: Random, theme: Theme | None = None) -> Size:
    """Small worlds, each of another kind: idle or crowded, of one host (nobody sees to what it left) or of several."""
    if theme is not None:
        hosts, tasks, faults = (chance.choice(some) for some in (theme.hosts, theme.tasks, theme.counts))
        return Size(hosts, tasks, troubled_s=25.0, faults=faults, is_burst=theme.is_burst)
    return Size(
        hosts=chance.choice([1, 2, 3, 3, 4]),
        tasks=chance.choice([5, 10, 25]),
        troubled_s=25.0,
        faults=chance.choice([2, 4, 8, 12]),
        is_burst=chance.random() < 0.2,
    )


@dataclass(frozen=True)
class Verdict:
    """What came of one world."""

    seed: int
    flaws: tuple[str, ...]
    #: What happened, line by line; empty unless it was asked for or there are flaws.
    story: tuple[str, ...]
    runs: int
    virtual_s: float
    transitions: int


class World:
    """Made on its own loop."""

    def __init__(self, seed: int, size: Size | None = None) -> None:
        running = asyncio.get_running_loop()
        assert isinstance(running, SimLoop)
        self._loop = running
        self.chance = Random(seed)
        self.theme = theme = theme_of(seed) if size is None else None
        self.size = size = size or draw_size(self.chance, theme)
        self.story: list[str] = []
        if theme is not None:
            self.tell(f"this world is about {theme.name}")
        self.checks = Checks(self.tell)
        self.cluster = Cluster(clock.monotonic)
        self.cluster.store.listeners.append(self.checks.changed)
        self._memories = Random(seed + 7)
        self.hosts = [self._host(number) for number in range(size.hosts)]
        if theme is not None and theme.on_one_machine:
            self.hosts[0].share_cgroups(self.hosts[1])
        self.promises = Promises(self.checks, self.hosts, stop_wait_s=STOP_WAIT_S)
        self.cluster.store.listeners.append(self.promises.changed)
        self.cluster.store.listeners.append(Cancels(self.checks, self.hosts).changed)
        self.cluster.store.listeners.append(Forgetting(self.checks, self.hosts, lambda: self.limits).changed)
        #: People's own way to etcd: through some node that is well, which is not simulated.
        self._link = Link(self.cluster, self.chance)
        self.submitted: list[str] = []
        #: Done when the task is claimed for the first time.
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self.cluster.store.listeners.append(self._look_for_claims)
        self._cancelers = Cancelers(self.cluster, Random(seed + 6), theme, self.checks, self.tell)
        self._ids = Random(seed + 1)
        retention = Random(seed + 4)
        self.limits = draw_limits(retention)
        for host in self.hosts:
            host.limits = self.limits
        if self.limits is not None and retention.random() < 0.5:
            # Who ends a task, and who forgets it, may have a clock that was never right.
            retention.choice(self.hosts).wall_offset[0] = retention.choice([-3600.0, 3600.0])
        self._directory = self._make_members(Random(seed + 5))
        chance = Random(seed + 3)
        newcomers = Newcomers(self.hosts, self._link.client(), chance, self.checks.add)
        self.upheavals = Upheavals(self.hosts, self.cluster, newcomers, chance, checks=self.checks, tell=self.tell)

    def _host(self, number: int) -> Host:
        cpu = self.chance.choice([1.0, 1.0, 2.0, 4.0])
        host = Host(
            f"h{number}",
            f"00000000-0000-4000-8000-{number:012d}",
            self.cluster,
            self.checks,
            Random(self.chance.getrandbits(64)),
            capacity=(capacity := Capacity(cpu, self._memories.choice(MEMORY_BYTES))),
            add=self.checks.add,
            tell=self.tell,
        )
        host.link.distance = self.chance.choice((self.theme and self.theme.distances) or (1.0, 1.0, 5.0))
        self.checks.capacity[host.id] = capacity
        return host

    def tell(self, words: str) -> None:
        self.story.append(f"{self._loop.true_time() - 1000:8.3f}  {words}")

    async def run(self) -> None:
        with self._directory or contextlib.nullcontext():
            await self._live()

    async def _live(self) -> None:
        for number, host in enumerate(self.hosts):
            # Some come later, to work that is there.
            at_s = self.chance.uniform(1.0, 15.0) if number and self.chance.random() < 0.2 else 0.0
            loop.of_nobody(host.start_first, delay_s=at_s)
        faults = Faults(self.hosts, self.cluster, self.promises, self.chance, self.tell, theme=self.theme)
        tending = asyncio.create_task(self.upheavals.tend())
        await self._wait_restored()
        async with self._people() as store:
            async with asyncio.TaskGroup() as first_half:
                first_half.create_task(faults.run(self.size.faults, self.size.troubled_s))
                if self.theme is None or not self.theme.is_settled:
                    first_half.create_task(self.upheavals.run(self.size.troubled_s))
                if self.limits is not None:
                    first_half.create_task(self._repeats().run(self.size.tasks // 4, self.size.troubled_s))
                for _ in range(self.size.tasks):
                    first_half.create_task(self._task(store))
            self.tell("all is healed")
            self.upheavals.heal()
            faults.heal()
            await self._wait_ended()
            await self._wait_forgotten()
            await self._wait_restored()
        tending.cancel()
        self.checks.finish(self.submitted, [*self._loop.errors, *self._loop.unheard()])

    @contextlib.asynccontextmanager
    async def _people(self) -> AsyncIterator[TaskStore]:
        etcd = self._link.client()
        async with Batcher(etcd, random=Random(self.chance.getrandbits(64))) as batcher:
            yield TaskStore(batcher, etcd)

    async def _wait_ended(self) -> None:
        left = [task for task in self.checks.history.tasks.values() if not task.status.is_terminal]
        work_s = sum(float(task.spec.args[0]) * task.spec.requirements.cpu for task in left)
        # Twice what it takes where nothing is ever idle: what fits nowhere together waits for room.
        until = clock.monotonic() + PATIENCE_S + 2.0 * work_s / sum(host.capacity.cpu for host in self.hosts)
        settled_at: float | None = None
        while (now := clock.monotonic()) < until:
            has_ended = all(task.status.is_terminal for task in self.checks.history.tasks.values())
            settled_at = (settled_at or now) if has_ended and self.cluster.has_leader else None
            if settled_at is not None and now - settled_at >= LATE_S:
                return
            await asyncio.sleep(LOOK_S)
        for task in self.checks.history.tasks.values():
            if not task.status.is_terminal:
                self.checks.add("EventuallyTerminal", task.id, f"not in time: {lifecycle.story(task)}")

    def _make_members(self, chance: Random) -> tempfile.TemporaryDirectory[str] | None:
        """In some worlds etcd's members are on the hosts; their data lie in files."""
        self.members: Members | None = None
        if len(self.hosts) < 3 or chance.random() < 0.6:
            return None
        place = tempfile.TemporaryDirectory(prefix="pilfer-simulation-")
        self.members = Members(
            self.hosts, self.cluster, chance, directory=Path(place.name), add=self.checks.add, tell=self.tell
        )
        for host in self.hosts:
            host.members = self.members
        return place

    async def _wait_restored(self) -> None:
        """The votes are right again."""
        if self.members is None:
            return
        until = clock.monotonic() + RESTORED_S
        while not self.members.is_restored:
            await asyncio.sleep(LOOK_S)
            if clock.monotonic() > until:
                self.checks.add("VotersAreRestored", "etcd's members", self.members.words())
                return

    async def _wait_forgotten(self) -> None:
        """What is left of the ended tasks is what may be left."""
        if self.limits is None:
            return
        known: set[str] = set()
        until = clock.monotonic()
        while len(tasks := self.checks.history.tasks) > self.limits.max_count:
            ended = {task.id for task in tasks.values() if task.status.is_terminal}
            if not ended <= known:
                # A submit that nobody waits for any more may be written, and run, as soon as etcd has a leader again.
                known |= ended
                until = clock.monotonic() + self.limits.keep_s + FORGET_S
            if clock.monotonic() > until:
                left = f"{len(tasks)} are left of {self.limits.max_count}"
                self.checks.add("HistoryIsBounded", "finished tasks", left)
                return
            await asyncio.sleep(LOOK_S)

    # People

    def _repeats(self) -> Repeats:
        return Repeats(
            self.cluster,
            Random(self._ids.getrandbits(64)),
            spec=self._spec,
            acknowledged=self.submitted.append,
            add=self.checks.add,
            tell=self.tell,
        )

    async def _task(self, store: TaskStore) -> None:
        """Somebody submits a task, and perhaps changes his mind."""
        within_s = 0.05 if self.size.is_burst else 0.8 * self.size.troubled_s
        await asyncio.sleep((1.0 if self.size.is_burst else 0.0) + self.chance.uniform(0.0, within_s))
        dice = self.chance.random()
        spec = self._spec(is_long=dice < UNWANTED)
        task = lifecycle.submit(keys.new_task_id(clock.wall(), self._ids), spec, now=clock.wall())
        if not await self._submit(store, task):
            return
        if dice < UNWANTED:
            await self._claimed(task.id)
            await self._cancel(store, task)
        elif dice < (self.theme.canceled if self.theme is not None else CANCELED):
            await asyncio.sleep(self.chance.choice([0.0, 0.003, 0.01, 0.3, 3.0]) * self.chance.random())
            await self._cancel(store, task)

    async def _claimed(self, task_id: str) -> None:
        """Returns the moment it is, perhaps before its node knows; or after a while."""
        self._awaited[task_id] = claimed = self._loop.create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.size.troubled_s / 2):
                await claimed

    def _look_for_claims(self, _change: Change) -> None:
        for task_id, claimed in self._awaited.items():
            task = self.checks.history.find(task_id)
            if task is not None and task.status is Status.RUNNING and not claimed.done():
                claimed.set_result(None)

    def _spec(self, *, is_long: bool = False) -> TaskSpec:
        draw, theme = self.chance, self.theme
        durations: tuple[float, ...] = BURST_S if self.size.is_burst else DURATIONS_S
        durations, once = (durations, ONCE) if theme is None else (theme.durations_s, theme.once)
        seconds = draw.choice(UNWANTED_S if is_long else durations) * draw.uniform(0.5, 1.0)
        args = [f"{seconds:.4f}", str(draw.choice([0, 0, 0, 1])), *(["deaf"] if draw.random() < 0.2 else [])]
        return TaskSpec(
            "sim",
            tuple(args),
            requirements=Requirements(draw.choice([0.5, 1.0, 1.0]), self._memories.choice(NEEDS_BYTES)),
            grace_s=draw.choice([0.0, 0.5, 2.0]),
            restart_on_node_loss=draw.random() >= once,
            max_attempts=draw.choice([2, 5, 5, 5]),
        )

    async def _submit(self, store: TaskStore, task: Task) -> bool:
        tries, call_s = (5, CALL_S) if self.limits is None else (2, TRY_S)
        for _ in range(tries):
            try:
                await store.submit(task, timeout_s=call_s)
            except StoreError as error:
                self.tell(f"submit of {task.id[-6:]} is not answered: {error}")
                await asyncio.sleep(LOOK_S)
            else:
                self.submitted.append(task.id)
                self.tell(
                    f"{task.id[-6:]} is submitted: {' '.join(task.spec.args)}, {task.spec.requirements.cpu:g} CPU"
                )
                return True
        return False

    async def _cancel(self, store: TaskStore, task: Task) -> None:
        try:
            canceled = await store.cancel(task.id, now=clock.wall(), timeout_s=CALL_S)
        except StoreError:
            return
        self.tell(f"{task.id[-6:]} is canceled: {canceled.step.value}")


class Hung(KeyboardInterrupt):
    """Something is done again and again, and virtual time stands still. asyncio lets an interrupt through."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """A bound in real time, where a signal can be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_number: int, _frame: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(HUNG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def simulate(seed: int, size: Size | None = None, *, with_story: bool = False) -> Verdict:
    """Lives through one world."""
    worlds: list[World] = []

    async def whole() -> float:
        with clock.virtual_world(Random(seed + 2)):
            world = World(seed, size)
            worlds.append(world)
            began = clock.monotonic()
            await world.run()
            return clock.monotonic() - began

    virtual_s = 0.0
    try:
        with _bounded():
            virtual_s = loop.run(whole())
    except Hung:
        worlds[0].checks.add("NothingHangs", "the world", f"it makes no progress within {HUNG_S} s of real time")
    (world,) = worlds
    story = tuple(world.story) if with_story or world.checks.flaws else ()
    return Verdict(
        seed, tuple(world.checks.flaws), story, world.checks.runs, virtual_s, world.checks.history.transitions
    )
