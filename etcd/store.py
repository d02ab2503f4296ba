"""The tasks in etcd, as the node sees them: one call per thing that can happen to a task.

Joins the three that do the work: `node/core/lifecycle.py` says which record comes next, `etcd/transitions.py` under
which guards it is written, `etcd/batcher.py` gets it there. What is added here is the meaning of a lost transition:

* Lost to somebody else: None, or a fresh look and another try where the caller's intent still stands (a cancel; the
  end of a claim whose record was changed by a cancel request).
* Applied by an earlier try whose answer was lost: recognised from what the failed try read at the same revision.
  A claim by its own running key and an attempt that is its own, byte for byte the record that was sent otherwise.

Losing is daily life and no error. Every call raises the errors of `Batcher.apply` too; after OutcomeUnknown the caller
knows nothing, and its reconciling of own running keys finds out. Times are Unix seconds, passed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from etcd import codec, keys, transitions
from etcd.batcher import Applied, Batcher, Lost
from etcd.errors import OutcomeUnknown, RecordCorrupt, StoreError
from etcd.fresh import FreshRecords, Versioned
from etcd.identity import Identity
from etcd.listing import Page, list_page
from etcd.port import Etcd, KeyValue, Range, RangeResult, Txn
from etcd.store_values import AlreadyExists, Canceled, CancelStep, Claim, RunningTasks, Submitted
from etcd.transitions import Name
from node.core import lifecycle
from node.core.model import Outcome, Status, Task

__all__ = [
    "AlreadyExists",
    "CancelStep",
    "Canceled",
    "Claim",
    "RunningTasks",
    "Submitted",
    "TaskStore",
    "Versioned",
]

log = logging.getLogger(__name__)

#: Records read in one RPC: bounded, since each may be a MiB.
_READ_CHUNK = 50


class _Deadline:
    """What is left of a call's time, over its several steps."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + timeout_s

    def left_to_read_s(self) -> float:
        """The same for a read, which says by itself that its time is up."""
        return max(0.0, self._at - self._loop.time())

    def left_s(self) -> float:
        """Raises OutcomeUnknown when nothing is left: something of the call may have been written."""
        left = self._at - self._loop.time()
        if left <= 0:
            raise OutcomeUnknown("the task kept changing until the time was up")
        return left


class TaskStore:
    """All that the node does with tasks in etcd."""

    def __init__(self, batcher: Batcher, etcd: Etcd) -> None:
        self._batcher = batcher
        self._etcd = etcd
        #: Tasks of which a claim is under way.
        self._claiming: set[str] = set()
        #: Records of tasks submitted through here.
        self.fresh = FreshRecords()

    # -- submit -------------------------------------------------------------------------------------------------

    async def submit(self, task: Task, *, timeout_s: float) -> Submitted:
        """Stores a new task. Raises AlreadyExists when its id is taken by another spec."""
        (result,) = await self.submit_many([task], timeout_s=timeout_s)
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_many(
        self, tasks: Sequence[Task], *, timeout_s: float
    ) -> list[Submitted | AlreadyExists | StoreError]:
        """Stores many; the answers in their order, errors among them. `timeout_s` is for all of them together."""
        with self.fresh.noting(tasks) as note:
            answers = await self._batcher.apply_many(map(transitions.submit, tasks), timeout_s=timeout_s)
            for task, answer in zip(tasks, answers, strict=True):
                if isinstance(answer, Applied):
                    note(Versioned(task, answer.revision))
        results: list[Submitted | AlreadyExists | StoreError] = []
        for task, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Applied):
                results.append(Submitted(task, created=True))
            elif isinstance(answer, StoreError):
                results.append(answer)
            else:
                try:
                    results.append(_submitted(task, transitions.submit(task), answer))
                except (AlreadyExists, StoreError) as error:
                    results.append(error)
        return results

    # -- read ---------------------------------------------------------------------------------------------------

    async def read(self, ids: Sequence[str], *, timeout_s: float = 3.0) -> list[Versioned | None]:
        """The records, in the order of the ids; None where there is none. Raises RecordCorrupt."""
        found: list[Versioned | None] = []
        for one in await self.read_each(ids, timeout_s=timeout_s):
            if isinstance(one, RecordCorrupt):
                raise one
            found.append(one)
        return found

    async def read_each(self, ids: Sequence[str], *, timeout_s: float = 3.0) -> list[Versioned | RecordCorrupt | None]:
        """The same, with the error in the place of a record that cannot be read, so that it harms no other."""
        deadline = _Deadline(timeout_s)
        found: list[Versioned | RecordCorrupt | None] = []
        for start in range(0, len(ids), _READ_CHUNK):
            ranges = [Range(keys.task(task_id)) for task_id in ids[start : start + _READ_CHUNK]]
            for result in await self._batcher.read(ranges, timeout_s=deadline.left_to_read_s()):
                try:
                    found.append(_versioned(result))
                except RecordCorrupt as error:
                    found.append(error)
        return found

    async def find(self, prefix: str, limit: int = 2, *, timeout_s: float = 3.0) -> list[str]:
        """Ids of tasks that begin with this text, the first `limit` of them: enough to tell unique from ambiguous."""
        found = keys.find_tasks(prefix)
        if found is None:
            return []
        result = await self._etcd.range(
            Range(found.key, found.range_end, limit=limit, keys_only=True), timeout_s=timeout_s
        )
        return [keys.parse_task(kv.key) for kv in result.kvs]

    async def list_page(
        self,
        *,
        status: Status | None = None,
        page_size: int = 1000,
        page_token: str = "",
        newest_first: bool = False,
        wanted: Callable[[Task], bool] | None = None,
        now: float | None = None,
        timeout_s: float = 10.0,
    ) -> Page:
        """A page of all tasks, or of those of one status, or of those wanted: see `etcd/listing.py`. now: by default
        the wall clock's."""
        deadline = _Deadline(timeout_s)

        async def read(ranges: Sequence[Range]) -> tuple[RangeResult, ...]:
            return await self._batcher.read(ranges, timeout_s=deadline.left_to_read_s())

        return await list_page(
            self._etcd,
            read,
            status=status,
            page_size=page_size,
            page_token=page_token,
            newest_first=newest_first,
            now=time.time() if now is None else now,
            timeout_s=timeout_s,
            wanted=wanted,
        )

    # -- claim --------------------------------------------------------------------------------------------------

    async def claim(self, seen: Versioned, identity: Identity, *, now: float, timeout_s: float) -> Claim | None:
        """Takes a queued task for this incarnation; None when another was faster, or it is gone. To be repeated after
        OutcomeUnknown with the same `now`, by which the claim is known again."""
        (claim,) = await self.claim_many([seen], identity, now=now, timeout_s=timeout_s)
        if isinstance(claim, StoreError):
            raise claim
        return claim

    async def claim_many(
        self, seen: Sequence[Versioned], identity: Identity, *, now: float, timeout_s: float, is_patient: bool = False
    ) -> list[Claim | StoreError | None]:
        """As `claim`, for several at once, errors of etcd among the answers. is_patient: nothing here is idle for want
        of them, so that under load they may leave together with others."""
        deadline = _Deadline(timeout_s)
        # Two of the same would both know the running key of one of them as their own.
        mine = [one for one in {one.task.id: one for one in seen}.values() if one.task.id not in self._claiming]
        after = [_claimed(one, identity, now) for one in mine]
        ids = {task.id for task in after}
        self._claiming |= ids
        claims: dict[str, Claim | StoreError | None] = {}
        try:
            answers = await self._batcher.apply_many(
                (transitions.claim(b.task, a, b.mod_revision, identity) for b, a in zip(mine, after, strict=True)),
                timeout_s=timeout_s,
                is_patient=is_patient,
            )
            for task, answer in zip(after, answers, strict=True):
                try:
                    claims[task.id] = await self._won(task, answer, identity, deadline)
                except StoreError as error:
                    claims[task.id] = error
        finally:
            self._claiming -= ids
        return [claims.pop(one.task.id, None) for one in seen]

    async def _won(
        self, after: Task, answer: Applied | Lost | StoreError, identity: Identity, deadline: _Deadline
    ) -> Claim | StoreError | None:
        if isinstance(answer, Applied):
            return Claim(after, answer.revision, answer.revision, _epoch(answer.reads[0]), identity)
        if isinstance(answer, StoreError):
            return answer
        if not answer.reads[0].kvs:
            return None
        # The own running key is there. It is this claim's if the attempt is the one that was sent; another claim of
        # this incarnation, which is run already, has another number or moment.
        claim = await self.adopt(after.id, identity, timeout_s=deadline.left_s())
        if claim is None:
            return None
        mine, there = after.attempts[-1], claim.task.attempts[-1]
        return claim if (mine.number, mine.claimed_at) == (there.number, there.claimed_at) else None

    async def adopt(self, task_id: str, identity: Identity, *, timeout_s: float) -> Claim | None:
        """The claim that this incarnation holds on a task according to etcd: for a running key of its own that it
        does not know. None when there is none."""
        wanted = (keys.task(task_id), keys.running_key(identity.node_id, task_id), keys.cluster_epoch())
        record, running, epoch = await self._batcher.read([Range(key) for key in wanted], timeout_s=timeout_s)
        seen = _versioned(record)
        if seen is None or not running.kvs:
            return None
        codec.check_index(seen.task, running.kvs[0].key)
        return Claim(seen.task, seen.mod_revision, running.kvs[0].create_revision, _epoch(epoch), identity)

    # -- the end of a claim ---------------------------------------------------------------------------------------

    async def finish(
        self,
        claim: Claim,
        outcome: Outcome,
        *,
        started_at: float | None,
        now: float,
        timeout_s: float,
        is_patient: bool = False,
    ) -> Task | None:
        """Writes complete, or failed where it could not be run; also when a cancel was requested meanwhile.
        None: it is no longer mine. is_patient: as in `claim_many`."""
        return await self._end_claim(
            Name.FINISH,
            claim,
            lambda task: lifecycle.finish(task, outcome, started_at=started_at, now=now),
            timeout_s,
            is_patient,
        )

    async def give_back(
        self,
        claim: Claim,
        outcome: Outcome,
        *,
        started_at: float | None,
        now: float,
        timeout_s: float,
        is_patient: bool = False,
    ) -> Task | None:
        """Queues it again, or ends it where it must not run again. Its processes must be gone.
        None: it is no longer mine."""
        return await self._end_claim(
            Name.GIVE_BACK,
            claim,
            lambda task: lifecycle.give_back(task, outcome, started_at=started_at, now=now),
            timeout_s,
            is_patient,
        )

    async def confirm_cancel(
        self,
        claim: Claim,
        outcome: Outcome,
        *,
        started_at: float | None,
        now: float,
        timeout_s: float,
        is_patient: bool = False,
    ) -> Task | None:
        """Writes canceled. Its processes must be gone. None: it is no longer mine."""
        return await self._end_claim(
            Name.CONFIRM_CANCEL,
            claim,
            lambda task: lifecycle.cancel(task, now=now, outcome=outcome, started_at=started_at),
            timeout_s,
            is_patient,
        )

    async def _end_claim(
        self, name: Name, claim: Claim, step: Callable[[Task], Task], timeout_s: float, is_patient: bool
    ) -> Task | None:
        deadline = _Deadline(timeout_s)
        seen = Versioned(claim.task, claim.mod_revision)
        while True:
            after = step(seen.task)
            transition = transitions.as_owner(
                name,
                seen.task,
                after,
                mod_revision=seen.mod_revision,
                identity=claim.identity,
                fence_revision=claim.fence_revision,
            )
            answer = await self._batcher.apply(transition, timeout_s=deadline.left_s(), is_patient=is_patient)
            if isinstance(answer, Applied) or _is_mine(answer, transition):
                return after
            record, running = answer.reads
            if not running.kvs or running.kvs[0].create_revision != claim.fence_revision:
                return None
            found = _versioned(record)
            if found is None or found.mod_revision == seen.mod_revision:
                # Nothing changed but the node key: this incarnation is gone.
                return None
            codec.check_index(found.task, running.kvs[0].key)
            seen = found

    # -- cancel -------------------------------------------------------------------------------------------------

    async def cancel(self, task_id: str, *, now: float, timeout_s: float) -> Canceled:
        """Cancels a queued task at once; asks the node of a running one to end it, or requeues it, which writes
        canceled, where that node is gone. Raced by others it looks again and goes on from there."""
        deadline = _Deadline(timeout_s)
        (seen,) = await self.read([task_id], timeout_s=timeout_s)
        while seen is not None:
            task = seen.task
            if task.status is Status.QUEUED:
                after = lifecycle.cancel(task, now=now)
                transition = transitions.cancel_queued(task, after, seen.mod_revision)
                answer = await self._batcher.apply(transition, timeout_s=deadline.left_s())
                if isinstance(answer, Applied) or _is_mine(answer, transition):
                    return Canceled(CancelStep.CANCELED, after)
                seen = _changed(seen, answer)
            elif task.status is not Status.RUNNING:
                return Canceled(CancelStep.ALREADY_ENDED, task)
            elif task.cancel_requested:
                return await self._requested(task, now, deadline)
            else:
                after = lifecycle.request_cancel(task)
                transition = transitions.request_cancel(task, after, seen.mod_revision)
                answer = await self._batcher.apply(transition, timeout_s=deadline.left_s())
                if isinstance(answer, Applied) or _is_mine(answer, transition):
                    return await self._requested(after, now, deadline)
                seen = _changed(seen, answer)
        return Canceled(CancelStep.NOT_FOUND, None)

    async def _requested(self, task: Task, now: float, deadline: _Deadline) -> Canceled:
        """The request is in the record; if nobody is there to carry it out, requeueing does."""
        owner = task.owner or ""
        (node,) = await self._batcher.read([Range(keys.node(owner), keys_only=True)], timeout_s=deadline.left_s())
        if not node.kvs:
            ended = await self.requeue(task.id, owner, now=now, timeout_s=deadline.left_s())
            if ended is not None:
                return Canceled(CancelStep.CANCELED, ended)
        return Canceled(CancelStep.REQUESTED, task)

    # -- orphans ------------------------------------------------------------------------------------------------

    async def requeue(self, task_id: str, node_id: str, *, now: float, timeout_s: float) -> Task | None:
        """Takes a task from a node that is gone: queued, canceled or failed, as its record says. None when that node
        lives, or does not own it (any more)."""
        deadline = _Deadline(timeout_s)
        (seen,) = await self.read([task_id], timeout_s=timeout_s)
        while seen is not None and seen.task.owner == node_id:
            after = lifecycle.requeue(seen.task, now=now)
            transition = transitions.requeue(seen.task, after, seen.mod_revision)
            answer = await self._batcher.apply(transition, timeout_s=deadline.left_s())
            if isinstance(answer, Applied) or _is_mine(answer, transition):
                return after
            if answer.reads[1].kvs:
                return None
            seen = _changed(seen, answer)
        return None

    async def running_of(self, node_id: str, *, timeout_s: float = 3.0) -> tuple[list[tuple[str, KeyValue]], int]:
        """The running keys of a node, and the revision at which they were so: (task id, key), whose create_revision
        is the claim's."""
        of_node = keys.running_of(node_id)
        result = await self._etcd.range(Range(of_node.key, of_node.range_end), timeout_s=timeout_s)
        found = [(index.task_id, kv) for kv in result.kvs if (index := keys.find_index_key(kv.key)) is not None]
        return found, result.revision

    async def running_at_one_revision(self, *, timeout_s: float = 3.0) -> RunningTasks:
        """Living nodes and running tasks, all as they were at one revision: what a sweep for orphans needs."""
        nodes, running = keys.all_nodes(), keys.running()
        result = await self._etcd.txn(
            Txn(
                success=(
                    Range(nodes.key, nodes.range_end, keys_only=True),
                    Range(running.key, running.range_end, keys_only=True),
                )
            ),
            timeout_s=timeout_s,
        )
        living, tasks = (r.kvs if isinstance(r, RangeResult) else () for r in result.results)
        parsed = [index for kv in tasks if (index := keys.find_index_key(kv.key)) is not None]
        return RunningTasks(
            nodes=tuple(node_id for kv in living if (node_id := keys.find_node(kv.key)) is not None),
            tasks=tuple((key.node_id, key.task_id) for key in parsed if key.node_id is not None),
            revision=result.revision,
        )

    async def orphans(self, *, timeout_s: float = 3.0) -> list[tuple[str, str]]:
        """(node id, task id) of every running task whose node key is gone."""
        seen = await self.running_at_one_revision(timeout_s=timeout_s)
        return [(node_id, task_id) for node_id, task_id in seen.tasks if node_id not in seen.nodes]


def _claimed(seen: Versioned, identity: Identity, now: float) -> Task:
    return lifecycle.claim(seen.task, node_id=identity.node_id, host_id=identity.host_id, now=now)


def _epoch(result: RangeResult) -> int:
    """0 in an etcd that nobody founded a cluster in, where there is nothing to recover either; and where somebody wrote
    over it: the claim is there, and a task that runs with too small a token is refused by who compares tokens."""
    if not result.kvs:
        return 0
    (kv,) = result.kvs
    if not kv.value.isdigit():
        log.error("%s is no number: %r. Fence tokens are too small until it is mended", kv.key.decode(), kv.value)
        return 0
    return int(kv.value)


def _versioned(result: RangeResult) -> Versioned | None:
    """The record that a point read found."""
    if not result.kvs:
        return None
    kv = result.kvs[0]
    return Versioned(codec.decode_task(kv.key, kv.value), kv.mod_revision)


def _is_mine(lost: Lost, transition: transitions.Transition) -> bool:
    """Whether an earlier try was applied, of this call or of one that was repeated with the same values: the record
    is byte for byte the one that was sent."""
    record = lost.reads[0]
    return bool(record.kvs) and record.kvs[0].value == transition.record


def _changed(seen: Versioned, lost: Lost) -> Versioned | None:
    """The record that made a transition lose; None when it is gone. Where the record is as it was, its index key is
    not: somebody else wrote there, and trying again would not end."""
    found = _versioned(lost.reads[0])
    if found is not None and found.mod_revision == seen.mod_revision:
        raise RecordCorrupt(f"task {seen.task.id} is {seen.task.status}, but its index key is not there")
    return found


def _submitted(task: Task, transition: transitions.Transition, answer: Applied | Lost) -> Submitted:
    if isinstance(answer, Applied) or _is_mine(answer, transition):
        return Submitted(task, created=True)
    found = _versioned(answer.reads[0])
    if found is None:
        raise RecordCorrupt(f"task {task.id} is there and is not")
    if found.task.spec != task.spec:
        raise AlreadyExists(task.id)
    return Submitted(found.task, created=False)
