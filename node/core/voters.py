"""Which hosts vote in etcd: what one sees of the members and of the nodes, to the one next step.

Theory. A cluster of n voters goes on while more than half of them do: it *tolerates* h - (n // 2 + 1) further losses
when h are healthy. So 1, 3 and 5 are worth having, an even count is not (2 tolerate nothing, as 1 does, and break at
either's loss), and beyond 5 every write only gets dearer. The wish: 1 voter for one or two nodes, 3 from three nodes
on, 5 from five on. The way there, one step at a time, each of which leaves a cluster that works if nobody goes on:

* **A new voter is a learner first**, and is promoted when it is in sync. (Adding a voter that is not there yet stops
  all writes at 1 -> 2.) etcd takes one learner at a time, and refuses any addition while a member is not connected.
* **Growing is by two**: from an odd count only when two standby nodes are there, from an even one straight on.
* **A dead voter** keeps its seat for a grace period, and comes back into it with nothing to be done. After that it is
  removed only for a gain: a live host can take the seat (a standby, the learner, or its own host, whose data is lost
  or broken), or the cluster tolerates more without the dead ones (5 with 2 dead: 0, as 3: 1). So 3 voters of which
  one is dead, and no third node, stay 3: as 2 they would tolerate nothing either, and the one that returns would find
  its seat gone. Nomad's autopilot does the same for the same reason (it removes the failed when a replacement joins,
  and fewer than a quorum of them), k3s removes only what an operator deletes. Never is a voter removed because *nodes*
  are few: that the others are dead is no reason to trust the survivors more.
* **A host that was removed for good** loses its seat at once; **a drained one** when another can take it, and that one
  is added *before* it goes, so that no fault is tolerated less on the way.
* **A stalled learner** (its host is gone, or it is not in sync for long) is evicted: it blocks all other changes.
* **An even count** that does not go on to an odd one within the grace period gives a seat up.

What never happens: a step without a healthy quorum, before or after it; an addition while a voter is not healthy; two
changes within `change_pause_s` (etcd itself wants 5 s of connection to all members between additions).

Nothing here is remembered between calls: durations come in, counted by whoever holds the duty. A new holder counts
from the beginning, which errs on the side of patience.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

#: For how long a voter may be away before it is dead: a reboot of a small machine, or a restart with an upgrade.
GRACE_S = 30.0
#: etcd's HealthInterval: how long all members must have been connected before it accepts an addition.
CHANGE_PAUSE_S = 5.0
#: How long a learner that answers may take to be in sync: a snapshot of some GB over a slow line.
LEARNER_LIMIT_S = 600.0
#: How long a learner may be away when its host's node is gone too. It has nothing to lose, and blocks all else.
LEARNER_GRACE_S = 10.0
#: Between two tries to promote (measured: a learner is in sync 0.1 to 0.2 s after its start).
PROMOTE_RETRY_S = 0.1
#: Between two looks when there is nothing to do.
LOOK_S = 1.0
MAX_VOTERS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """The durations of the policy, in seconds; see the constants."""

    grace_s: float = GRACE_S
    change_pause_s: float = CHANGE_PAUSE_S
    learner_limit_s: float = LEARNER_LIMIT_S
    learner_grace_s: float = LEARNER_GRACE_S


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member of etcd, as the duty's holder sees it now."""

    id: int
    #: By its name, or, of one that never started, by its peer address; None: of no host that is known.
    host_id: str | None
    is_learner: bool = False
    #: It has told etcd its name and its client address.
    is_started: bool = True
    #: It answered just now, and knows a leader.
    is_healthy: bool = True
    #: For how long it has not been healthy, since this holder looks; 0 when it is.
    unhealthy_for_s: float = 0.0
    #: For how long this holder has known it as it is (learner or voter).
    known_for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LiveHost:
    """A host whose node lives."""

    host_id: str
    #: Where etcd would be found by its peers; empty: it takes no vote.
    peer_url: str
    #: Unix time: the longest-lived is preferred.
    started_at: float
    is_drained: bool = False
    #: It was given up as a learner not long ago, and is not tried again yet.
    is_unlucky: bool = False

    @property
    def is_willing(self) -> bool:
        return bool(self.peer_url)


@dataclass(frozen=True, slots=True)
class View:
    """Everything that the decision depends on."""

    members: Sequence[MemberView]
    live: Sequence[LiveHost]
    #: Ids of hosts that may not come back.
    removed: Collection[str] = ()
    #: Since the last change of the members that this holder knows of; large: none.
    since_change_s: float = 1e9
    #: For how long the count of voters has been even, since this holder looks.
    even_for_s: float = 0.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class AddLearner:
    host_id: str
    peer_url: str


@dataclass(frozen=True, slots=True)
class Promote:
    member_id: int


@dataclass(frozen=True, slots=True)
class Remove:
    member_id: int
    #: In words, for the log.
    why: str
    #: Given up as a learner: its host is not to be chosen for a while.
    is_eviction: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; look again after so many seconds."""

    after_s: float = LOOK_S
    why: str = ""


Step: TypeAlias = AddLearner | Promote | Remove | Wait


def takes_vote(etcd_version: tuple[int, int, int]) -> bool:
    """Whether this etcd may be one of several voters (design, section 5): older ones may revoke a living lease or lose
    watch events, and forget that a learner was promoted. A host with such a one leaves the peer address in its node's
    record empty."""
    return etcd_version >= (3, 5, 23) or (3, 4, 38) <= etcd_version < (3, 5, 0)


def quorum(voters: int) -> int:
    return voters // 2 + 1


def votes_missing(host_id: str, voters: Collection[str], living: Collection[str]) -> int:
    """How many more of the voters must live before this host may be removed from the cluster; 0: it may be.

    voters: ids of the hosts whose members of etcd have a vote. living: ids of hosts with a node, this one not among
    them. A removed host is refused by all others, and its vote counts until they have taken it from it, which takes a
    quorum of what the voters were. So those that live must be one without it.
    """
    if host_id not in voters:
        return 0
    return max(0, quorum(len(voters)) - sum(voter in living for voter in voters))


def target_voters(live_hosts: int) -> int:
    """How many voters so many hosts are to have."""
    if live_hosts < 3:
        return 1
    return 3 if live_hosts < MAX_VOTERS else MAX_VOTERS


def next_step(view: View) -> Step:
    """The one thing to do now."""
    situation = _Situation(view)
    if len(situation.healthy) < quorum(len(situation.voters)):
        return Wait(why="no quorum of healthy voters")
    pause_s = view.limits.change_pause_s - view.since_change_s
    learner = situation.learner
    if pause_s > 0 and learner is None:
        return Wait(min(pause_s, LOOK_S), "a change was made just now")
    return (
        (_dead_voter(situation) if pause_s <= 0 else None)
        or (_next_of_learner(situation, learner) if learner is not None else None)
        or _next_of_count(situation)
    )


class _Situation:
    """The view, sorted out."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.limits = view.limits
        self.voters = [member for member in view.members if not member.is_learner]
        self.healthy = [member for member in self.voters if member.is_healthy]
        #: etcd has one at most, as we start it; of more, one after the other is dealt with.
        self.learner = min((m for m in view.members if m.is_learner), key=lambda m: m.id, default=None)
        self.live = {host.host_id: host for host in view.live if host.host_id not in view.removed}
        seated = {member.host_id for member in view.members}
        #: Hosts that could take a seat, the best first.
        self.standby = sorted(
            (h for h in self.live.values() if _could_sit(h) and h.host_id not in seated),
            key=lambda h: (h.started_at, h.host_id),
        )
        #: Drained hosts count: a drain for an hour's maintenance is no reason to shrink the cluster.
        self.target = target_voters(sum(host.is_willing for host in self.live.values()))
        self.drained = [member for member in self.voters if self.is_drained(member)]

    def host_of(self, member: MemberView) -> LiveHost | None:
        return self.live.get(member.host_id) if member.host_id is not None else None

    def is_drained(self, member: MemberView) -> bool:
        host = self.host_of(member)
        return host is not None and host.is_drained

    def is_barred(self, member: MemberView) -> bool:
        return member.host_id in self.view.removed

    def is_dead(self, member: MemberView) -> bool:
        return not member.is_healthy and member.unhealthy_for_s >= self.limits.grace_s

    def may_remove(self, member: MemberView) -> bool:
        """Whether those that stay are a healthy quorum among themselves."""
        stay = len(self.healthy) - member.is_healthy
        return len(self.voters) > 1 and stay >= quorum(len(self.voters) - 1)

    @property
    def may_grow(self) -> bool:
        """etcd refuses additions while a member is away; a voter whose etcd is unfit for company stays alone."""
        unwilling = any((host := self.host_of(member)) is not None and not host.is_willing for member in self.voters)
        return len(self.healthy) == len(self.voters) and not unwilling


def _could_sit(host: LiveHost) -> bool:
    return host.is_willing and not host.is_drained and not host.is_unlucky


def _dead_voter(situation: _Situation) -> Step | None:
    """A seat that is to be given up: of a host that was removed, or of a dead one, for a gain."""
    for member in situation.voters:
        if situation.is_barred(member) and situation.may_remove(member):
            return Remove(member.id, "its host was removed from the cluster")
    dead = [member for member in situation.voters if situation.is_dead(member)]
    voters, healthy = len(situation.voters), len(situation.healthy)
    tolerates_more = healthy - quorum(healthy) > healthy - quorum(voters)
    for member in sorted(dead, key=lambda m: (-m.unhealthy_for_s, m.id)):
        if not situation.may_remove(member):
            continue
        away = f"it has been away for {member.unhealthy_for_s:.0f} s"
        host = situation.host_of(member)
        if host is not None and host.is_willing:
            return Remove(member.id, f"{away} while its node lives: it comes back as a new member")
        if situation.standby or situation.learner is not None:
            return Remove(member.id, f"{away}, and another host takes its place")
        if tolerates_more:
            return Remove(member.id, f"{away}, and fewer voters tolerate more")
    return None


def _next_of_learner(situation: _Situation, learner: MemberView) -> Step:
    """Promoted, evicted, or waited for: as long as it is there, nobody else can be added."""
    eviction = _eviction(situation, learner)
    if eviction is not None:
        return eviction
    if not _is_wanted(situation, learner):
        if learner.known_for_s >= situation.limits.grace_s:
            return Remove(learner.id, "the cluster is not to grow any more")
        return Wait(why="whether the learner is still wanted will show")
    if learner.is_started and learner.is_healthy:
        return Promote(learner.id)
    return Wait(PROMOTE_RETRY_S, "the learner has not started")


def _eviction(situation: _Situation, learner: MemberView) -> Remove | None:
    limits, away_s = situation.limits, learner.unhealthy_for_s
    if situation.is_barred(learner):
        return Remove(learner.id, "its host was removed from the cluster")
    if situation.host_of(learner) is None and away_s >= limits.learner_grace_s:
        return Remove(learner.id, "the learner's node is gone", is_eviction=True)
    if away_s >= limits.grace_s:
        return Remove(learner.id, f"the learner has not answered for {away_s:.0f} s", is_eviction=True)
    if learner.known_for_s >= limits.learner_limit_s:
        return Remove(learner.id, f"the learner is not in sync after {learner.known_for_s:.0f} s", is_eviction=True)
    return None


def _is_wanted(situation: _Situation, learner: MemberView) -> bool:
    """Whether a vote for it makes the cluster better, or is a step on the way there."""
    if situation.is_drained(learner):
        return False
    voters = len(situation.voters)
    if len(situation.healthy) < voters:
        return True  # for one that may not come back
    if situation.drained:
        return True
    if voters % 2 == 0:
        return voters < MAX_VOTERS
    return voters + 2 <= situation.target and bool(situation.standby)


def _next_of_count(situation: _Situation) -> Step:
    """No voter is dead and no learner there: more voters, fewer, or others?"""
    voters, standby = len(situation.voters), situation.standby
    is_even = voters % 2 == 0
    # From an odd count by two or not at all; but a drained voter's successor comes before it goes.
    is_short = voters + 2 - is_even <= situation.target and len(standby) >= 2 - is_even
    is_to_replace = not is_even and bool(situation.drained) and bool(standby)
    if (is_short or is_to_replace) and situation.may_grow:
        return AddLearner(standby[0].host_id, standby[0].peer_url)
    if is_even:
        return _give_up_a_seat(situation)
    if is_short or is_to_replace:
        return Wait(why="a voter is away, or its etcd is not fit for more of them")
    return Wait(why="as it should be")


def _give_up_a_seat(situation: _Situation) -> Step:
    surplus, voters = _least_wanted(situation), len(situation.voters)
    is_ripe = situation.view.even_for_s >= situation.limits.grace_s or situation.is_drained(surplus)
    if is_ripe and situation.may_remove(surplus):
        return Remove(surplus.id, f"{voters} voters tolerate no more than {voters - 1}")
    return Wait(why="an even number of voters")


def _least_wanted(situation: _Situation) -> MemberView:
    """Of the voters: one that is away rather than one that is there, a drained one, else that which came last."""

    def key(member: MemberView) -> tuple[bool, bool, float, str]:
        host = situation.host_of(member)
        started_at = host.started_at if host is not None else float("inf")
        return (not member.is_healthy, situation.is_drained(member), started_at, member.host_id or "")

    return max(situation.voters, key=key)
