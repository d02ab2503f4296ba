"""What a node does when etcd's list of its running keys and its own belief differ.

A pure comparison, run at start, after each listing, at each claim's answer and on a slow tick. Because it runs again
and again, a lost event, a lost answer or a listing that was overtaken costs time, never correctness: every action that
follows writes with its guard, and etcd refuses what is no longer so.

The identity of a claim is the create_revision of its running key (the fence revision). A touch, which is how a cancel
request shows, raises the key's version and leaves the create_revision alone.

| etcd shows | the node believes | action |
|---|---|---|
| key | nothing | GiveBack: a claim that nobody here knows of must not be held for ever |
| key | a claim whose outcome is unknown | Adopt: it was applied |
| key | a claim in flight, or an end in flight | none: its own answer settles it |
| key, touched since it was last looked at | held or running | CheckCancel |
| key of another claim, newer | held or running | Forget, then (next time) GiveBack or Adopt |
| no key, and the list is not older than the claim | held or running | Forget: it is not mine any more, kill it |
| no key | in flight or unknown | none: the request may still be applied |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Phase(Enum):
    """How far a node believes to be with a task."""

    #: The claim was sent; its answer is being waited for.
    CLAIMING = "claiming"
    #: The claim was given up on without an answer; it may have been applied, or be applied later.
    UNKNOWN = "unknown"
    #: Won, not started yet.
    HELD = "held"
    RUNNING = "running"
    #: The end (finish, give back, cancel) is being written.
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class RunningKey:
    """One key below /task/status/running/ITSELF/."""

    task_id: str
    #: create_revision: the claim's identity.
    fence_revision: int
    #: 1, and one more with each touch.
    version: int


@dataclass(frozen=True, slots=True)
class Belief:
    phase: Phase
    #: 0 while the claim has no answer.
    fence_revision: int = 0
    #: The key's version when its record was last looked at for a cancel request.
    version_checked: int = 1


@dataclass(frozen=True, slots=True)
class Adopt:
    """The claim was applied after all: read the record, book it, and run it or give it back."""

    task_id: str
    fence_revision: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Mine in etcd, unknown here, and so without a process: it never started."""

    task_id: str
    fence_revision: int


@dataclass(frozen=True, slots=True)
class CheckCancel:
    """The key was touched: read the record, and kill the task if its cancel is requested."""

    task_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Not mine any more: kill it, discard what it did, write nothing."""

    task_id: str
    fence_revision: int


Action: TypeAlias = Adopt | GiveBack | CheckCancel | Forget


def reconcile(keys: Iterable[RunningKey], beliefs: Mapping[str, Belief], *, revision: int) -> list[Action]:
    """What to do, in the order of task ids.

    keys: all of this node's running keys as they were at `revision`. beliefs: task id -> what this node believes now,
    which may be newer than the list.
    """
    shown = {key.task_id: key for key in keys}
    actions: list[Action] = []
    for task_id in sorted(shown.keys() | beliefs.keys()):
        if task_id in shown:
            action = _with_key(shown[task_id], beliefs.get(task_id))
        else:
            action = _without_key(task_id, beliefs[task_id], revision)
        if action is not None:
            actions.append(action)
    return actions


def _with_key(key: RunningKey, belief: Belief | None) -> Action | None:
    if belief is None:
        return GiveBack(key.task_id, key.fence_revision)
    if belief.phase is Phase.UNKNOWN:
        return Adopt(key.task_id, key.fence_revision)
    if belief.phase in (Phase.CLAIMING, Phase.ENDING):
        return None
    if belief.fence_revision < key.fence_revision:
        return Forget(key.task_id, belief.fence_revision)
    if belief.fence_revision == key.fence_revision and key.version > belief.version_checked:
        return CheckCancel(key.task_id, key.version)
    return None  # the list is older than the claim


def _without_key(task_id: str, belief: Belief, revision: int) -> Action | None:
    if belief.phase in (Phase.HELD, Phase.RUNNING) and belief.fence_revision <= revision:
        return Forget(task_id, belief.fence_revision)
    return None
