"""What a calm host owes its tasks and its peers: that it is prompt, and does nothing needless.

The checkers of `checks.py` ask whether what happened was allowed. A second line of defence (the comparison every 5 s,
the sweep every 10 s, another try) makes good what the first one missed, so that nothing forbidden happens where the
first one is broken: it only takes longer, or work is thrown away. Here it is asked whether the first lines hold. A host
is calm while nothing befalls it or etcd (`Host.calm_since`); nothing is asked of the others.

* OrphansAreSeenTo: of a node that is gone nothing is left when its peers had their turns (design, section 8, 6).
* KilledLeavesNothing: kill -9 of a node leaves no process for longer than 1 s (6).
* CalmNodeKeepsItsLease: nobody is fenced for nothing.
* CalmNodeKeepsItsTasks: what runs is not given back for nothing, and what is claimed is not given back again and again.
* ClaimedStartsSoon, NoIdleWhileQueued: a task that fits starts in bounded time (7).
* FencedNodeRunsNothing: a node whose key is deleted hears of it, and ends what it runs (4, 10).
* StopsInTime: a node that is told to stop does.
* DrainedClaimsNothing, DrainGivesBack: a drain is obeyed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcd import cluster_codec, codec, keys
from node.core.lifecycle import may_run_again
from node.core.model import Drain, Reason, Status, Task
from tests.simulation.clock import monotonic
from tests.simulation.loop import of_nobody
from tests.support.fake_store import Change

if TYPE_CHECKING:
    from tests.simulation.checks import Checks
    from tests.simulation.host import Host, SimNode

#: Calls and their news, claims under way, the reading of what they mean; with some room.
PROMPT_S = 1.5
#: The longest grace that a task is drawn with.
GRACE_MAX_S = 2.0
#: From the news of a death until the last of eight peers has its turn (`node/core/sweep.py`).
LAST_TURN_S = 6.0
KILLED_S = 1.0
#: How long a host stands idle beside a queue before it is asked why.
IDLE_MAX_S = 5.0
LOOK_S = 1.0
#: A node that nothing befalls compares its keys each 5 s (`node/running/own_keys.py`), and gives back what it does not
#: know.
COMPARED_S = 6.5
#: So often in a row a task may be claimed and given back unstarted by calm hosts: claims ahead may come to nothing.
UNSTARTED_MAX = 4


class Promises:
    """Watches etcd beside the checks, and looks again after a while."""

    def __init__(self, checks: Checks, hosts: Sequence[Host], *, stop_wait_s: float) -> None:
        """hosts: may grow. stop_wait_s: what a stopping node waits for those that may not run again."""
        self._checks = checks
        self._hosts = hosts
        self._stop_wait_s = stop_wait_s
        #: Of living nodes: host id, and since when the key is there.
        self._nodes: dict[str, tuple[str, float]] = {}
        #: Drained hosts, with their drain and since when; and until when others were.
        self._drains: dict[str, tuple[Drain, float]] = {}
        self._undrained_at: dict[str, float] = {}
        self._unstarted: Counter[str] = Counter()
        #: By task: since when it is queued. By host: since when its node runs nothing.
        self._queued: dict[str, float] = {}
        self._claimed_at: dict[str, float] = {}
        self._idle: dict[str, float] = {}
        of_nobody(self._look, delay_s=LOOK_S)

    # What is asked of whom

    def _host_of(self, host_id: str) -> Host | None:
        """None where there are several, a copy among them."""
        found = [host for host in self._hosts if host.id == host_id]
        return found[0] if len(found) == 1 else None

    def _calm(self, node_id: str, since: float) -> Host | None:
        """The host of this living node, if nothing has befallen it since then, and it is not told to stop."""
        host_id, there_since = self._nodes.get(node_id, ("", 0.0))
        host = self._host_of(host_id)
        if host is None or host.node_id != node_id or there_since > since or host.calm_since > since:
            return None
        return host if _serves(host) else None

    # As etcd's listener, after the checks

    def changed(self, change: Change) -> None:
        gone: dict[str, str] = {}
        for event in change.events:
            key = event.kv.key
            if key.startswith(b"/task/status/"):
                continue
            if key.startswith(b"/task/"):
                if not event.is_delete:
                    self._task(keys.parse_task(key))
            elif key.startswith(b"/node/"):
                node_id = keys.parse_node(key)
                if event.is_delete:
                    gone[node_id] = self._node_gone(node_id)
                else:
                    self._nodes[node_id] = (codec.decode_node(key, event.kv.value).host_id, monotonic())
            elif key.startswith(keys.all_drained().key):
                self._drain(key, None if event.is_delete else event.kv.value)
        for node_id, host_id in gone.items():
            self._orphans(node_id, host_id)

    # Tasks

    def _task(self, task_id: str) -> None:
        before, after = self._checks.before(task_id), self._checks.history.find(task_id)
        if after is None:
            return
        if after.status is Status.QUEUED:
            self._queued.setdefault(task_id, monotonic())
        else:
            self._queued.pop(task_id, None)
        if before is None or before.status is after.status:
            return
        if after.status is Status.RUNNING:
            self._claimed(after)
        elif before.status is Status.RUNNING and after.attempts[-1].outcome is not None:
            self._ended(before, after, after.attempts[-1].outcome.reason)

    def _claimed(self, task: Task) -> None:
        owner, now = task.owner or "", monotonic()
        self._claimed_at[task.id] = now
        host_id, _ = self._nodes.get(owner, ("", 0.0))
        host = self._host_of(host_id)
        drain, drained_at = self._drains.get(host_id, (None, now))
        for_s = now - drained_at
        if host is not None and drain is not None and host.node is not None:
            knew_at_start = host.node.started_at > drained_at
            if knew_at_start or (self._calm(owner, drained_at) is not None and for_s > PROMPT_S):
                self._add("DrainedClaimsNothing", task.id, f"claimed by {host.name}, drained for {for_s:g} s")
        if self._calm(owner, now) is not None:
            of_nobody(self._check_start, task.id, task.attempt, owner, now, delay_s=PROMPT_S)

    def _check_start(self, task_id: str, attempt: int, owner: str, claimed_at: float) -> None:
        task = self._checks.history.find(task_id)
        if task is None or task.status is not Status.RUNNING or task.attempt != attempt or task.cancel_requested:
            return
        if self._checks.command(task_id, attempt) is None and (host := self._calm(owner, claimed_at)) is not None:
            self._add("ClaimedStartsSoon", task_id, f"claimed by {host.name} {PROMPT_S:g} s ago, and not started")

    def _ended(self, before: Task, after: Task, reason: Reason) -> None:
        """A claim has come to its end. Asked only where it was given back by a calm host that has no cause to."""
        now = monotonic()
        if reason not in (Reason.GIVEN_BACK, Reason.FENCED):
            self._unstarted.pop(before.id, None)
            return
        host = self._calm(before.owner or "", now)
        undrained_at = self._undrained_at.get(host.id, float("-inf")) if host is not None else now
        if host is None or host.id in self._drains or now - undrained_at < GRACE_MAX_S + PROMPT_S:
            return
        outcome = after.attempts[-1].outcome
        words = f"given back by {host.name}: {outcome.detail if outcome is not None else ''}"
        if self._checks.command(before.id, before.attempt) is not None:
            self._add("CalmNodeKeepsItsTasks", before.id, words)
            return
        self._unstarted[before.id] += 1
        if self._unstarted[before.id] > UNSTARTED_MAX:
            self._add(
                "CalmNodeKeepsItsTasks", before.id, f"for the {self._unstarted[before.id]}th time unstarted {words}"
            )

    # Nodes

    def _node_gone(self, node_id: str) -> str:
        now = monotonic()
        host = self._calm(node_id, now)
        if host is not None:
            self._add("CalmNodeKeepsItsLease", node_id, f"{host.name} lost it, and nothing had befallen it")
        return self._nodes.pop(node_id, ("", 0.0))[0]

    def _orphans(self, node_id: str, host_id: str) -> None:
        left = [task.id for task in self._checks.history.tasks.values() if task.owner == node_id]
        if not left:
            return
        now = monotonic()
        first = frozenset(self._nodes)
        of_nobody(self._check_orphans, node_id, host_id, left, now, first, delay_s=PROMPT_S)
        of_nobody(self._check_orphans, node_id, host_id, left, now, frozenset(), delay_s=LAST_TURN_S + PROMPT_S)

    def _check_orphans(
        self, node_id: str, host_id: str, left: Sequence[str], since: float, wanted: frozenset[str]
    ) -> None:
        """wanted: who must be calm. Of all that there were then, whoever's turn is the first is one; later it is
        enough that somebody is calm."""
        # A node that began a moment before may not have looked at the nodes yet.
        settled = {
            node_id
            for node_id, (_, there_since) in self._nodes.items()
            if there_since <= since - PROMPT_S and self._calm(node_id, since) is not None
        }
        if not settled or not wanted <= settled:
            return
        for task_id in left:
            task = self._checks.history.find(task_id)
            if task is not None and task.owner == node_id:
                words = f"{node_id} of host {host_id} is gone for {monotonic() - since:g} s, and it is still its own"
                self._add("OrphansAreSeenTo", task_id, words)

    def killed(self, host: Host, node: SimNode) -> None:
        """kill -9."""
        of_nobody(self._check_killed, host, node, monotonic(), delay_s=KILLED_S)

    def _check_killed(self, host: Host, node: SimNode, killed_at: float) -> None:
        spawner = node.spawner
        if not spawner.process.has_run_since(killed_at):
            return  # a spawner that is stopped kills nobody: the deadline does, or the next start
        for command in spawner.commands.values():
            if not command.is_over:
                self._add(
                    "KilledLeavesNothing", command.task_id, f"it lives {KILLED_S:g} s after the node of {host.name}"
                )

    def key_deleted(self, host: Host, node_id: str) -> None:
        """By somebody else, in a moment; that is about to count among what befalls the host, and so is the fault."""
        self._checks.deleted(node_id)
        if host.calm_since <= monotonic():
            of_nobody(self._check_deleted, host, node_id, host.befallen + 2, delay_s=PROMPT_S)

    def _check_deleted(self, host: Host, node_id: str, befallen: int) -> None:
        if host.befallen != befallen:
            return
        for command in self._checks.moving_on(node_id):
            words = f"it moves on {host.name} {PROMPT_S:g} s after the key of its node was deleted"
            self._add("FencedNodeRunsNothing", command.task_id, words)

    def told_to_stop(self, host: Host, node: SimNode) -> None:
        """SIGTERM, which is about to count among what befalls the host."""
        if host.calm_since < float("inf"):
            limit_s = self._stop_wait_s + GRACE_MAX_S + PROMPT_S
            of_nobody(self._check_stop, host, node, host.befallen + 1, delay_s=limit_s)

    def _check_stop(self, host: Host, node: SimNode, befallen: int) -> None:
        if host.node is node and host.is_up and host.befallen == befallen:
            self._add("StopsInTime", host.name, "it was told to stop, and goes on")

    # Drains

    def _drain(self, key: bytes, value: bytes | None) -> None:
        host_id, now = keys.parse_cluster_id(key), monotonic()
        if value is None:
            if self._drains.pop(host_id, None) is not None:
                self._undrained_at[host_id] = now
            return
        drain = cluster_codec.decode_drain(key, value)
        self._drains[host_id] = (drain, now)
        if not drain.let_finish:
            of_nobody(self._check_drain, host_id, now, delay_s=GRACE_MAX_S + PROMPT_S)

    def _check_drain(self, host_id: str, since: float) -> None:
        if self._drains.get(host_id, (None, 0.0))[1] != since:
            return
        for task in self._checks.history.tasks.values():
            owner = task.owner or ""
            if self._nodes.get(owner, ("", 0.0))[0] != host_id or not may_run_again(task, started=True):
                continue
            if (host := self._calm(owner, since)) is not None:
                self._add("DrainGivesBack", task.id, f"it runs on {host.name}, drained for {monotonic() - since:g} s")

    # Claimed, and forgotten

    def _look_for_unstarted(self) -> None:
        """Whatever was the matter at its claim: a calm node compares what it is said to run with what it runs."""
        since = monotonic() - COMPARED_S
        for task_id, task in self._checks.history.tasks.items():
            if task.status is not Status.RUNNING or self._claimed_at.get(task_id, since) >= since:
                continue
            if self._checks.command(task_id, task.attempt) is None and (host := self._calm(task.owner or "", since)):
                self._claimed_at[task_id] = monotonic()  # told once
                words = f"{host.name} has it, calm for {COMPARED_S:g} s, and never started it"
                self._add("ClaimedStartsSoon", task_id, words)

    # Idle beside a queue

    def _look(self) -> None:
        of_nobody(self._look, delay_s=LOOK_S)
        self._look_for_unstarted()
        now = monotonic()
        busy = {task.owner for task in self._checks.history.tasks.values() if task.status is Status.RUNNING}
        for node_id, (host_id, there_since) in self._nodes.items():
            if node_id in busy or host_id in self._drains or self._calm(node_id, now - IDLE_MAX_S) is None:
                self._idle.pop(node_id, None)
                continue
            since = max(self._idle.setdefault(node_id, now), self._undrained_at.get(host_id, 0.0), there_since)
            waiting = [task_id for task_id, at in self._queued.items() if now - at > IDLE_MAX_S]
            if waiting and now - since > IDLE_MAX_S:
                host = self._host_of(host_id)
                name = host.name if host is not None else host_id
                self._add("NoIdleWhileQueued", waiting[0], f"queued, while {name} has run nothing for {IDLE_MAX_S:g} s")
        self._idle = {node_id: at for node_id, at in self._idle.items() if node_id in self._nodes}

    def _add(self, rule: str, what: str, words: str) -> None:
        self._checks.add(rule, what, words)


def _serves(host: Host) -> bool:
    return host.is_up and host.node is not None and not host.node.stop.is_set()
