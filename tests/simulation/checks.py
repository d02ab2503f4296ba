"""The checkers, by the names of the invariants; asked after every step of the world.

* NoTwoLiveRuns: no two runs of one task move at the same moment (design, section 8, invariant 4).
* FencedNodeRunsNothing: when a node's key goes, none of its commands moves any more (4, 10); they may where somebody
  else has deleted it, until the news is there, or where its machine was suspended.
* NeverAboveCapacity: what moves on a host fits into what it lends (7).
* RunsAreCounted: no task is run more often than its `max_attempts`, or twice if it may not be restarted (3).
* EndsAreTrue: a task is complete when its command ended by itself, with that exit code; and where the node heard of
  such an end, and lives, the task is complete.
* everything of `tests/support/history.py`, at every revision of etcd (1, 2, 3, 6, 10).
* EventuallyTerminal: once the faults have stopped every task ends in bounded time (7).
* NothingBreaks: no node ends by an exception, or with a refusal that it has not earned, whatever runs there by the end
  of the world; nothing goes wrong where nobody waits for it.

What a calm host owes is in `promises.py`, what becomes of a cancel in `cancels.py`, and what may be forgotten in
`forgetting.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from etcd import keys
from node.core.model import Capacity, Outcome, Reason, Status, Task
from tests.simulation.loop import Machine, of_nobody, true_time
from tests.simulation.sandboxes import EXCUSED_S, Command
from tests.support.fake_store import Change
from tests.support.history import Flaw, History

#: The rule that is broken by an exception, and not by a decision.
BREAKS = "NothingBreaks"
#: Sums of CPU shares are of floats.
_ROUNDING = 1e-6


class Checks:
    """Collects flaws; `tell` is given each as it is found."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.history = History()
        self._tell = tell
        self._told = 0
        self.flaws: list[str] = []
        #: What moves, by task.
        self._moving: dict[str, list[Command]] = {}
        #: By machine: a copy of a data directory has the same host id.
        self._cpu: dict[Machine, float] = {}
        self._memory: dict[Machine, int] = {}
        self.capacity: dict[str, Capacity] = {}
        #: Nodes whose key somebody else has deleted, and until when what they run is excused.
        self._excused_nodes: dict[str, float] = {}
        self.runs = 0
        #: Every command that ever ran, by task and attempt.
        self._commands: dict[str, dict[int, Command]] = {}
        #: Which node claimed which attempt.
        self._owners: dict[tuple[str, int], str] = {}
        #: Tasks that the newest revision wrote, as they were.
        self._before: dict[str, Task | None] = {}

    # As the sandboxes' watcher

    def moves(self, command: Command) -> None:
        self.runs += 1
        self._count(command)
        moving = self._moving.setdefault(command.task_id, [])
        moving.append(command)
        self._judge_runs(command.task_id)
        capacity = self.capacity[command.host_id]
        cpu = self._cpu[command.machine] = self._cpu.get(command.machine, 0.0) + command.cpu
        if cpu > capacity.cpu + _ROUNDING:
            self.add("NeverAboveCapacity", command.host_id, f"{cpu:g} CPUs of {capacity.cpu:g}")
        memory = self._memory[command.machine] = self._memory.get(command.machine, 0) + command.memory_bytes
        if memory > capacity.memory_bytes:
            self.add("NeverAboveCapacity", command.host_id, f"{memory} bytes of {capacity.memory_bytes}")

    def _judge_runs(self, task_id: str) -> None:
        moving = self._moving[task_id]
        if len(moving) < 2:
            return
        excused_until = max(map(self._excused_until, moving))
        if excused_until > true_time():
            # It is asked again when the excuse is over.
            of_nobody(self._judge_runs, task_id, delay_s=excused_until - true_time() + _ROUNDING)
            return
        where = ", ".join(f"attempt {one.attempt} on {one.host_id}" for one in moving)
        self.add("NoTwoLiveRuns", task_id, where)

    def deleted(self, node_id: str) -> None:
        """Somebody else is about to delete its key: until it hears of that, or its deadline has come, it goes on."""
        self._excused_nodes[node_id] = true_time() + EXCUSED_S

    def _excused_until(self, command: Command) -> float:
        owner = self._owners.get((command.task_id, command.attempt), "")
        return max(command.excused_until, self._excused_nodes.get(owner, 0.0))

    def stops(self, command: Command) -> None:
        self._moving[command.task_id].remove(command)
        self._cpu[command.machine] -= command.cpu
        self._memory[command.machine] -= command.memory_bytes

    def is_moving(self, task_id: str) -> list[Command]:
        return list(self._moving.get(task_id, []))

    def _count(self, command: Command) -> None:
        ran = self._commands.setdefault(command.task_id, {})
        if command.attempt in ran:
            return  # thawed
        ran[command.attempt] = command
        task = self.history.find(command.task_id)
        if task is not None and len(ran) > (task.spec.max_attempts if task.spec.restart_on_node_loss else 1):
            self.add("RunsAreCounted", command.task_id, f"attempts {', '.join(map(str, ran))} ran")

    def command(self, task_id: str, attempt: int) -> Command | None:
        """What ran, or runs, as this attempt."""
        return self._commands.get(task_id, {}).get(attempt)

    # As etcd's listener

    def written(self) -> Iterable[tuple[str, Task | None]]:
        """The tasks that the newest revision wrote, each as it was before."""
        return self._before.items()

    def before(self, task_id: str) -> Task | None:
        """A task that the newest revision wrote, as it was before."""
        return self._before.get(task_id)

    def changed(self, change: Change) -> None:
        written = [event.kv.key for event in change.events if _is_record(event.kv.key)]
        self._before = {task_id: self.history.find(task_id) for task_id in map(keys.parse_task, written)}
        self._judge_deaths(change)
        self.history.apply(change.revision, change.events)
        for flaw in self.history.flaws[self._told :]:
            self._add(str(flaw))
        self._told = len(self.history.flaws)
        for task_id, before in self._before.items():
            after = self.history.find(task_id)
            if after is not None and after.status is Status.RUNNING:
                self._owners[task_id, after.attempt] = after.owner or ""
            if before is not None and after is not None and before.status is Status.RUNNING is not after.status:
                self._judge_end(before, after)

    def moving_on(self, node_id: str) -> list[Command]:
        """What moves of this node."""
        every = (command for moving in self._moving.values() for command in moving)
        return [one for one in every if self._owners.get((one.task_id, one.attempt)) == node_id]

    def _judge_deaths(self, change: Change) -> None:
        for event in change.events:
            if not event.is_delete or not event.kv.key.startswith(b"/node/"):
                continue
            node_id = keys.parse_node(event.kv.key)
            for command in self.moving_on(node_id):
                if self._excused_until(command) <= true_time():
                    where = f"attempt {command.attempt} moves on {command.host_id}, and the key of its node is gone"
                    self.add("FencedNodeRunsNothing", command.task_id, where)

    def _judge_end(self, before: Task, after: Task) -> None:
        """An attempt is over, as its record says."""
        command = self.command(before.id, before.attempt)
        ended_itself = command is not None and command.is_over and not command.ended_by
        outcome = after.attempts[-1].outcome
        if after.status is Status.COMPLETE:
            if not ended_itself or outcome is None or command is None or outcome.exit_code != command.code:
                how = "it never ran" if command is None else f"ended by {command.ended_by or 'itself'}, {command.code}"
                self.add("EndsAreTrue", before.id, f"complete with {outcome}; attempt {before.attempt}: {how}")
        elif ended_itself and command is not None and command.is_reported and not _is_lost(outcome):
            self.add("EndsAreTrue", before.id, f"{after.status} ({outcome}), and its command ended by itself")

    # The end

    def finish(self, submitted: Iterable[str], errors: Iterable[str]) -> None:
        for flaw in self.history.finish(submitted, expect_ended=True)[self._told :]:
            self._add(str(flaw))
        for error in errors:
            self.add(BREAKS, "a node", error)

    def add(self, rule: str, what: str, words: str) -> None:
        self._add(str(Flaw(rule, self.history.revision, what, words)))

    def _add(self, flaw: str) -> None:
        self.flaws.append(flaw)
        self._tell(f"FLAW: {flaw}")


def _is_record(key: bytes) -> bool:
    return key.startswith(b"/task/") and not key.startswith(b"/task/status/")


def _is_lost(outcome: Outcome | None) -> bool:
    """Its node was gone before it could write."""
    return outcome is not None and outcome.reason is Reason.NODE_LOST
