"""One life of this node in the cluster: from its lease to the loss of it.

An incarnation has an id, a lease and a key of its own; everything it writes as an owner is guarded by that key. When
the lease is lost nothing of it is saved: its sandboxes are killed, its runs discarded, and the node comes back as
another incarnation. Order of its end:

    stop in order   no more claims; tasks are ended and given back (those that may not run again are waited for);
                    then the lease is revoked
    lost            the spawner kills; the runs end without writing; a new incarnation begins
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from etcd.identity import Identity
from etcd.port import Etcd
from etcd.store import TaskStore
from node.cluster.session import Session
from node.cluster.sweeper import Sweeper
from node.core.lifecycle import may_run_again
from node.core.model import Capacity, Drain, Node, Task
from node.core.requirements import Ledger
from node.running.claimer import Claimer
from node.running.logs import LogStore
from node.running.outcomes import StopWhy
from node.running.own_keys import OwnKeys
from node.running.runner import RunContext, Runner
from node.running.supervised_spawner import SupervisedSpawner

log = logging.getLogger(__name__)

#: At a stop: how long claims under way may take to be answered, and the last ends to be written.
CLAIMS_END_MAX_S = 5.0
LAST_WRITES_MAX_S = 5.0
#: While a stop waits for tasks, how often to see whether they are frozen.
FROZEN_LOOK_S = 0.5
#: For the spawner to kill everything, before it is killed itself.
FENCE_MAX_S = 5.0


#: A duty of an incarnation beside its tasks: a name, and what to run until it is cancelled.
ExtraDuty = tuple[str, Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an incarnation works with; outlives it."""

    etcd: Etcd
    store: TaskStore
    spawner: SupervisedSpawner
    logs: LogStore
    context: RunContext
    capacity: Capacity
    queue_window: int
    stop_wait_s: float
    #: Duties that are the cluster's, and carried out in the name of an incarnation; made for each.
    extra_duties: Callable[[Identity], list[ExtraDuty]] = lambda _: []
    #: The drained hosts, for the beginning of each incarnation.
    drained: Callable[[], Mapping[str, Drain]] = dict
    #: Told the living nodes whenever they change.
    on_nodes: Callable[[Mapping[str, Node]], None] = lambda _: None


class Incarnation:
    """The duties of one incarnation. `live` is its whole life."""

    def __init__(self, around: Surroundings, session: Session, identity: Identity) -> None:
        self._around = around
        self._session = session
        self.identity = identity
        self.ledger = Ledger(around.capacity)
        self.runner = Runner(
            around.store,
            around.spawner,
            around.logs,
            around.context,
            self.ledger,
        )
        self._sweeper = Sweeper(around.etcd, around.store, identity)
        self._own_keys = OwnKeys(around.etcd, around.store, self.runner, identity)
        self._claimer = Claimer(
            around.etcd,
            around.store,
            identity,
            ledger=self.ledger,
            runner=self.runner,
            own_keys=self._own_keys,
            queue_window=around.queue_window,
            is_open=self._may_claim,
        )
        #: Its end has begun.
        self.is_stopping = False
        #: Drained hosts, this one among them or not.
        self._drained: Mapping[str, Drain] = dict(around.drained())
        self._nodes: Mapping[str, Node] = {}
        self._sweeper.on_nodes = self._set_nodes
        self.runner.on_change = self._claimer.look

    @property
    def is_at_risk(self) -> bool:
        """The fence deadline has passed and nobody knows yet whether the lease lives: tasks are frozen."""
        return self._session.is_at_risk

    @property
    def running(self) -> int:
        """Tasks that are this node's, or may be: claims that were not answered yet are among them."""
        return len(self.runner.runs) + self._claimer.under_way

    @property
    def pause(self) -> str:
        """Why it claims nothing for a moment, in words; empty: it does, or its state says why not."""
        if not self._around.spawner.is_up:
            return "its spawner is being started again"
        if time.monotonic() < self.runner.paused_until:
            return "it could not start a task for want of something on the host, and tries again soon"
        return ""

    @property
    def held_for(self) -> str | None:
        """Id of the task that waits for room here while free capacity is held for it."""
        return self._claimer.held_for

    @property
    def drain(self) -> Drain | None:
        """There while this host is drained."""
        return self._drained.get(self.identity.host_id)

    def set_drained(self, drained: Mapping[str, Drain]) -> None:
        """The drained hosts of the cluster. This one claims nothing while it is among them, and gives back what may
        run again, at once, unless it is to be let finish; the others do not wait for those that claim nothing."""
        self._drained = dict(drained)
        drain = self.drain
        gives_back = drain is not None and not drain.let_finish
        if not self.is_stopping:
            # What a claim under way still wins is given back, too.
            self.runner.is_closing = gives_back
            if gives_back:
                self.runner.give_back_all(self._may_run_again, StopWhy.DRAIN)
        self._tell_peers()
        self._claimer.look()

    def _set_nodes(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = dict(nodes)
        self._around.on_nodes(self._nodes)
        self._tell_peers()

    def _tell_peers(self) -> None:
        self._claimer.set_nodes(
            {node.id: node.capacity for node in self._nodes.values() if node.host_id not in self._drained}
        )

    def _may_claim(self) -> bool:
        return (
            not self.is_stopping and self.drain is None and self._around.spawner.is_up and not self._session.is_at_risk
        )

    async def live(self, stop: asyncio.Event, hurry: asyncio.Event) -> str | None:
        """Lives until `stop` (None) or until the lease is lost (why). `hurry` cuts an ordered stop short."""
        no_claims, over = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            runs = group.create_task(self.runner.run(over), name="runner")
            duties = [
                group.create_task(self._own_keys.run(), name="own keys"),
                group.create_task(self._sweeper.run(), name="sweeper"),
                *(group.create_task(duty, name=name) for name, duty in self._around.extra_duties(self.identity)),
            ]
            claims = group.create_task(self._claimer.run(no_claims), name="claimer")
            lost = group.create_task(self._session.wait_lost(), name="session")
            stopping = group.create_task(stop.wait(), name="stop")
            await asyncio.wait([lost, stopping], return_when=asyncio.FIRST_COMPLETED)
            self.is_stopping = self.runner.is_closing = True
            no_claims.set()
            # Claims under way are answered first: what they win is given back too.
            await asyncio.wait([claims, lost], timeout=CLAIMS_END_MAX_S, return_when=asyncio.FIRST_COMPLETED)
            if not lost.done():
                await self._drain(lost, hurry)
            why = lost.result() if lost.done() else None
            if why is not None:
                await self._discard(why, hurry)
            over.set()
            for task in (claims, lost, stopping, *duties, *([runs] if self.runner.is_lost else [])):
                task.cancel()
        return why

    async def _drain(self, lost: asyncio.Task[str], hurry: asyncio.Event) -> None:
        """Ends and gives back what may run again at once, the rest after it had its time. Returns early when the
        lease is lost; when etcd does not take the ends in time, the next start requeues what is left."""
        runner = self.runner
        again = sum(self._may_run_again(run.task) for run in runner.runs.values())
        log.info("stopping: giving back %d tasks, waiting for %d", again, len(runner.runs) - again)
        runner.give_back_all(self._may_run_again)
        idle = asyncio.create_task(runner.wait_idle(), name="idle")
        gone = asyncio.create_task(runner.wait_gone(), name="gone")
        hurried = asyncio.create_task(hurry.wait(), name="hurry")
        try:
            await _first_of(gone, hurried, lost, timeout_s=self._around.stop_wait_s)
            if not gone.done() and not lost.done():
                runner.give_back_all(lambda _: True)
                await self._wait_graces(gone, hurried, lost)
                runner.kill_all()
                await _first_of(gone, lost, timeout_s=LAST_WRITES_MAX_S)
            # Only the writing of ends is left: where etcd does not take them, the next start requeues.
            await _first_of(idle, lost, timeout_s=LAST_WRITES_MAX_S)
            if not idle.done():
                runner.is_lost = True
        finally:
            idle.cancel()
            gone.cancel()
            hurried.cancel()
            await asyncio.wait([idle, gone, hurried])

    async def _wait_graces(self, gone: asyncio.Task[None], hurried: asyncio.Task[Any], lost: asyncio.Task[str]) -> None:
        """Until none is left, or it has to be hurried. What is frozen, since etcd does not answer, hears no signal and
        ends at none: it is killed. It had its time to stop, in which etcd might have answered."""
        while not (gone.done() or hurried.done() or lost.done()):
            if self.is_at_risk:
                log.warning(
                    "stopping without etcd, which does not answer: killing %d frozen tasks. When it answers again the "
                    "cluster queues them once more, or fails those that may not be restarted",
                    len(self.runner.runs),
                )
                self._around.spawner.fence()
                return
            await _first_of(gone, hurried, lost, timeout_s=FROZEN_LOOK_S)

    @staticmethod
    def _may_run_again(task: Task) -> bool:
        return may_run_again(task, started=True)

    @property
    def is_gone(self) -> bool:
        """No process of it is left, so that its lease may be revoked."""
        return self.runner.is_gone

    async def _discard(self, why: str, hurry: asyncio.Event) -> None:
        """Returns when no process of this incarnation is left, or in a hurry: then the spawner's end kills."""
        log.error("node=%s lost its lease: %s; killing %d tasks", self.identity.node_id, why, len(self.runner.runs))
        self.runner.is_lost = True
        self._around.spawner.fence()
        gone = asyncio.create_task(self.runner.wait_gone(), name="gone")
        hurried = asyncio.create_task(hurry.wait(), name="hurry")
        try:
            await _first_of(gone, hurried, timeout_s=FENCE_MAX_S)
            if not gone.done() and not hurried.done():
                # A spawner that is stopped does not hear of the fence. The next one ends what it leaves.
                self._around.spawner.kill()
                await _first_of(gone, hurried, timeout_s=None)
        finally:
            gone.cancel()
            hurried.cancel()
            await asyncio.wait([gone, hurried])


async def _first_of(*tasks: asyncio.Task[Any], timeout_s: float | None) -> None:
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
