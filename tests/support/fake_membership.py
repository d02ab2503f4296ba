"""The members of a fake etcd: who has a vote, who runs, and which changes the real one would refuse.

The state behind the membership calls of `FakeEtcd`. Synchronous and deterministic: time comes in as a number. The rules
are those of etcd 3.5 (server/etcdserver/server.go: mayAddMember, mayRemoveMember, mayPromote), as measured:

* a change wants every voter connected for 5 s (a learner's removal wants nothing, that of a dead voter a quorum);
* one learner at a time; it has its vote only when it runs and is in sync;
* without a quorum of running voters nothing is answered that needs one.

The test says which members run: `start` and `stop` stand for the processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etcd.errors import InvalidRequest, MemberNotFound, MembershipRefused
from etcd.port import Member

#: The member of a store that nobody changed.
MEMBER_ID = 0xFA4E
#: How long all voters must have been connected before a change (etcd's HealthInterval).
HEALTH_INTERVAL_S = 5.0
#: From the start of a learner until it is in sync.
SYNC_S = 0.2


class FakeMembership:
    """The members of one fake cluster."""

    def __init__(self) -> None:
        first = Member(MEMBER_ID, "fake", ("https://127.0.0.1:2",), ("https://127.0.0.1:1",))
        self.members: dict[int, Member] = {MEMBER_ID: first}
        self.leader_id = MEMBER_ID
        #: Learners that the test keeps from being in sync.
        self.lagging: set[int] = set()
        #: Members whose process runs and is connected, since when.
        self._since: dict[int, float] = {MEMBER_ID: -HEALTH_INTERVAL_S}
        self._next_id = MEMBER_ID

    # The processes

    def start(self, member_id: int, now: float, *, name: str = "", client_urls: Sequence[str] = ()) -> None:
        """The member's process runs and is connected from now on; the first time it tells its name and addresses."""
        member = self._get(member_id)
        self.members[member_id] = replace(
            member, name=name or member.name or f"m{member_id:x}", client_urls=tuple(client_urls) or member.client_urls
        )
        self._since.setdefault(member_id, now)
        self._elect()

    def stop(self, member_id: int) -> None:
        """The process is dead, or cut off."""
        self._since.pop(member_id, None)
        self._elect()

    def is_running(self, member_id: int) -> bool:
        return member_id in self._since

    @property
    def voters(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members.values() if not member.is_learner)

    @property
    def has_quorum(self) -> bool:
        voters = self.voters
        return sum(voter.id in self._since for voter in voters) > len(voters) // 2

    # The calls

    def add_learner(self, peer_urls: Sequence[str], now: float) -> Member:
        if not self._connected(now) == len(self.voters):
            raise MembershipRefused("etcdserver: unhealthy cluster")
        if any(member.is_learner for member in self.members.values()):
            raise MembershipRefused("etcdserver: too many learner members in cluster")
        self._check_new(peer_urls, but=0)
        self._next_id += 1
        member = Member(self._next_id, "", tuple(peer_urls), (), is_learner=True)
        self.members[member.id] = member
        return member

    def promote(self, member_id: int, now: float) -> None:
        member = self._get(member_id)
        if not member.is_learner:
            return
        since = self._since.get(member_id)
        if since is None or now - since < SYNC_S or member_id in self.lagging:
            raise MembershipRefused("etcdserver: can only promote a learner member which is in sync with leader")
        self.members[member_id] = replace(member, is_learner=False)

    def remove(self, member_id: int, now: float) -> None:
        member = self.members.get(member_id)
        if member is None:
            return
        if not member.is_learner:
            others = [voter for voter in self.voters if voter.id != member_id]
            # A member that never ran has no name; one that ran once counts as started, dead or not.
            if sum(bool(voter.name) for voter in others) < len(others) // 2 + 1:
                raise MembershipRefused("etcdserver: re-configuration failed due to not enough started members")
            if member_id in self._since and self._connected(now) - 1 < 1 + (len(self.voters) - 1) // 2:
                raise MembershipRefused("etcdserver: unhealthy cluster")
        del self.members[member_id]
        self.stop(member_id)

    def update(self, member_id: int, peer_urls: Sequence[str]) -> None:
        member = self._get(member_id)
        self._check_new(peer_urls, but=member_id)
        # etcd issue 21694: a learner that is updated counts as a voter. Code must not come to rely on either.
        if member.is_learner:
            raise InvalidRequest("fake: a learner's addresses must not be changed")
        self.members[member_id] = replace(member, peer_urls=tuple(peer_urls))

    def move_leader(self, member_id: int, *, asked: int) -> None:
        if asked != self.leader_id:
            raise MembershipRefused("etcdserver: not leader")
        member = self.members.get(member_id)
        if member is None or member.is_learner or member_id not in self._since:
            raise MembershipRefused("etcdserver: bad leader transferee")
        self.leader_id = member_id

    # Behind them

    def _get(self, member_id: int) -> Member:
        member = self.members.get(member_id)
        if member is None:
            raise MemberNotFound("etcdserver: member not found")
        return member

    def _connected(self, now: float) -> int:
        """Voters that have been connected for long enough."""
        return sum(now - self._since.get(voter.id, now) >= HEALTH_INTERVAL_S for voter in self.voters)

    def _check_new(self, peer_urls: Sequence[str], *, but: int) -> None:
        taken = {url for member in self.members.values() if member.id != but for url in member.peer_urls}
        if not taken.isdisjoint(peer_urls):
            raise MembershipRefused("etcdserver: Peer URLs already exists")

    def _elect(self) -> None:
        """The first voter that runs leads, if the leader does not."""
        voters = [voter.id for voter in self.voters if voter.id in self._since]
        if self.leader_id not in voters and voters:
            self.leader_id = voters[0]
