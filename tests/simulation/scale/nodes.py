"""A node of a large run: the real one from the lease to the end of a task, as `tests/simulation/host.py` has it, on a
machine that nothing befalls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import cast

from etcd import codec, keys
from etcd.batcher import Batcher
from etcd.errors import StoreError
from etcd.identity import Identity
from etcd.port import Etcd, KeyValue
from etcd.store import Claim, TaskStore, Versioned
from node.cluster.drains import Drains
from node.cluster.host_record import host_of
from node.cluster.lease_keeper import LeaseKeeper
from node.cluster.session import Session
from node.core.model import Capacity, Node, Requirements
from node.incarnation import Surroundings
from node.lives import Lives
from node.running import claimer
from node.running.admission import Admission
from node.running.logs import LogStore
from node.running.runner import RunContext
from node.running.supervised_spawner import SupervisedSpawner
from tests.simulation import clock
from tests.simulation.loop import Process
from tests.simulation.sandboxes import SimSpawner
from tests.simulation.scale.etcd import ScaleEtcd
from tests.simulation.scale.measures import Measures
from tests.simulation.stand_ins import SimLogs, SimSession

LEASE_TTL_S = 5.0


class MeasuredStore(TaskStore):
    """Counts claims."""

    def __init__(self, batcher: Batcher, etcd: Etcd, measures: Measures) -> None:
        super().__init__(batcher, etcd)
        self._measures = measures

    async def claim_many(
        self, seen: Sequence[Versioned], identity: Identity, *, now: float, timeout_s: float, is_patient: bool = False
    ) -> list[Claim | StoreError | None]:
        sent_at = clock.monotonic()
        answers = await super().claim_many(seen, identity, now=now, timeout_s=timeout_s, is_patient=is_patient)
        for one, answer in zip(seen, answers, strict=True):
            self._measures.claim_answered(one.task.id, answer, sent_at)
        return answers


class ScaleNode:
    """One node, from its lease on."""

    def __init__(self, number: int, capacity: Capacity, etcd: ScaleEtcd, measures: Measures, chance: Random) -> None:
        self.host_id = f"00000000-0000-4000-8000-{number:012d}"
        self.name = f"n{number}"
        self.capacity = capacity
        self._etcd = etcd
        self._measures = measures
        self._chance = chance
        self._spawner = SimSpawner(self.host_id, Process(self.name), measures, chance)
        #: To submit through.
        self.store: TaskStore | None = None

    async def run(self, joined: Callable[[], None], go: asyncio.Event, stop: asyncio.Event, window: int) -> None:
        """Joins, says so, lives from `go` on."""
        etcd = self._etcd
        async with Batcher(etcd, random=Random(self._chance.getrandbits(64))) as batcher:
            self.store = MeasuredStore(batcher, etcd, self._measures)
            drains = Drains(etcd)
            following = asyncio.create_task(drains.run(), name="drains")
            try:
                await drains.wait_known()
                lives = Lives(
                    self._surroundings(etcd, self.store, window),
                    lambda: cast(Session, SimSession(self._keeper())),
                    on_begin=lambda _session, _identity: None,
                )
                await lives.begin()
                joined()
                await go.wait()
                await lives.run(stop, stop)
            finally:
                following.cancel()

    def _surroundings(self, etcd: Etcd, store: TaskStore, window: int) -> Surroundings:
        admission = Admission((), (), allow_host_network=False)
        return Surroundings(
            etcd=etcd,
            store=store,
            spawner=cast(SupervisedSpawner, self._spawner),
            logs=cast(LogStore, SimLogs()),
            context=RunContext(self.capacity.memory_bytes, admission),
            capacity=self.capacity,
            queue_window=window,
            stop_wait_s=1.0,
        )

    def _keeper(self) -> LeaseKeeper:
        return LeaseKeeper(
            lambda: ScaleEtcd(self._etcd.service, self._etcd.voter),
            ttl_s=LEASE_TTL_S,
            host_id=self.host_id,
            record=lambda node_id: codec.encode_node(self._record(node_id)),
            host=lambda node_id: host_of(self._record(node_id), last_seen=clock.wall()),
            key=keys.node,
            on_deadline=self._spawner.set_deadline,
            clock=clock.monotonic,
        )

    def _record(self, node_id: str) -> Node:
        return Node(node_id, self.host_id, self.name, self.capacity, "0", clock.EPOCH)


@contextlib.contextmanager
def shared_reading() -> Iterator[None]:
    """All nodes read the same queued keys: each is read once. (What it costs a node is measured in `decode.py`.)"""
    read = claimer._queued
    known: dict[tuple[bytes, bytes], tuple[str, Requirements, float] | None] = {}

    def once(kv: KeyValue) -> tuple[str, Requirements, float] | None:
        key = (kv.key, kv.value)
        found = known.get(key)
        if found is None:
            found = read(kv)
            if found is not None:
                # By when it was made, as `read` tells it: its age at zero.
                found = known[key] = (found[0], found[1], clock.wall() - found[2])
            else:
                return None
        return found[0], found[1], max(0.0, clock.wall() - found[2])

    claimer._queued = once
    try:
        yield
    finally:
        claimer._queued = read
