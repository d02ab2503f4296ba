"""Every step that the rules, the environment and the faults left allow from a state, and the invariants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etcd.transitions import Guard, Name
from tests.model.guards import LASTING, is_admitted
from tests.model.state import (
    CANCELED,
    COMPLETE,
    FAULTS,
    IDLE,
    MARGIN,
    QUEUED,
    RUNNING,
    TERMINAL,
    TTL,
    Box,
    Host,
    Memory,
    Message,
    NodeId,
    Record,
    Rules,
    Scenario,
    State,
    Violation,
    check,
    initial,
)
from tests.model.store import apply, with_host

#: label, is a fault, next state
Step = tuple[str, bool, State]


def spend(state: State, fault: str) -> State | None:
    """The state with one fault of this kind used up, or None."""
    at = FAULTS.index(fault)
    left = state.left
    return state._replace(left=(*left[:at], left[at] - 1, *left[at + 1 :])) if left[at] else None


def with_leases(state: State, leases: dict[NodeId, int]) -> State:
    return state._replace(leases=tuple(sorted(leases.items())))


def orphaned(state: State, node: NodeId) -> State:
    """Messages of a node that is no more: nobody waits, those not applied may still be."""
    kept = {
        message._replace(wait=False) if message.by == node else message
        for message in state.messages
        if message.by != node or message.answer is None
    }
    return state._replace(messages=frozenset(kept))


class HostMoves:
    """The steps of one host in one state."""

    def __init__(self, rules: Rules, scenario: Scenario, state: State, number: int) -> None:
        self.rules, self.scenario, self.state, self.number = rules, scenario, state, number
        self.host: Host = state.hosts[number]
        self.node: NodeId = (number, self.host.incarnation)
        self.leases = dict(state.leases)
        self.has_key = self.node in self.leases
        self.is_up = self.host.proc == "up" and self.host.link
        self.is_alive = self.host.proc in ("up", "stop")
        self.is_fencing = self.host.spawner == "up" or (rules.backup_fence and self.host.spawner == "stop")
        self.owns = state.record is not None and state.record.status == RUNNING and state.record.node == self.node

    @property
    def is_calm(self) -> bool:
        """Nothing is due here before time may pass."""
        box = self.host.box
        must_fence = box is not None and not box.frozen and self.host.deadline == 0 and self.is_fencing
        must_ping = self.is_up and self.has_key and self.leases[self.node] < TTL
        return not must_fence and not must_ping

    def to(self, label: str, base: State | None = None, *, fault: bool = False, **changes: Any) -> Step:
        state = self.state if base is None else base
        return f"n{self.node[0]}.{self.node[1]} {label}", fault, with_host(state, self.number, **changes)

    def send(self, kind: str, seen: Record, outcome: str = "") -> State:
        message = Message(kind, self.node, seen, outcome, True, None)
        return self.state._replace(messages=self.state.messages | {message})

    def steps(self) -> Iterator[Step]:
        own = (self.session, self.claims, self.ends, self.cancels, self.spawner, self.boots)
        for part in (*own, self.requeues, self.forgets, self.faults):
            yield from part()

    def session(self) -> Iterator[Step]:
        host, rules = self.host, self.rules
        fresh = with_leases(self.state, self.leases | {self.node: TTL})
        if self.is_up and self.has_key and self.leases[self.node] < TTL:
            yield self.to("ping and answer", fresh, deadline=TTL - MARGIN + rules.fence_late)
            if host.ping is None and (after := spend(fresh, "slow")):
                yield self.to("PING, SLOW ANSWER", after, fault=True, ping=0)
        if self.is_up and host.ping is not None:
            age = 0 if rules.fence_from_answer else host.ping
            deadline = TTL - MARGIN + rules.fence_late - age
            yield self.to("slow answer of a ping", ping=None, deadline=max(host.deadline, deadline))
        if self.is_up and not self.has_key and rules.new_id:
            gone = orphaned(self.state, self.node)
            yield self.to("learns that its lease is lost", gone, ping=None, proc="boot", memory=IDLE, event=False)
        if self.is_up and not self.has_key and not rules.new_id:
            yield self.to("registers again under the same id", fresh, ping=None, deadline=TTL - MARGIN)

    def claims(self) -> Iterator[Step]:
        memory, record = self.host.memory, self.state.record
        if self.is_up and memory.phase == "idle" and record and record.status == QUEUED:
            yield self.to("sends claim", self.send("claim", record), memory=Memory("claim", record.attempt, ""))
        if self.is_up and memory.phase == "claim?":
            if self.rules.unknown == "retry":
                seen = Record(QUEUED, memory.attempt, None, False, self.state.life)
                yield self.to("retries claim", self.send("claim", seen), memory=memory._replace(phase="claim"))
            else:
                mine = (RUNNING, self.node) in self.state.keys and record is not None
                back = Memory("held", record.attempt, "") if mine and record else IDLE
                yield self.to(f"reads back: {back.phase}", memory=back)
        started = self.host.deadline > 0 or not self.rules.start_deadline
        if self.is_alive and memory.phase == "held" and self.host.spawner == "up" and not self.host.box and started:
            attempt = memory.attempt
            again = f"3: attempt {attempt} is started a second time"
            check(attempt > self.state.ran, again, f"n{self.node[0]}.{self.node[1]} starts it")
            base = self.state._replace(ran=max(attempt, self.state.ran))
            yield self.to(f"starts attempt {attempt}", base, box=Box(attempt, False), memory=Memory("run", attempt, ""))

    def ends(self) -> Iterator[Step]:
        host, memory, record = self.host, self.host.memory, self.state.record
        if host.box and not host.box.frozen and not self.scenario.endless:
            seen_by_node = memory.phase == "run" and self.is_alive
            after = Memory("done", memory.attempt, COMPLETE) if seen_by_node else memory
            yield self.to(f"process of attempt {host.box.attempt} exits", box=None, memory=after)
        if self.is_alive and memory.phase == "run" and not host.box:  # the spawner died, and the process with it
            yield self.to("sees that its process is gone", memory=Memory("done", memory.attempt, "giveback"))
        if self.is_up and memory.phase == "done":
            fresh = self.owns and record is not None and record.attempt == memory.attempt
            seen = record if fresh and record else Record(RUNNING, memory.attempt, self.node, False, self.state.life)
            base = self.send("end", seen, memory.outcome)
            label = f"sends {memory.outcome} of attempt {memory.attempt}"
            yield self.to(label, base, memory=memory._replace(phase="end"))
        given_back_alive = host.proc == "up" and host.box and memory.phase not in ("run", "idle")
        if given_back_alive and host.spawner == "up" and not self.rules.giveback_after_kill:
            yield self.to("kills what it gave back", box=None)

    def cancels(self) -> Iterator[Step]:
        memory, record = self.host.memory, self.state.record
        canceled = Memory("done", memory.attempt, CANCELED)
        if self.is_up and self.host.event:
            if memory.phase in ("run", "held") and self.host.spawner == "up":
                yield self.to("learns of the cancel, kills", box=None, memory=canceled, event=False)
            elif memory.phase not in ("run", "held"):
                yield self.to("gets a watch event of a task that it does not know", event=False)
        if self.is_up and self.rules.own_sweep and self.owns and record:
            if record.cancel and memory.phase in ("run", "held") and self.host.spawner == "up":
                yield self.to("sweep finds the cancel, kills", box=None, memory=canceled)
            if memory.phase == "idle":
                yield self.to("sweep adopts its own running key", memory=Memory("held", record.attempt, ""))

    def spawner(self) -> Iterator[Step]:
        host, memory = self.host, self.host.memory
        if host.box and not host.box.frozen and host.deadline == 0 and self.is_fencing:
            yield self.to("freeze at the deadline", box=Box(host.box.attempt, True))
        if host.box and host.box.frozen and host.deadline > 0 and host.spawner == "up":
            yield self.to("thaw", box=Box(host.box.attempt, False))
        if host.box and host.box.frozen and host.deadline == 0 and self.is_fencing:
            outcome = "giveback" if self.rules.fence_report else "fenced"
            after = Memory("done", memory.attempt, outcome) if memory.phase == "run" else memory
            yield self.to("fence kills", box=None, memory=after)
        if host.spawner == "up" and host.proc == "dead":
            yield self.to("spawner sees the node gone, kills", box=None, spawner="dead")
        if host.spawner == "dead" and host.proc == "up":
            yield self.to("starts a new spawner", spawner="up")

    def boots(self) -> Iterator[Step]:
        host = self.host
        if host.proc == "dead":
            yield self.to("node restarts", proc="boot")
        if host.proc != "boot":
            return
        is_clean = not host.box and host.spawner == "dead"
        if not is_clean:
            yield self.to("boot: kills the old spawner and its processes", box=None, spawner="dead")
        if host.link and self.has_key and (is_clean or not self.rules.revoke_after_kill):
            left = {node: ticks for node, ticks in self.leases.items() if node != self.node}
            yield self.to("boot: revokes the old lease", with_leases(self.state, left))
        if host.link and self.rules.cloned and self.number == 1:
            left = {node: ticks for node, ticks in self.leases.items() if node[0] != 0}
            yield self.to("boot: revokes the lease of its twin", with_leases(self.state, left))
        if host.link and is_clean:
            new = (self.number, host.incarnation + 1)
            base = with_leases(self.state, self.leases | {new: TTL})
            started: dict[str, Any] = {"proc": "up", "incarnation": new[1], "spawner": "up", "deadline": TTL - MARGIN}
            yield self.to("registers as a new incarnation", base, ping=None, memory=IDLE, event=False, **started)

    def requeues(self) -> Iterator[Step]:
        """By any peer."""
        record = self.state.record
        if not self.is_up or record is None or record.status != RUNNING or record.node is None:
            return
        trusts_nobody = (Name.REQUEUE, Guard.OWNER_GONE) in self.rules.dropped
        if record.node not in self.leases or (trusts_nobody and record.node[0] != self.number):
            message = Message("requeue", None, record, "", False, None)
            if message not in self.state.messages:
                base = self.state._replace(messages=self.state.messages | {message})
                yield self.to(f"sends requeue of n{record.node[0]}.{record.node[1]}", base)

    def forgets(self) -> Iterator[Step]:
        """Retention is everybody's, and waits until no client can be waiting. The last life is kept: it is the end."""
        record = self.state.record
        if not self.is_up or record is None or record.status not in TERMINAL or record.life + 1 >= self.scenario.lives:
            return
        if self.state.submit != "ack" or any(message.by == "client" for message in self.state.messages):
            return
        message = Message("forget", self.node, record, "", False, None)
        if message not in self.state.messages:
            yield self.to("sends forget", self.state._replace(messages=self.state.messages | {message}))

    def faults(self) -> Iterator[Step]:
        host, state = self.host, self.state
        if host.proc == "stop":
            yield self.to("SIGCONT", proc="up")
        if host.spawner == "stop":
            yield self.to("spawner SIGCONT", spawner="up")
        if not host.link:
            yield self.to("partition heals", link=True)
        gone: dict[str, Any] = {"proc": "dead", "ping": None, "memory": IDLE, "event": False}
        if host.proc != "dead" and (after := spend(state, "crash")):
            yield self.to("KILL -9", orphaned(after, self.node), fault=True, **gone)
        if host.proc != "dead" and (after := spend(state, "power")):
            yield self.to("POWER CUT", orphaned(after, self.node), fault=True, box=None, spawner="dead", **gone)
        if host.proc == "up" and (after := spend(state, "pause")):
            yield self.to("SIGSTOP", after, fault=True, proc="stop")
        if host.link and (after := spend(state, "part")):
            yield self.to("PARTITION", after, fault=True, link=False)
        if host.spawner != "dead" and (after := spend(state, "spwkill")):
            yield self.to("SPAWNER KILL -9", after, fault=True, spawner="dead", box=None)
        if host.spawner == "up" and (after := spend(state, "spwstop")):
            yield self.to("SPAWNER SIGSTOP", after, fault=True, spawner="stop")
        holds = host.proc == "up" and host.memory.phase in ("held", "run") and host.spawner == "up"
        if holds and (after := spend(state, "drain")):
            memory = Memory("done", host.memory.attempt, "giveback")
            box = None if self.rules.giveback_after_kill else host.box
            yield self.to("DRAIN, gives back", after, fault=True, memory=memory, box=box)


class Model:
    """One scenario under one set of rules."""

    def __init__(self, rules: Rules, scenario: Scenario, hosts: int = 2) -> None:
        self.rules, self.scenario = rules, scenario
        self.start = initial(scenario, hosts)

    def steps(self, state: State) -> Iterator[Step]:
        hosts = [HostMoves(self.rules, self.scenario, state, number) for number in range(len(state.hosts))]
        for host in hosts:
            yield from host.steps()
        for message in state.messages:
            yield from self._message(state, message)
        yield from self._client(state)
        yield from self._time(state, is_calm=all(host.is_calm for host in hosts))

    def _message(self, state: State, message: Message) -> Iterator[Step]:
        whose = f"n{message.by[0]}.{message.by[1]}'s " if isinstance(message.by, tuple) else ""
        seen = f" (seen: {message.seen.status} attempt {message.seen.attempt})" if message.seen else ""
        name = f"{whose}{message.outcome or message.kind}{seen}"
        without = state._replace(messages=state.messages - {message})
        if message.answer is not None:
            if message.by == "client" or _is_reachable(state, message):
                yield f"answer {message.answer[0]}: {name}", False, self._answered(without, message)
            if after := spend(without, "unknown"):
                yield f"ANSWER LOST: {name}", True, self._unknown(after, message)
            return
        try:
            applied, answer = apply(self.rules, without, message)
        except Violation as violation:
            violation.label = f"etcd: {name} applied"
            raise
        note = "applied" if applied is not without else "refused"
        if message.wait:
            applied = applied._replace(messages=applied.messages | {message._replace(answer=answer)})
        yield f"etcd: {name} {note}", False, applied
        if message.wait and (after := spend(without, "unknown")):
            yield f"REQUEST LOST: {name}", True, self._unknown(after, message)
            late = after._replace(messages=after.messages | {message._replace(wait=False)})
            label = f"SENDER GIVES UP, request still on its way: {name}"
            yield label, True, self._unknown(late, message)

    def _unknown(self, state: State, message: Message) -> State:
        """The sender learns nothing of what became of it."""
        if not isinstance(message.by, tuple):
            return state._replace(submit="new") if message.kind == "submit" else state._replace(cancel="no")
        how, number = self.rules.unknown, message.by[0]
        memory = state.hosts[number].memory
        if message.kind == "claim" and message.seen is not None:
            attempt = message.seen.attempt
            given_up = {"failed": IDLE, "applied": Memory("held", attempt + 1, "")}
            return with_host(state, number, memory=given_up.get(how, Memory("claim?", attempt, "")))
        after = IDLE if how in ("failed", "applied") else memory._replace(phase="done")
        return with_host(state, number, memory=after)

    def _answered(self, state: State, message: Message) -> State:
        assert message.answer is not None
        result, attempt = message.answer
        if not isinstance(message.by, tuple):
            if message.kind == "submit":
                return state._replace(submit="ack")
            return state._replace(cancel="ack" if result == "ok" else "no")
        number = message.by[0]
        memory, record = state.hosts[number].memory, state.record
        if message.kind == "claim":
            return with_host(state, number, memory=IDLE if result == "lost" else Memory("held", attempt, ""))
        still_mine = record is not None and record.status == RUNNING and record.node == message.by
        if result == "lost" and still_mine and record is not None and record.attempt == memory.attempt:
            # The record changed under us: read it again.
            return with_host(state, number, memory=memory._replace(phase="done"))
        return with_host(state, number, memory=IDLE)

    def _client(self, state: State) -> Iterator[Step]:
        record = state.record
        if state.submit == "new":
            message = Message("submit", "client", None, "", True, None)
            after = state._replace(messages=state.messages | {message}, submit="wait")
            yield "client sends submit", False, after
        may_cancel = state.cancel == "no" and record is not None and state.left[FAULTS.index("cancel")]
        if may_cancel and record is not None and record.status in (QUEUED, RUNNING):
            message = Message("cancel", "client", record, "", True, None)
            after = state._replace(messages=state.messages | {message}, cancel="wait")
            yield "client sends cancel", False, after
        if state.cancel == "no" and record and record.cancel:
            yield "client reads that the cancel is there", False, state._replace(cancel="ack")
        if self.rules.retention and state.submit == "ack" and record and record.status in TERMINAL:
            yield "retention deletes the finished task", False, state._replace(record=None, keys=frozenset())

    def _time(self, state: State, *, is_calm: bool) -> Iterator[Step]:
        for node, ticks in state.leases:
            if ticks == 0 or self.rules.etcd_early:
                left = {other: left for other, left in state.leases if other != node}
                yield f"lease of n{node[0]}.{node[1]} expires", False, with_leases(state, left)
        if is_calm:
            aged = tuple(
                host._replace(
                    deadline=max(0, host.deadline - 1), ping=None if host.ping in (None, TTL) else (host.ping or 0) + 1
                )
                for host in state.hosts
            )
            leases = tuple((node, max(0, ticks - 1)) for node, ticks in state.leases)
            after = state._replace(hosts=aged, leases=leases)
            if after != state:
                yield "tick", False, after

    def tidied(self, state: State) -> State:
        """Without requests that nobody waits for and that no future state can accept (records never recur)."""
        left = frozenset(message for message in state.messages if not self._is_dead(state, message))
        return state._replace(messages=left) if len(left) != len(state.messages) else state

    def _is_dead(self, state: State, message: Message) -> bool:
        if message.wait or message.kind == "submit":
            return False
        return not is_admitted(self.rules, state, message, only=LASTING)

    def is_settled(self, state: State) -> bool:
        is_over = state.record is not None and state.record.status in TERMINAL
        is_last = state.life + 1 >= self.scenario.lives
        is_quiet = not state.messages and state.submit == "ack"
        return is_over and is_last and is_quiet and all(h.box is None and h.memory == IDLE for h in state.hosts)

    def check_invariants(self, before: State, after: State) -> None:
        """Raises Violation if the step, or the state after it, is illegal."""
        live = [(number, host) for number, host in enumerate(after.hosts) if host.box and not host.box.frozen]
        check(len(live) <= 1, "4: two live runs of one task")
        lost = after.submit == "ack" and after.record is None and not self.rules.retention
        check(not lost, "1: an acknowledged task is gone")
        new = after.record
        if new is None:
            return
        want = (RUNNING, new.node) if new.status == RUNNING else (new.status,)
        found = sorted(key[0] for key in after.keys)
        check(after.keys == {want}, f"2: record says {new.status}, index has {found}")
        for number, host in live:
            assert host.box is not None
            is_right = new.status == RUNNING and new.attempt == host.box.attempt
            where = f"attempt {host.box.attempt} is live while the record says {new.status}, attempt {new.attempt}"
            is_mine = new.node == (number, host.incarnation)
            check(is_right and is_mine, f"{5 if new.status == CANCELED else 4}: {where}")
        forgotten = after.cancel == "ack" and new.status in (QUEUED, RUNNING) and not new.cancel
        check(not forgotten, "5: an acknowledged cancel was forgotten")
        if before.record is not None and before.record != new:
            self._check_transition(before.record, new)

    def _check_transition(self, old: Record, new: Record) -> None:
        check(old.status not in TERMINAL, "2: a terminal state changed")
        claimed = old.status == QUEUED and new.status == RUNNING
        check(new.attempt == old.attempt + claimed, f"3: attempt went from {old.attempt} to {new.attempt}")
        legal = {(QUEUED, RUNNING), (QUEUED, CANCELED), (RUNNING, QUEUED), (RUNNING, RUNNING)}
        legal |= {(RUNNING, status) for status in TERMINAL}
        check((old.status, new.status) in legal, f"2: {old.status} to {new.status}")
        again = old.status == RUNNING and new.status == QUEUED and not self.rules.restart
        check(not again, "2: a task that must not be restarted was")
        check(new.attempt <= self.rules.max_attempts, "2: more attempts than allowed")


def _is_reachable(state: State, message: Message) -> bool:
    assert isinstance(message.by, tuple)
    host = state.hosts[message.by[0]]
    return host.proc == "up" and host.link and host.incarnation == message.by[1]
