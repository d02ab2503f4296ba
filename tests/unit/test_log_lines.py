"""The node's own log: a record is one thing to see, whatever it quotes."""

from __future__ import annotations

import logging
import sys

import pytest

from node.log_lines import LineFormatter


def _formatted(message: str, *args: object, with_error: bool = False) -> str:
    record = logging.LogRecord(
        "node.x", logging.INFO, __file__, 1, message, args, sys.exc_info() if with_error else None
    )
    record.created, record.msecs = 1_800_000_000.25, 250.0
    return LineFormatter().format(record)


def test_a_plain_line() -> None:
    assert _formatted("task %s ended", "a") == "2027-01-15T08:00:00.250Z INFO    node.x: task a ended"


@pytest.mark.parametrize("between", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_no_line_of_ours_can_be_forged(between: str) -> None:
    forged = "2027-01-15T08:00:00.250Z INFO    node.x: all is well"
    lines = _formatted("no such command: %s", f"x{between}{forged}").splitlines()
    assert not any(line.startswith("20") for line in lines[1:])
    assert forged not in lines


def test_nothing_acts_on_a_terminal() -> None:
    shown = _formatted("no such command: %s", "\x1b]0;title\x07\x9b2J\u202e")
    assert shown.endswith("no such command: ^[]0;title^G\\x9b2J\\u202e")


def test_a_traceback_is_set_in() -> None:
    try:
        _fails("\x1b[2J\nsecond line")
    except RuntimeError:
        first, *others = _formatted("broke", with_error=True).splitlines()
    assert first.endswith("broke")
    assert others[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in others)
    assert others[-2:] == ["    RuntimeError: ^[[2J", "    second line"]


def _fails(message: str) -> None:
    raise RuntimeError(message)
