"""The duty "voters": one node of the cluster keeps the count of etcd's voters right (`node/core/voters.py` says how).

Each turn: hold the duty, read the members, the nodes and the health of each member, decide, do one step, and write
`/cluster/voters` so that every host looks at the member list (`node/cluster/membership.py`). Nothing read is used for a
second step: what was true a second ago may be why a step is wrong now.

The duty excludes nobody, and etcd has no guard for a change of its members. What makes a second holder (one that hung
between its look and its step) harmless:

* two additions: etcd takes one learner at a time, and no two members with one address;
* two promotions, or two removals of the same member: the second changes nothing;
* a removal beside another: etcd refuses what would leave no quorum of connected members. Two removals that each made
  an odd count can leave an even one; the next turn mends that.

Interruptions. The holder dies after AddLearner: the learner's host finds itself in the list and starts; the next
holder finds a learner, and promotes or evicts it. An addition whose answer was lost is a learner in the next look. A
removal whose answer was lost is no member there. The duty's holder may remove its own host's voter: etcd hands the
leadership on, our client goes to the next member.

Durations (how long a member has been away) are this holder's own observations. They begin anew with the holder, and
after a pause in which it looked at nothing (the machine slept): nobody is dead because we were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from etcd import codec, keys
from etcd.errors import MembershipRefused, RecordCorrupt, StoreError
from etcd.port import Etcd, KeyValue, Member, MemberStatus, Op, Put, Range, RangeResult, Txn
from node.core import voters
from node.core.model import Node
from node.core.voters import AddLearner, Limits, LiveHost, MemberView, Promote, Remove, View, Wait

log = logging.getLogger(__name__)

#: A node that does not hold the duty asks this often whether it is free; `wake` makes it ask at once.
ASK_S = 5.0
#: How long a member has to answer for its health.
HEALTH_TIMEOUT_S = 2.0
#: Longer without a look, and what was counted is forgotten.
BLIND_S = 10.0
#: A host whose learner was evicted is left alone for this long.
UNLUCKY_S = 300.0
CHANGE_TIMEOUT_S = 5.0


class MemberClient(Protocol):
    """A client of one member alone."""

    async def status(self, *, timeout_s: float = 3.0) -> MemberStatus: ...

    async def move_leader(self, member_id: int, *, timeout_s: float = 5.0) -> None: ...

    async def close(self) -> None: ...


class Holding(Protocol):
    """As `etcd.duty.Duty`."""

    async def hold(self, *, timeout_s: float = 5.0) -> bool: ...


@dataclass
class _Observed:
    """What this holder has seen of one member, by the loop's clock."""

    is_learner: bool
    known_since: float
    #: None while it is healthy.
    unhealthy_since: float | None = None


@dataclass
class _Memory:
    """Of one holder, between its looks."""

    members: dict[int, _Observed] = field(default_factory=dict)
    even_since: float | None = None
    changed_at: float = -1e9
    looked_at: float = -1e9
    #: host id -> until when it is not chosen.
    unlucky: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One look."""

    view: View
    members: tuple[Member, ...]
    statuses: dict[int, MemberStatus]


class VotersDuty:
    """The duty of one incarnation. `run` ends by being canceled."""

    def __init__(
        self, etcd: Etcd, duty: Holding, make_client: Callable[[str], MemberClient], *, limits: Limits | None = None
    ) -> None:
        """duty: that of the name DUTY. make_client: a client of the member at this HOST:PORT alone."""
        self._etcd = etcd
        self._duty = duty
        self._make_client = make_client
        self._limits = limits or Limits()
        self._clients: dict[str, MemberClient] = {}
        self._memory = _Memory()
        self._wake = asyncio.Event()

    #: Its name below /cluster/duty/.
    DUTY = "voters"

    def wake(self) -> None:
        """Nodes came or went: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Looks and steps until it is canceled."""
        try:
            while True:
                pause_s = await self.turn()
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await self._keep_clients(())

    async def turn(self) -> float:
        """One turn: at most one change of the members. Gives the seconds until the next one."""
        try:
            if not await self._duty.hold():
                self._memory = _Memory()
                await self._keep_clients(())
                return ASK_S
            seen = await self._look()
        except StoreError as error:
            log.debug("duty=%s etcd could not be asked: %s", self.DUTY, error)
            return voters.LOOK_S
        step = voters.next_step(seen.view)
        if isinstance(step, Wait):
            log.debug("duty=%s waits: %s", self.DUTY, step.why)
            return step.after_s
        return await self._do(step, seen)

    # Looking

    async def _look(self) -> _Seen:
        """Members, nodes and health, all read now. Raises StoreError."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._memory.looked_at > BLIND_S:
            self._memory = _Memory(changed_at=self._memory.changed_at, unlucky=self._memory.unlucky)
        members = await self._etcd.members()
        live, removed = await self._hosts()
        statuses = await self._statuses(members)
        now = self._memory.looked_at = loop.time()
        by_url = {host.peer_url: host.host_id for host in live if host.peer_url}
        views = tuple(self._observe(member, statuses.get(member.id), by_url, now) for member in members)
        self._memory.members = {m.id: self._memory.members[m.id] for m in members}
        is_even = sum(not member.is_learner for member in members) % 2 == 0
        if not is_even:
            self._memory.even_since = None
        elif self._memory.even_since is None:
            self._memory.even_since = now
        view = View(
            members=views,
            live=live,
            removed=removed,
            since_change_s=now - self._memory.changed_at,
            even_for_s=0.0 if self._memory.even_since is None else now - self._memory.even_since,
            limits=self._limits,
        )
        return _Seen(view, members, statuses)

    async def _hosts(self) -> tuple[tuple[LiveHost, ...], frozenset[str]]:
        """The hosts whose nodes live, and the ids of those that were removed, at one revision."""
        ranges = (keys.all_nodes(), keys.all_drained(), keys.all_removed())
        read: tuple[Op, ...] = tuple(Range(r.key, r.range_end, keys_only=r is not ranges[0]) for r in ranges)
        answer = await self._etcd.txn(Txn(success=read))
        nodes, drained, removed = (result.kvs for result in answer.results if isinstance(result, RangeResult))
        drained_ids, removed_ids = _host_ids(drained), _host_ids(removed)
        now = asyncio.get_running_loop().time()
        hosts = {
            node.host_id: LiveHost(
                host_id=node.host_id,
                peer_url=node.etcd_peer_url,
                started_at=node.started_at,
                is_drained=node.host_id in drained_ids,
                is_unlucky=self._memory.unlucky.get(node.host_id, now) > now,
            )
            for node in _readable(nodes)
        }
        return tuple(hosts.values()), removed_ids

    async def _statuses(self, members: Sequence[Member]) -> dict[int, MemberStatus]:
        """The answers of those members that answer, all asked at once."""
        addresses = {m.id: urlsplit(m.client_urls[0]).netloc for m in members if m.client_urls}
        await self._keep_clients(set(addresses.values()))
        answers = await asyncio.gather(*(self._status(address) for address in addresses.values()))
        return {
            member_id: status
            for member_id, status in zip(addresses, answers, strict=True)
            # Another member may have taken over the address.
            if status is not None and status.member_id == member_id
        }

    async def _status(self, address: str) -> MemberStatus | None:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._make_client(address)
        try:
            return await client.status(timeout_s=HEALTH_TIMEOUT_S)
        except StoreError:
            return None

    async def _keep_clients(self, addresses: Sequence[str] | set[str]) -> None:
        for address in [known for known in self._clients if known not in addresses]:
            await self._clients.pop(address).close()

    def _observe(self, member: Member, status: MemberStatus | None, by_url: dict[str, str], now: float) -> MemberView:
        seen = self._memory.members.get(member.id)
        if seen is None or seen.is_learner != member.is_learner:
            seen = self._memory.members[member.id] = _Observed(member.is_learner, now)
        is_healthy = status is not None and status.leader_id != 0
        if is_healthy:
            seen.unhealthy_since = None
        elif seen.unhealthy_since is None:
            seen.unhealthy_since = now
        host_id = member.name or next((by_url[url] for url in member.peer_urls if url in by_url), None)
        return MemberView(
            id=member.id,
            host_id=host_id,
            is_learner=member.is_learner,
            is_started=bool(member.name),
            is_healthy=is_healthy,
            unhealthy_for_s=0.0 if seen.unhealthy_since is None else now - seen.unhealthy_since,
            known_for_s=now - seen.known_since,
        )

    # Stepping

    async def _do(self, step: AddLearner | Promote | Remove, seen: _Seen) -> float:
        """Does it, and tells everybody. Gives the seconds until the next turn."""
        try:
            await self._change(step, seen)
        except MembershipRefused as error:
            log.debug("duty=%s %s is refused for now: %s", self.DUTY, step, error)
            return voters.PROMOTE_RETRY_S if isinstance(step, Promote) else voters.LOOK_S
        except StoreError as error:
            log.warning("duty=%s %s: it is not known whether it was done; looking again: %s", self.DUTY, step, error)
        # Before the outcome is known too: another change must not follow at once.
        self._memory.changed_at = asyncio.get_running_loop().time()
        with contextlib.suppress(StoreError):  # only a hint: everybody looks on a slow tick as well
            await self._etcd.txn(Txn(success=(Put(keys.voters_key()),)))
        return voters.PROMOTE_RETRY_S if isinstance(step, AddLearner) else voters.LOOK_S

    async def _change(self, step: AddLearner | Promote | Remove, seen: _Seen) -> None:
        match step:
            case AddLearner(host_id, peer_url):
                member = await self._etcd.add_learner([peer_url], timeout_s=CHANGE_TIMEOUT_S)
                log.info("duty=%s host=%s becomes member %x, a learner", self.DUTY, host_id, member.id)
            case Promote(member_id):
                await self._etcd.promote(member_id, timeout_s=CHANGE_TIMEOUT_S)
                log.info("duty=%s member %x has a vote now", self.DUTY, member_id)
            case Remove(member_id, why, is_eviction):
                await self._remove(member_id, seen)
                gone = next((m.host_id for m in seen.view.members if m.id == member_id), None)
                log.warning("duty=%s member %x of host %s is removed: %s", self.DUTY, member_id, gone, why)
                if is_eviction and gone is not None:
                    self._memory.unlucky[gone] = asyncio.get_running_loop().time() + UNLUCKY_S

    async def _remove(self, member_id: int, seen: _Seen) -> None:
        """Removes it; the leader hands its leadership on first, so that nobody waits for an election."""
        status = seen.statuses.get(member_id)
        if status is not None and status.leader_id == member_id:
            heir = next((m for m in seen.view.members if m.id != member_id and m.is_healthy and not m.is_learner), None)
            address = next(urlsplit(m.client_urls[0]).netloc for m in seen.members if m.id == member_id)
            if heir is not None:
                with contextlib.suppress(StoreError):  # the election does it as well, in a second
                    await self._clients[address].move_leader(heir.id)
        await self._etcd.remove_member(member_id, timeout_s=CHANGE_TIMEOUT_S)


def _host_ids(kvs: Sequence[KeyValue]) -> frozenset[str]:
    """Of these keys; a stranger's among them must not stop the duty for all."""
    return frozenset(host_id for kv in kvs if (host_id := keys.find_cluster_id(kv.key)) is not None)


def _readable(nodes: Sequence[KeyValue]) -> Iterator[Node]:
    """The nodes whose records can be read: one that cannot must not stop the duty for all."""
    for kv in nodes:
        try:
            yield codec.decode_node(kv.key, kv.value)
        except RecordCorrupt as error:
            log.warning("a node is left out of account: %s", error)
