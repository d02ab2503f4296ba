"""Keeps one incarnation's lease: joins, pings, watches its own key, leaves.

The coroutines behind `node/cluster/session.py`, which gives them a thread; whoever has a loop with virtual time runs
them on it directly. What the answers mean is decided by `node/core/fence.py`.

The node's key is written together with the host's record (`node/cluster/host_record.py`): one node per host.

Two lanes: one long stream of pings, and, while that is silent for longer than a ping may take, a second one on a new
connection to another member (a cut of 3 s costs TCP alone 4.6 s). The first answer of either moves the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable
from typing import Protocol

from etcd.errors import Compacted, OutcomeUnknown, StoreError, StoreUnavailable
from etcd.identity import Identity
from etcd.port import (
    Etcd,
    KeepAliveStream,
    KeyRange,
    Lease,
    Put,
    Range,
)
from node.cluster import host_record
from node.cluster.host_record import HostInUse, NodeRemoved, SeenHost
from node.core.fence import Fence, Lane
from node.core.model import Host

#: Pauses between attempts, doubled from the first to the last, each drawn from its upper half.
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 0.5
#: For one call while joining: short, because the lease runs meanwhile.
CALL_TIMEOUT_S = 2.0
#: How often the second lane looks whether it is still needed; only while the first is silent.
LOOK_S = 0.1
LEAVE_TIMEOUT_S = 2.0
#: How often a host whose last node is still there is looked at.
LOOK_AT_HOST_S = 0.25
#: Beyond two TTLs: a new leader of etcd starts every lease anew, and may take a while to be elected.
IN_USE_MARGIN_S = 5.0


class _HostChanged(StoreError):  # noqa: N818  (named as the errors of the store)
    """The host's record was written between look and registration."""


class SessionEtcd(Etcd, Protocol):
    """A client of etcd of the session's own."""

    def use_next_endpoint(self) -> None: ...

    async def close(self) -> None: ...


class LeaseKeeper:
    """The lease of one incarnation. Order: join, keep (until lost or canceled), leave."""

    def __init__(
        self,
        make_etcd: Callable[[], SessionEtcd],
        *,
        ttl_s: float,
        host_id: str,
        record: Callable[[str], bytes],
        host: Callable[[str], Host],
        key: Callable[[str], bytes],
        on_deadline: Callable[[float], None],
        clock: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        """For the arguments see `node.cluster.session.Session`."""
        self._make_etcd = make_etcd
        self._ttl_s = ttl_s
        self._host_id = host_id
        self._record = record
        self._host = host
        self._key = key
        self._on_deadline = on_deadline
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311  (jitter, not secrets)
        self._etcd: SessionEtcd | None = None
        self._lease: Lease | None = None
        self._identity: Identity | None = None
        self._fence: Fence | None = None
        self._lost = asyncio.Event()
        #: The living node of this host that was found at joining, and since when.
        self._in_use: tuple[str, float] | None = None

    @property
    def lease_id(self) -> int:
        if self._lease is None:
            raise RuntimeError("the session is not open")
        return self._lease.id

    @property
    def is_at_risk(self) -> bool:
        """See `Fence.is_at_risk`; True before there is a lease."""
        return self._fence is None or self._fence.is_at_risk(self._clock())

    async def join(self, timeout_s: float) -> Identity:
        """A lease, and the node's key on it. Raises the last StoreError when etcd takes longer than timeout_s,
        NodeRemoved, and HostInUse; the latter after the lease of a last run, whose end was not in order, must have run
        out: `in_use_patience_s` at most."""
        self._etcd = self._make_etcd()
        give_up_at = self._clock() + timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                seen = await self._free_host(self._etcd)
                return await self._try_to_join(self._etcd, seen, give_up_at)
            except StoreError:
                if self._clock() >= give_up_at:
                    raise
            pause_s = await self._pause(pause_s)

    @property
    def in_use_patience_s(self) -> float:
        """How long the lease of this host's last run may live on."""
        return 2 * self._ttl_s + IN_USE_MARGIN_S

    async def keep(self) -> str:
        """Keeps the lease until it is known lost; answers why. Ends otherwise only by being canceled."""
        etcd, fence, identity = self._joined()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._first_lane(etcd), name="session: first lane"),
                group.create_task(self._second_lane(), name="session: second lane"),
                group.create_task(self._watch_key(etcd, identity), name="session: own key"),
            ]
            await self._lost.wait()
            for task in tasks:
                task.cancel()
        return fence.lost or "the lease is lost"

    async def leave(self, *, revoke: bool) -> None:
        """Gives the lease up, so that peers need not wait for its end. If etcd does not answer, it runs out."""
        etcd, self._etcd = self._etcd, None
        if etcd is None:
            return
        try:
            if revoke and self._lease is not None and self._identity is not None and not self._lost.is_set():
                # Side by side: where etcd does not answer, neither makes the other wait.
                await asyncio.gather(self._note_end(etcd, self._identity), self._revoke_lease(etcd, self._lease))
        finally:
            await etcd.close()

    async def _note_end(self, etcd: Etcd, identity: Identity) -> None:
        host = self._host(identity.node_id)
        with contextlib.suppress(StoreError):  # a peer does it too, when it sees the node's key go
            note = host_record.end_noted(host, identity.node_key_revision, last_seen=host.last_seen)
            await etcd.txn(note, timeout_s=LEAVE_TIMEOUT_S)

    @staticmethod
    async def _revoke_lease(etcd: Etcd, lease: Lease) -> None:
        with contextlib.suppress(StoreError):  # it runs out by itself
            await etcd.lease_revoke(lease.id, timeout_s=LEAVE_TIMEOUT_S)

    # Joining

    async def _free_host(self, etcd: Etcd) -> SeenHost:
        """Waits until no node of this host lives. Raises NodeRemoved, HostInUse, StoreError."""
        while True:
            seen = await host_record.look(etcd, self._host_id, timeout_s=CALL_TIMEOUT_S)
            if seen.is_removed:
                raise NodeRemoved(self._host_id)
            if seen.record is None or not seen.is_in_use:
                return seen
            now, node_id = self._clock(), seen.record.node_id
            first_id, since = self._in_use = self._in_use or (node_id, now)
            # Another than the one found first: it began while we waited, so somebody lives with our host id.
            if node_id != first_id or now - since > self.in_use_patience_s:
                raise HostInUse(seen.record)
            await asyncio.sleep(LOOK_AT_HOST_S)

    async def _try_to_join(self, etcd: Etcd, seen: SeenHost, give_up_at: float) -> Identity:
        """One lease and one new id. A lease that comes to nothing is not pinged, and so runs out."""
        node_id = str(uuid.uuid4())
        sent_at = self._clock()
        lease = await etcd.lease_grant(self._ttl_s, timeout_s=CALL_TIMEOUT_S)
        fence = Fence(granted_ttl_s=lease.ttl_s, sent_at=sent_at)
        revision = await self._register(etcd, node_id, lease, seen, min(give_up_at, fence.deadline))
        identity = Identity(node_id, self._host_id, revision)
        self._lease, self._fence, self._identity = lease, fence, identity
        self._on_deadline(fence.deadline)
        return identity

    async def _register(self, etcd: Etcd, node_id: str, lease: Lease, seen: SeenHost, give_up_at: float) -> int:
        """Writes the node's key and the host's record once; gives their revision. An unknown outcome is settled by
        asking again: then the key is there already, with our lease."""
        node_key = Put(self._key(node_id), self._record(node_id), lease.id)
        txn = host_record.registration(self._host(node_id), seen, node_key)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                result = await etcd.txn(txn, timeout_s=CALL_TIMEOUT_S)
            except (OutcomeUnknown, StoreUnavailable):
                if self._clock() >= give_up_at:
                    raise
                pause_s = await self._pause(pause_s)
                continue
            if result.succeeded:
                return result.revision
            found = host_record.key_of_lost(result)
            if found is None:
                raise _HostChanged("the record of this host in the cluster keeps changing")
            if found.lease == lease.id:
                return found.create_revision
            raise RuntimeError(f"the new node id {node_id} is in use: the random source of this host repeats itself")

    # Keeping

    async def _first_lane(self, etcd: Etcd) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            answers = await self._ping_until_broken(etcd, Lane.FIRST)
            pause_s = await self._pause(FIRST_PAUSE_S if answers else pause_s)

    async def _second_lane(self) -> None:
        _, fence, _ = self._joined()
        skip = 0
        while True:
            await asyncio.sleep(max(fence.overdue_at(Lane.FIRST) - self._clock(), LOOK_S))
            if fence.is_overdue(Lane.FIRST, self._clock()):
                # Another member at each try: of five, the two preferred ones may be dead.
                skip += 1
                await self._ask_on_new_connection(fence, skip)
            else:
                skip = 0

    async def _ask_on_new_connection(self, fence: Fence, skip: int) -> None:
        """Until the first lane answers again, or this connection proves no better. skip: how many of the preferred
        members are passed over."""
        etcd = self._make_etcd()
        for _ in range(skip):
            etcd.use_next_endpoint()
        fence.stream_opened(Lane.SECOND, self._clock())
        pinging = asyncio.create_task(self._ping_until_broken(etcd, Lane.SECOND), name="session: second stream")
        try:
            while (
                not pinging.done()
                and fence.is_overdue(Lane.FIRST, self._clock())
                and not fence.is_overdue(Lane.SECOND, self._clock())
            ):
                await asyncio.wait({pinging}, timeout=LOOK_S)
        finally:
            await _end(pinging)
            await etcd.close()

    async def _ping_until_broken(self, etcd: Etcd, lane: Lane) -> int:
        """One stream of pings; gives the number of answers when it breaks."""
        _, fence, _ = self._joined()
        answers = 0
        try:
            async with etcd.keep_alive(self.lease_id) as stream:
                fence.stream_opened(lane, self._clock())
                pinging = asyncio.create_task(self._ping(stream, lane), name=f"session: pings, {lane} lane")
                try:
                    while True:
                        answer = await stream.answer()
                        answers += 1
                        if fence.answered(lane, answer.ttl_s):
                            self._on_deadline(fence.deadline)
                        if fence.lost is not None:
                            self._lost.set()
                finally:
                    await _end(pinging)
        except StoreUnavailable:
            return answers

    async def _ping(self, stream: KeepAliveStream, lane: Lane) -> None:
        """Ends with the stream; the reader of the answers sees the error too."""
        _, fence, _ = self._joined()
        with contextlib.suppress(StoreUnavailable):
            while True:
                fence.ping_sent(lane, self._clock())
                await stream.ping()
                await asyncio.sleep(fence.ping_every_s)

    async def _watch_key(self, etcd: Etcd, identity: Identity) -> None:
        """A DELETE of the own key fences at once, whatever the pings say."""
        key = self._key(identity.node_id)
        start = identity.node_key_revision + 1
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with etcd.watch([KeyRange(key)], start_revision=start) as watch:
                    async for batch in watch:
                        if any(event.is_delete for event in batch.events):
                            self._key_gone()
            except Compacted:
                start = await self._look_at_key(etcd, key, identity) or start
            except StoreUnavailable:
                pass  # the pings tell what that means
            pause_s = await self._pause(pause_s)

    async def _look_at_key(self, etcd: Etcd, key: bytes, identity: Identity) -> int | None:
        """The revision to watch from, where the watch fell behind a compaction; None when etcd does not answer."""
        try:
            found = await etcd.range(Range(key), timeout_s=CALL_TIMEOUT_S)
        except StoreUnavailable:
            return None
        if not found.kvs or found.kvs[0].create_revision != identity.node_key_revision:
            self._key_gone()
        return found.revision + 1

    def _key_gone(self) -> None:
        _, fence, _ = self._joined()
        fence.key_gone()
        self._lost.set()

    def _joined(self) -> tuple[SessionEtcd, Fence, Identity]:
        if self._etcd is None or self._fence is None or self._identity is None:
            raise RuntimeError("the session is not open")
        return self._etcd, self._fence, self._identity

    async def _pause(self, pause_s: float) -> float:
        """Sleeps about so long; gives the next, longer pause."""
        await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
        return min(2 * pause_s, LAST_PAUSE_S)


async def _end(task: asyncio.Task[None] | asyncio.Task[int]) -> None:
    """Cancels the task and waits for its end; what broke it is raised here."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
