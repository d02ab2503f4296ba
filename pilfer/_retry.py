"""How long and how often a call is repeated. Pure: time comes in as a number, randomness as a `random.Random`.

A call may be repeated because nothing here is done twice by repeating it: reads change nothing, a cancel of a canceled
task changes nothing, and a submit names its tasks by ids that the client chose.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0


@dataclass(slots=True)
class Patience:
    """One call's or one stream's retries: pauses double, with jitter, and end with the patience or the deadline.

    The patience counts from the first failure after the last success, so that a stream of many hours may break often.
    """

    #: How long no answer at all is borne.
    patience_s: float
    #: Of the caller, on the same clock as `now`; None: none.
    deadline: float | None
    rng: random.Random = field(default_factory=random.Random)
    _failing_since: float | None = None
    _pause_s: float = _PAUSE_FIRST_S

    def succeeded(self) -> None:
        self._failing_since = None
        self._pause_s = _PAUSE_FIRST_S

    def failed(self, now: float) -> None:
        """A try failed after which no pause is needed: another node is asked next."""
        if self._failing_since is None:
            self._failing_since = now

    def pause_s(self, now: float) -> float | None:
        """How long to wait before the next try, or None: give up."""
        failing_since = now if self._failing_since is None else self._failing_since
        self._failing_since = failing_since
        pause_s = self._pause_s * self.rng.uniform(0.5, 1.0)
        self._pause_s = min(self._pause_s * 2, _PAUSE_MAX_S)
        if now + pause_s - failing_since > self.patience_s:
            return None
        if self.deadline is not None and now + pause_s >= self.deadline:
            return None
        return pause_s
