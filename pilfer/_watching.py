"""How far a watch has come: what was handed out, and from where it is begun again. Pure.

All events of lower revisions have come before one of a higher; several tasks may share one revision. So a watch goes on
from the last revision seen, not from the next one, and leaves out what it has had.
"""

from __future__ import annotations

from pilfer.v1 import tasks_pb2


class Progress:
    """How far a watch has come: what to ask for when it has to be begun again.

    Invariant: everything below `resume_from` has been handed out; of that revision itself, the tasks in `_at`.
    """

    def __init__(self, resume_from: int | None, *, ready_is_last: bool = False) -> None:
        """ready_is_last: present states come before the `ready` message, and not after it."""
        self.resume_from = resume_from
        self._ready_is_last = ready_is_last
        self._at: set[str] = set()
        self._present_left = 0
        self._stands_at = 0

    def begin(self, present: int) -> None:
        """A new stream, which sends the present state of so many tasks first."""
        self._present_left = present
        self._stands_at = 0

    def is_new(self, response: tasks_pb2.WatchResponse) -> bool:
        """Takes note of a response; False: it carries no event, or one that was handed out before."""
        if response.ready:
            # The revision from which this watch goes on, where the node tells it.
            self._stands_at = response.revision
        elif self._ready_is_last and not self._stands_at:
            return True
        elif self._present_left:
            # Present states have the revisions of their records, in no order.
            self._present_left -= 1
        else:
            return self._is_new_transition(response)
        if not self._present_left and self._stands_at and self.resume_from is None:
            self.resume_from = self._stands_at
        return not response.ready

    def _is_new_transition(self, response: tasks_pb2.WatchResponse) -> bool:
        if self.resume_from is None or response.revision > self.resume_from:
            self.resume_from = response.revision
            self._at.clear()
        if response.task.id in self._at and response.revision == self.resume_from:
            return False
        self._at.add(response.task.id)
        return True
