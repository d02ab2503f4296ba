"""What the witness, the ledger and the listing must agree on. Pure: each function is given observations, and gives
flaws by the names of the invariants.

* OneRunAtATime, RunsAscend: of the beats alone (`tests/support/beats.py`).
* CapacityNeverExceeded: what the tasks of a node reserve of its CPUs never adds up to more than it lends. Only tasks
  that beat are added up, about two thirds of all: what others hold beside them is not seen.
* RunsBounded: a task that may not be run again, or twice at most, never begins more often.
* CompleteHasRun: a task that is complete was heard to end by itself, in the attempt that its record calls complete.
* GoneWithItsNode: after kill -9 of a node nothing of its tasks beats on.
* CancelIsObeyed: what was canceled in the queue never beats again; what was asked to end does not go on for long.
* SubmittedIsEnded: every id that was acknowledged is listed once, with an end; nothing is listed that nobody submitted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from pilfer import CancelStep, Task
from tests.chaos.ledger import Cancel
from tests.support.beats import Runs, excesses, overlaps, setbacks

#: A node that does not hear of a cancel hears of it at its next comparison (5 s), or is cut off from etcd and freezes
#: at the deadline of its lease (5 s); then 5 s of grace and 2 s. The rest is for a machine of 2 cores under 5 nodes.
CANCEL_BOUND_S = 30.0
#: The design says 1 s (its spawner hears of it at once, and kills); the rest is for a machine of 2 cores under 5 nodes.
GONE_S = 5.0
#: Told in full up to here, of each kind.
TOLD_MAX = 20

#: Moments, at which no etcd ran, when an operator went back to older data.
Epochs = Sequence[float]


def flaws_of_runs(runs: Runs, epochs: Epochs, cpu: float, cpu_of: Mapping[str, float]) -> list[str]:
    """cpu: what each node lends; cpu_of: what each task reserves."""
    found = [f"OneRunAtATime: {words}" for words in overlaps(runs)]
    found += [f"RunsAscend: {words}" for words in setbacks(runs, epochs)]
    most = dict.fromkeys(runs.node_ids, cpu)
    found += [f"CapacityNeverExceeded: {words}" for words in excesses(runs, most, cpu_of)]
    return found


def flaws_of_bounds(runs: Runs, epochs: Epochs, runs_max_of: Mapping[str, int]) -> list[str]:
    """Who went back to older data may begin a task anew: runs are counted from there."""
    found: list[str] = []
    for task_id, most in runs_max_of.items():
        heard = runs.of(task_id)
        groups = Counter(sum(run.first_sent >= epoch for epoch in epochs) for run in heard)
        if any(count > most for count in groups.values()):
            found.append(f"RunsBounded: task {task_id} may begin {most} times: {[str(run) for run in heard]}")
    return found


def flaws_of_ends(runs: Runs, complete: Iterable[tuple[str, int]]) -> list[str]:
    """complete: beating tasks that are complete, each with the number of the attempt that was."""
    return [
        f"CompleteHasRun: task {task_id} is complete, attempt {attempt}: {[str(run) for run in runs.of(task_id)]}"
        for task_id, attempt in complete
        if not any(run.has_ended and run.attempt == attempt for run in runs.of(task_id))
    ]


def lingering(runs: Runs, deaths: Mapping[str, float]) -> dict[str, float]:
    """How long tasks beat on after the death of their node, in seconds, of those that did. deaths: when (by the
    witness's clock) which node id was killed."""
    found: dict[str, float] = {}
    for task_id in runs.by_task:
        for run in runs.of(task_id):
            if (late_s := run.last_sent - deaths.get(run.node_id, math.inf)) > 0:
                found[task_id] = max(late_s, found.get(task_id, 0.0))
    return found


def flaws_of_deaths(runs: Runs, deaths: Mapping[str, float]) -> list[str]:
    return [
        f"GoneWithItsNode: task {task_id} beat for {late_s:.1f} s after kill -9 of its node: "
        f"{[str(run) for run in runs.of(task_id)]}"
        for task_id, late_s in lingering(runs, deaths).items()
        if late_s > GONE_S
    ]


def flaws_of_cancels(runs: Runs, cancels: Mapping[str, Cancel]) -> list[str]:
    """Across the recoveries of an operator too: the load asks for nothing between the data that he goes back to and
    their return."""
    found: list[str] = []
    for task_id, cancel in cancels.items():
        bound_s = 0.0 if cancel.step is CancelStep.CANCELED else CANCEL_BOUND_S
        for run in runs.of(task_id):
            if run.last_sent > cancel.at + bound_s:
                late_s = run.last_sent - cancel.at
                found.append(f"CancelIsObeyed: task {task_id}, {cancel.step}, {late_s:.1f} s later still: {run}")
    return found


def flaws_of_listing(
    listed: Iterable[Task], wanted: Collection[str], tried: Collection[str], *, strangers: Collection[str] = ()
) -> list[str]:
    """listed: all tasks that the cluster knows. wanted: acknowledged, and too new to be forgotten. tried: everything
    that the load has ever sent. strangers: what others have sent."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    for task in listed:
        counts[task.id] += 1
        if not task.status.is_terminal:
            found.append(f"SubmittedIsEnded: task {task.id} is {task.status}, attempt {task.attempt}")
        if task.id not in tried and task.id not in strangers:
            found.append(f"SubmittedIsEnded: task {task.id} ({task.spec.command}) is there, and nobody submitted it")
    found += [f"SubmittedIsEnded: task {task_id} is listed {n} times" for task_id, n in counts.items() if n > 1]
    missing = [task_id for task_id in wanted if task_id not in counts]
    found += [f"NothingLost: task {task_id} was acknowledged, and is not listed" for task_id in missing]
    return found


def told(flaws: Sequence[str]) -> list[str]:
    """The first ones of each kind, and how many there are besides."""
    kinds: dict[str, list[str]] = {}
    for flaw in flaws:
        kinds.setdefault(flaw.partition(":")[0], []).append(flaw)
    found: list[str] = []
    for kind, words in kinds.items():
        found += words[:TOLD_MAX]
        if len(words) > TOLD_MAX:
            found.append(f"{kind}: and {len(words) - TOLD_MAX} more")
    return found
