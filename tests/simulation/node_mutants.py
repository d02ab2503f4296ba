"""Deliberate defects of the parts of one node: counting, lease and fence, queue, drains, writes. See `mutants.py`."""

from __future__ import annotations

from tests.simulation.mutant import Mutant

_KEEPER = "node/cluster/lease_keeper.py"
_INCARNATION = "node/incarnation.py"
_RUNNER = "node/running/runner.py"
_CLAIMER = "node/running/claimer.py"
_SANDBOXES = "tests/simulation/sandboxes.py"
_RUN = "node/running/run.py"
_LIFECYCLE = "node/core/lifecycle.py"
_FENCE = "node/core/fence.py"
_DRAINS = "node/cluster/drains.py"

NODE_MUTANTS = (
    # counting
    Mutant(
        "a claim uses up no attempt",
        _LIFECYCLE,
        "attempts_used=task.attempts_used + 1,",
        "attempts_used=task.attempts_used + (task.attempt == 0),",
        rules=("RunsAreCounted",),
    ),
    Mutant(
        "what may run only once runs again",
        _LIFECYCLE,
        "return task.spec.restart_on_node_loss and task.attempts_used",
        "return task.attempts_used",
        rules=("RunsAreCounted",),
    ),
    Mutant(
        "a start without an answer is taken for none",
        _RUNNER,
        "run.started_at = asked_at",
        "pass",
        rules=("RunsAreCounted",),
    ),
    # the fence, once more
    Mutant(
        "an answer counts for the newest open ping",
        _FENCE,
        "state.open_pings.popleft()",
        "state.open_pings.pop()",
        rules=("NoTwoLiveRuns", "FencedNodeRunsNothing"),
    ),
    Mutant(
        "a node does not hear that its key was deleted",
        _KEEPER,
        "if any(event.is_delete for event in batch.events):",
        "if False:",
        rules=("FencedNodeRunsNothing",),
    ),
    Mutant(
        "there is no second connection for the pings",
        _KEEPER,
        "if fence.is_overdue(Lane.FIRST, self._clock()):",
        "if False:",
        rules=("CalmNodeKeepsItsLease",),
    ),
    Mutant(
        "a spawner starts what comes after its deadline",
        _SANDBOXES,
        "if self._is_closed or (self._deadline is not None and monotonic() >= self._deadline):",
        "if False:",
        rules=("NoTwoLiveRuns", "FencedNodeRunsNothing"),
        # Alone it does no harm: the node asks for nothing once its deadline has passed, and what is under way then is
        # ended by the second fence.
        beside=((_SANDBOXES, "if not command.is_frozen:", "if False:"),),
    ),
    Mutant(
        "tasks are given back before their sandboxes are known to be gone",
        _RUNNER,
        "await self._spawner.wait_clean()",
        "await asyncio.sleep(0)",
        rules=("NoTwoLiveRuns",),
    ),
    # the queue
    Mutant(
        "what is queued while it is watched is not seen",
        _CLAIMER,
        "self._view.add(task_id, requirements, now=now, age_s=age_s)",
        "pass",
        rules=("NoIdleWhileQueued", "EventuallyTerminal"),
    ),
    Mutant(
        "what could not be claimed is not tried again",
        _CLAIMER,
        "self._view.add(offer.task_id, offer.requirements, now=now, age_s=offer.age_s(now))",
        "pass",
        rules=("NoIdleWhileQueued", "EventuallyTerminal"),
    ),
    Mutant(
        "no later look is set",
        _CLAIMER,
        "self._set_next_look(plan.look_again_at)",
        "self._set_next_look(None)",
        rules=("NoIdleWhileQueued", "EventuallyTerminal"),
    ),
    Mutant(
        "claims under way are not known to the comparison",
        _CLAIMER,
        "self._own_keys.claiming.add(task_id)",
        "pass",
        rules=("CancelIsObeyed", "CalmNodeKeepsItsTasks"),
    ),
    # drains
    Mutant(
        "a drained node goes on claiming",
        _INCARNATION,
        "not self.is_stopping and self.drain is None and",
        "not self.is_stopping and",
        rules=("DrainedClaimsNothing",),
    ),
    Mutant(
        "a drain gives nothing back",
        _INCARNATION,
        "self.runner.give_back_all(self._may_run_again, StopWhy.DRAIN)",
        "pass",
        rules=("DrainGivesBack",),
    ),
    Mutant(
        "the end of a drain is not heard",
        _DRAINS,
        "self._take_out(event.kv.key)",
        "pass",
        rules=("NoIdleWhileQueued",),
    ),
    Mutant(
        "a stop that comes while the sandbox is made is forgotten",
        _RUN,
        "if self._stop_why is not None:\n            sandbox.stop(self.grace_s)",
        "if False:\n            sandbox.stop(self.grace_s)",
        rules=("CancelIsObeyed", "DrainGivesBack", "StopsInTime"),
    ),
    Mutant(
        "an end whose record was changed meanwhile is not written",
        "etcd/store.py",
        "if found is None or found.mod_revision == seen.mod_revision:\n                # Nothing",
        "if True:\n                # Nothing",
        rules=("CalmNodeKeepsItsTasks", "CancelIsObeyed", "EventuallyTerminal"),
    ),
    Mutant(
        "a group of writes gets its answers in another order",
        "etcd/batcher.py",
        "for item, one in zip(items, results, strict=True):",
        "for item, one in zip(items, reversed(results), strict=True):",
        rules=("CalmNodeKeepsItsTasks", "ClaimedStartsSoon", "EndsAreTrue"),
    ),
    Mutant(
        "a comparison of the own keys honours no cancel",
        "node/running/own_keys.py",
        "case CheckCancel(task_id, version):\n                await self._check_cancel(task_id, version)",
        "case CheckCancel(task_id, version):\n                pass",
        rules=("CancelIsObeyed",),
    ),
    Mutant(
        "a comparison of the own keys that gets no answer ends the node",
        "node/running/own_keys.py",
        'log.warning("own running keys could not be compared, trying again: %s", error)',
        'raise RuntimeError("a mutant") from error',
        rules=("NothingBreaks",),
    ),
    Mutant(
        "memory is not asked for",
        "node/core/requirements.py",
        "other.memory_bytes <= 0 or other.memory_bytes <= self.memory_bytes",
        "True",
        rules=("NeverAboveCapacity",),
    ),
    Mutant(
        "more is booked than there is",
        "node/core/requirements.py",
        "if not self._free.holds(needs):",
        "if False:",
        rules=("NeverAboveCapacity",),
    ),
)
