"""The history checker: reads etcd from its first revision to its last, and proves that nothing illegal ever happened.

It watches the whole key space from revision 1 (so nothing may have been compacted: `--compaction-interval 7d`), keeps
the keys as they were, and judges every revision against the one before it. A long history that is compacted is followed
as it happens (`tests/chaos/observer.py`): what compaction tore out all the same is bridged by a snapshot, over which
less can be said (`History.skip_to`). It trusts no node: what it knows of the
protocol is the key schema, the design's table of guards, and the transitions of `node/core/lifecycle.py`, which it
applies to the record before and compares, field by field, with the record after.

Rules, by the names under which they are told when they are broken:

* StatusAgreesWithRecord: after every revision each record that changed has the index key of its status and no other.
* LegalTransition: every change of a record is one of the table, with the fields that the transition gives it.
* TerminalIsFinal: a terminal record never changes; it may be forgotten as a whole.
* AttemptsAscend: attempt + 1 with each claim, and never otherwise.
* ClaimNeedsLiveLease: who claims, finishes, gives back or confirms a cancel has its node key at that moment.
* RequeueNeedsDeadOwner: a task is requeued only while the node key of its owner is absent.
* OneNodePerHost: no host ever has two node keys; a node key is leased, written once, and does not come back.
* RemovedStaysOut: no node key of a host that was removed, and no removal of one whose node lives.
* NothingLost: no acknowledged submit is absent, or ended twice.
* EventuallyTerminal: at the end every task has ended (asked for when a test has waited for that).

    python -m tests.support.history --endpoint HOST:PORT --pki DIR [--expect-ended]

prints its judgement as JSON, and exits with 1 when a rule was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from etcd import cluster_codec, codec, keys
from etcd.client import EtcdClient
from etcd.endpoints import ClientTls
from etcd.errors import Compacted, RecordCorrupt
from etcd.port import Etcd, Event, KeyRange, KeyValue, Range
from node.core import lifecycle
from node.core.errors import IllegalTransition
from node.core.model import Node, Outcome, Reason, Status, Task
from pilfer.address import NODE_DNS_NAME

EVERYTHING = KeyRange(b"\0", b"\0")
#: Told in full up to here; a broken run would print megabytes.
FLAWS_TOLD = 50
#: Forgotten tasks that are remembered, the newest: an hour's, and not a night's.
FORGOTTEN_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Flaw:
    """One broken rule at one revision."""

    rule: str
    revision: int
    #: The task or node that it is about.
    what: str
    words: str

    def __str__(self) -> str:
        return f"{self.rule} at revision {self.revision}, {self.what}: {self.words}"


@dataclass(slots=True)
class _Life:
    """What is known of one task."""

    task: Task | None = None
    #: Its index keys, with their values.
    index: dict[bytes, bytes] = field(default_factory=dict)


class History:
    """The judge: fed with revisions in order, it collects flaws. No I/O."""

    def __init__(self) -> None:
        self.flaws: list[Flaw] = []
        self.revision = 0
        #: What was applied: revisions, records that they wrote, and requeues among those.
        self.revisions = 0
        self.transitions = 0
        self.requeues = 0
        #: The tasks as they are now, and those that were forgotten after they ended.
        self._lives: dict[str, _Life] = {}
        self._forgotten: dict[str, Status] = {}
        #: Nodes by id, as their keys say now; None: what the key says cannot be read.
        self._nodes: dict[str, Node | None] = {}
        self._past_nodes: set[str] = set()
        self._removed: set[str] = set()

    @property
    def tasks(self) -> dict[str, Task]:
        return {task_id: life.task for task_id, life in self._lives.items() if life.task is not None}

    def find(self, task_id: str) -> Task | None:
        """It as it is now."""
        life = self._lives.get(task_id)
        return life.task if life is not None else None

    def apply(self, revision: int, events: Iterable[Event]) -> None:
        """Everything that was written at one revision."""
        self.revision = revision
        self.revisions += 1
        touched: dict[str, Task | None] = {}
        records: set[str] = set()
        node_events: list[Event] = []
        for event in events:
            key = event.kv.key
            if key.startswith(b"/task/status/"):
                self._index_event(event, touched)
            elif key.startswith(b"/task/"):
                self._record_event(event, touched, records)
            elif key.startswith((b"/node/", b"/cluster/")):
                node_events.append(event)
        for task_id, before in touched.items():
            # Compares see what was before the revision, so that node keys of the same one count only afterwards.
            self._judge(task_id, before, self._lives[task_id], is_rewritten=task_id in records)
        for event in node_events:
            self._node_event(event)

    def begin_anew(self, revision: int, kvs: Iterable[KeyValue]) -> None:
        """From a snapshot and without a past: after an operator's recovery what was before proves nothing."""
        self._forgotten.clear()
        self._past_nodes.clear()
        self._read_snapshot(revision, kvs)

    def skip_to(self, revision: int, kvs: Iterable[KeyValue], *, may_have_forgotten: bool) -> None:
        """Goes on from a snapshot, over revisions that nobody can read any more. may_have_forgotten: so long ago that
        a task may have ended and been forgotten in between."""
        before, lived = self.tasks, set(self._nodes)
        self._read_snapshot(revision, kvs)
        self._past_nodes |= lived - self._nodes.keys()
        for task_id, old in before.items():
            new = self._lives[task_id].task if task_id in self._lives else None
            if new is None:
                self._skip_forgotten(old, may_have_forgotten=may_have_forgotten)
            elif old.status.is_terminal and new != old:
                self._tell("TerminalIsFinal", task_id, f"it was {old.status}, and is now {lifecycle.story(new)}")
            elif new.attempt < old.attempt or new.attempts_used > new.attempt:
                self._tell("AttemptsAscend", task_id, f"attempt {old.attempt} became {new.attempt}")

    def _read_snapshot(self, revision: int, kvs: Iterable[KeyValue]) -> None:
        """Everything as it is at one revision."""
        self.revision = revision
        self._lives, self._nodes, self._removed = {}, {}, set()
        touched: dict[str, Task | None] = {}
        for kv in kvs:
            event = Event(kv, is_delete=False)
            if kv.key.startswith(b"/task/status/"):
                self._index_event(event, touched)
            elif kv.key.startswith(b"/task/"):
                self._record_event(event, touched, set())
            elif kv.key.startswith((b"/node/", b"/cluster/")):
                self._node_event(event)
        for task_id, life in self._lives.items():
            self._judge(task_id, None, life, is_rewritten=False)
            for flaw in lifecycle.flaws(life.task) if life.task is not None else ():
                self._tell("LegalTransition", task_id, flaw)

    def _skip_forgotten(self, old: Task, *, may_have_forgotten: bool) -> None:
        if not old.status.is_terminal and not may_have_forgotten:
            self._tell("NothingLost", old.id, f"it was {old.status}, and is absent after a gap")
        self._forget(old.id, old.status)

    def _forget(self, task_id: str, status: Status) -> None:
        self._forgotten[task_id] = status
        if len(self._forgotten) > FORGOTTEN_MAX:
            del self._forgotten[next(iter(self._forgotten))]

    # What a revision wrote

    def _life(self, task_id: str, touched: dict[str, Task | None]) -> _Life:
        life = self._lives.setdefault(task_id, _Life())
        touched.setdefault(task_id, life.task)
        return life

    def _index_event(self, event: Event, touched: dict[str, Task | None]) -> None:
        key = event.kv.key
        try:
            task_id = keys.parse_index_key(key).task_id
        except RecordCorrupt as error:
            self._tell("StatusAgreesWithRecord", repr(key), str(error))
            return
        life = self._life(task_id, touched)
        if event.is_delete:
            life.index.pop(key, None)
        else:
            life.index[key] = event.kv.value

    def _record_event(self, event: Event, touched: dict[str, Task | None], records: set[str]) -> None:
        try:
            task_id = keys.parse_task(event.kv.key)
            task = None if event.is_delete else codec.decode_task(event.kv.key, event.kv.value)
        except RecordCorrupt as error:
            self._tell("LegalTransition", repr(event.kv.key), str(error))
            return
        self._life(task_id, touched).task = task
        records.add(task_id)

    # Tasks

    def _judge(self, task_id: str, before: Task | None, life: _Life, *, is_rewritten: bool) -> None:
        after = life.task
        wanted = {} if after is None else {keys.index_key(after): _index_value(after)}
        if life.index != wanted:
            status = after.status if after else "absent"
            self._tell("StatusAgreesWithRecord", task_id, f"the record is {status}, the index says {life.index!r}")
        if not is_rewritten:
            return
        self.transitions += 1
        if after is None:
            self._judge_forgotten(task_id, before)
            return
        if before is None:
            if task_id in self._forgotten:
                self._tell("NothingLost", task_id, f"it was {self._forgotten[task_id]}, forgotten, and is made anew")
            self._match(task_id, [_submitted(after)], after, "submitted")
            return
        if before.status.is_terminal:
            self._tell("TerminalIsFinal", task_id, f"it was {before.status}, and its record was written again")
            return
        claims = int(before.status is Status.QUEUED and after.status is Status.RUNNING)
        if after.attempt != before.attempt + claims:
            self._tell("AttemptsAscend", task_id, f"attempt {before.attempt} became {after.attempt}")
        self._match(task_id, list(_successors(before, after)), after, f"{before.status} to {after.status}")
        self._judge_writer(task_id, before, after)

    def _judge_forgotten(self, task_id: str, before: Task | None) -> None:
        if before is None or not before.status.is_terminal:
            was = before.status if before else "absent"
            self._tell("NothingLost", task_id, f"it was {was}, and its record was deleted")
            return
        self._forget(task_id, before.status)
        del self._lives[task_id]

    def _match(self, task_id: str, successors: Sequence[Task], after: Task, what: str) -> None:
        if after not in successors:
            expected = f"; legal would be {[lifecycle.story(task) for task in successors]}" if successors else ""
            self._tell("LegalTransition", task_id, f"{what}: {lifecycle.story(after)}{expected}")

    def _judge_writer(self, task_id: str, before: Task, after: Task) -> None:
        """The guards on node keys: see the table of the design."""
        if before.status is Status.QUEUED:
            if after.status is Status.RUNNING and after.owner not in self._nodes:
                self._tell("ClaimNeedsLiveLease", task_id, f"claimed by {after.owner}, which has no node key")
            return
        if after.status is Status.RUNNING:
            return  # a cancel request: anybody's
        owner = before.owner
        if _is_requeue(after):
            self.requeues += 1
            if owner in self._nodes:
                self._tell("RequeueNeedsDeadOwner", task_id, f"{after.status}, while its owner {owner} has its key")
        elif owner not in self._nodes:
            self._tell("ClaimNeedsLiveLease", task_id, f"{after.status}, written by {owner}, which has no node key")

    # Nodes

    def _node_event(self, event: Event) -> None:
        key = event.kv.key
        try:
            if key.startswith(b"/node/"):
                self._node_key(keys.parse_node(key), event)
            elif key.startswith(keys.all_removed().key) and not event.is_delete:
                cluster_codec.decode_removal(key, event.kv.value)
                self._removal(keys.parse_cluster_id(key))
        except RecordCorrupt as error:
            self._tell("OneNodePerHost", repr(key), str(error))

    def _removal(self, host_id: str) -> None:
        self._removed.add(host_id)
        for node in filter(None, self._nodes.values()):
            if node.host_id == host_id:
                self._tell("RemovedStaysOut", host_id, f"it was removed while its node {node.id} lived")

    def _node_key(self, node_id: str, event: Event) -> None:
        if event.is_delete:
            self._nodes.pop(node_id, None)
            self._past_nodes.add(node_id)
            return
        if node_id in self._nodes:
            self._tell("OneNodePerHost", node_id, "its key was written a second time")
        if node_id in self._past_nodes:
            self._tell("OneNodePerHost", node_id, "it was gone, and has come back under the same id")
        if not event.kv.lease:
            self._tell("OneNodePerHost", node_id, "its key has no lease")
        self._nodes[node_id] = None
        node = codec.decode_node(event.kv.key, event.kv.value)
        for other in filter(None, self._nodes.values()):
            if other.host_id == node.host_id and other.id != node_id:
                self._tell("OneNodePerHost", node_id, f"host {node.host_id} has the living node {other.id} too")
        if node.host_id in self._removed:
            self._tell("RemovedStaysOut", node_id, f"host {node.host_id} was removed")
        self._nodes[node_id] = node

    # The end

    def finish(self, submitted: Iterable[str] = (), *, expect_ended: bool = False) -> list[Flaw]:
        """All flaws, with those that show only at the end. submitted: ids whose submit was acknowledged."""
        for task_id in submitted:
            life = self._lives.get(task_id)
            if (life is None or life.task is None) and task_id not in self._forgotten:
                self._tell("NothingLost", task_id, "its submit was acknowledged, and there is no record of it")
        if expect_ended:
            for task_id, task in self.tasks.items():
                if not task.status.is_terminal:
                    self._tell("EventuallyTerminal", task_id, lifecycle.story(task))
        return self.flaws

    def _tell(self, rule: str, what: str, words: str) -> None:
        self.flaws.append(Flaw(rule, self.revision, what, words))


def _index_value(task: Task) -> bytes:
    return codec.offer_value(task.spec.requirements) if task.status is Status.QUEUED else b""


def _is_requeue(after: Task) -> bool:
    last = after.attempts[-1].outcome if after.attempts else None
    return last is not None and last.reason is Reason.NODE_LOST


def _submitted(after: Task) -> Task:
    return lifecycle.submit(after.id, after.spec, now=after.submitted_at)


def _successors(before: Task, after: Task) -> Iterator[Task]:
    """What the record may become, with the times and outcomes that the one after tells."""
    last = after.attempts[-1] if after.attempts else None
    candidates: list[Callable[[], Task]] = []
    if before.status is Status.QUEUED:
        if after.status is Status.RUNNING and last is not None:
            claimed = last
            candidates.append(
                lambda: lifecycle.claim(
                    before, node_id=claimed.node_id, host_id=claimed.host_id, now=claimed.claimed_at
                )
            )
        elif after.finished_at is not None:
            ended_at = after.finished_at
            candidates.append(lambda: lifecycle.cancel(before, now=ended_at))
    elif after.status is Status.RUNNING:
        candidates.append(lambda: lifecycle.request_cancel(before))
    elif last is not None and last.outcome is not None and last.finished_at is not None:
        candidates += _ends(before, last.outcome, last.started_at, last.finished_at)
    for candidate in candidates:
        try:
            yield candidate()
        except IllegalTransition:
            continue


def _ends(before: Task, outcome: Outcome, started_at: float | None, now: float) -> list[Callable[[], Task]]:
    """The ways out of running."""
    if outcome.reason is Reason.NODE_LOST:
        return [lambda: lifecycle.requeue(before, now=now)]
    return [
        lambda: lifecycle.finish(before, outcome, started_at=started_at, now=now),
        lambda: lifecycle.give_back(before, outcome, started_at=started_at, now=now),
        lambda: lifecycle.cancel(before, outcome=outcome, started_at=started_at, now=now),
    ]


async def read_history(etcd: Etcd, *, timeout_s: float = 60.0) -> History:
    """Everything from revision 1 to the newest. Raises Compacted where the beginning is gone."""
    last = (await etcd.range(Range(b"\0", b"\0", count_only=True), timeout_s=10.0)).revision
    history = History()
    async with asyncio.timeout(timeout_s):
        async with etcd.watch([EVERYTHING], start_revision=1) as batches:
            async for batch in batches:
                apply_batch(history, batch.events, until=last)
                if batch.revision >= last or history.revision >= last:
                    break
    return history


def apply_batch(history: History, events: Sequence[Event], *, until: int | None = None) -> None:
    """Events in order, grouped by their revision; those after `until` are left out."""
    group: list[Event] = []
    for event in events:
        if until is not None and event.kv.mod_revision > until:
            break
        if group and event.kv.mod_revision != group[0].kv.mod_revision:
            history.apply(group[0].kv.mod_revision, group)
            group = []
        group.append(event)
    if group:
        history.apply(group[0].kv.mod_revision, group)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True, help="HOST:PORT of an etcd member's client port")
    parser.add_argument("--pki", type=Path, required=True, help="the pki directory of a node")
    parser.add_argument("--expect-ended", action="store_true", help="every task must have ended")
    options = parser.parse_args()
    # Ids of acknowledged submits come on stdin, one in each line.
    submitted = sys.stdin.read().split()

    async def read() -> History:
        pki: Path = options.pki
        tls = ClientTls(pki / "ca.crt", pki / "node.crt", pki / "node.key", NODE_DNS_NAME)
        async with EtcdClient([options.endpoint], tls) as etcd:
            return await read_history(etcd)

    try:
        history = asyncio.run(read())
    except Compacted as error:
        print(f"the beginning of the history is gone ({error}): start nodes with --compaction-interval 7d")
        return 2
    flaws = history.finish(submitted, expect_ended=options.expect_ended)
    print(json.dumps(judgement(history, flaws)))
    return 1 if flaws else 0


def judgement(history: History, flaws: Sequence[Flaw]) -> dict[str, object]:
    """The same as plain data."""
    statuses = [task.status for task in history.tasks.values()]
    return {
        "revision": history.revision,
        "revisions": history.revisions,
        "transitions": history.transitions,
        "tasks": {status.value: statuses.count(status) for status in Status},
        "requeues": history.requeues,
        "requeued": sum(_was_requeued(task) for task in history.tasks.values()),
        "flaws": [asdict(flaw) for flaw in flaws[:FLAWS_TOLD]],
        "flaws_in_all": len(flaws),
    }


def _was_requeued(task: Task) -> bool:
    return any(a.outcome is not None and a.outcome.reason is Reason.NODE_LOST for a in task.attempts)


if __name__ == "__main__":
    sys.exit(main())
