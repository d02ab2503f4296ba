"""What is measured anew replaces its row in the report, and nothing else."""

from __future__ import annotations

from bench.cluster import HEAD, Line, merged, spread_of

OLD = "\n".join(["Measured on a day", "", *HEAD, "| a | 1 s | 2 s | 10 |", "| b | 0 | 0 | 10 |"])


def test_rows_are_replaced_in_their_place_and_new_ones_come_last() -> None:
    lines = [Line("c", "3", "2", 1), Line("a", "1 s", "0.5 s", 100)]
    assert merged(OLD, lines) == ["| a | 1 s | 0.5 s | 100 |", "| b | 0 | 0 | 10 |", "| c | 3 | 2 | 1 |"]
    assert merged("", lines[:1]) == ["| c | 3 | 2 | 1 |"]


def test_a_spread_names_the_worst() -> None:
    assert spread_of([3.0, 1.0, 2.0]) == "p50 2.00 s, p95 3.00 s, worst 3.00 s"
    assert spread_of([1.0] * 99 + [9.0]) == "p50 1.00 s, p95 1.00 s, worst 9.00 s"
