"""When the other end is taken for dead, and when this end has only itself to blame."""

from __future__ import annotations

import pytest

from node.core.silence import LATE_S, TURN_S, TURNS, Silence

LATE = TURN_S + LATE_S + 0.1


@pytest.mark.parametrize(
    ("turns", "is_silent"),
    [
        ([(TURN_S, False)] * TURNS, True),
        ([(TURN_S, False)] * (TURNS - 1), False),
        ([(TURN_S + LATE_S, False)] * TURNS, True),
        # This process was stopped, or busy: the answers lie unread.
        ([(60.0, False)], False),
        ([(LATE, False)] * 20, False),
        ([(TURN_S, False)] * (TURNS - 1) + [(LATE, False)] + [(TURN_S, False)] * (TURNS - 1), False),
        ([(LATE, False)] + [(TURN_S, False)] * TURNS, True),
        # An answer begins the count anew.
        ([(TURN_S, False)] * (TURNS - 1) + [(TURN_S, True)] + [(TURN_S, False)] * (TURNS - 1), False),
        ([(TURN_S, True)] * 100, False),
    ],
)
def test_silence(turns: list[tuple[float, bool]], *, is_silent: bool) -> None:
    now, silence, last = 50.0, Silence(50.0), False
    for after_s, is_answered in turns:
        now += after_s
        last = silence.is_silent(now, is_answered=is_answered)
    assert last is is_silent
