"""Whether the other end of a connection is silent while this end is well.

Theory: a question is put at every turn, one turn's length after the last. If this process itself was stopped or its
loop was busy, the turn comes late, and the answer may be lying there unread: such a turn proves nothing and begins the
count anew. Only unanswered turns that all came in time add up to silence.

Pure: times come in, seconds of a monotonic clock.
"""

from __future__ import annotations

#: Between two questions.
TURN_S = 1.0
#: A turn that comes so much later than it should says that this end is not well.
LATE_S = 0.5
#: Turns in time without an answer, until the other end is taken for dead.
TURNS = 3


class Silence:
    """Counts the turns without an answer."""

    def __init__(self, now: float, *, turns: int = TURNS) -> None:
        self._turns = turns
        self._turn_at = now
        self._unanswered = 0

    def is_silent(self, now: float, *, is_answered: bool) -> bool:
        """To be asked at every turn. is_answered: the question of the last turn was."""
        is_late = now - self._turn_at > TURN_S + LATE_S
        self._turn_at = now
        self._unanswered = 0 if is_answered or is_late else self._unanswered + 1
        return self._unanswered >= self._turns
