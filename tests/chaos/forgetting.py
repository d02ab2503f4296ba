"""When a task that ended may be gone: the retention that the nodes of a chaos run are started with, and what it allows.

A node forgets an ended task that is older than RETENTION_AGE_S, or that has RETENTION_COUNT newer ended ones, and none
within KEEP_S of its end (`node/core/retention.py`). A client does not see the moment of an end, but it knows one before
it: then the task was not there yet, or was seen to run. What can have ended since is what was tried in all, less what
had ended by then. As long as neither number is reached, a task that is not found is a task that was lost.
"""

from __future__ import annotations

from dataclasses import dataclass

#: No task is forgotten earlier than so long after its end.
KEEP_S = 60.0
#: An hour of this load stays bounded: of 5 to 10 tasks a second some minutes are kept.
RETENTION_AGE_S = 900.0
RETENTION_COUNT = 3000
FLAGS = ("--retention-age", f"{RETENTION_AGE_S:g}s", "--retention-count", f"{RETENTION_COUNT}")


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment at which a task had not ended."""

    #: time.monotonic().
    at: float
    #: Tasks of the whole run that were known to have ended by then.
    ended: int


def may_be_forgotten(mark: Mark, *, now: float, tried: int) -> bool:
    """Whether retention may have forgotten a task since, if it ended right after its mark. tried: tasks that were ever
    sent, each once."""
    return now - mark.at >= RETENTION_AGE_S or tried - mark.ended > RETENTION_COUNT
