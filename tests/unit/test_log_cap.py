"""What is kept of an attempt's output, and what is cut out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.log_cap import NO_HOLE, Output, Span, cuts, hidden, is_hiding, is_hoarding, shares

MIB = 1 << 20
ALIGN = 1 << 16
LIMIT = 16 * MIB

sizes = st.integers(min_value=0, max_value=100 * MIB)
limits = st.integers(min_value=16 * ALIGN, max_value=64 * MIB)


def after(outputs: list[Output], limit: int) -> list[Output]:
    made = cuts(outputs, limit, ALIGN)
    return [Output(one.size, cut or one.hole) for one, cut in zip(outputs, made, strict=True)]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((0, 0), [LIMIT, LIMIT]),
        ((LIMIT, 0), [LIMIT, LIMIT // 2]),
        ((LIMIT, 1 * MIB), [LIMIT - MIB, LIMIT // 2]),
        ((LIMIT, LIMIT), [LIMIT // 2, LIMIT // 2]),
        ((1 * MIB, LIMIT), [LIMIT // 2, LIMIT - MIB]),
    ],
)
def test_each_stream_is_sure_of_half(kept: tuple[int, int], expected: list[int]) -> None:
    assert shares(kept, LIMIT) == expected


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([Output(LIMIT), Output(0)], [None, None]),
        ([Output(LIMIT // 2), Output(LIMIT // 2)], [None, None]),
        # The beginning has half of the share, the end three eighths.
        ([Output(LIMIT + 1), Output(0)], [Span(8 * MIB, 10 * MIB + ALIGN), None]),
        ([Output(100 * MIB), Output(0)], [Span(8 * MIB, 94 * MIB), None]),
        # The other stream takes its half back: the hole grows at both ends.
        ([Output(100 * MIB, Span(8 * MIB, 94 * MIB)), Output(8 * MIB)], [Span(4 * MIB, 97 * MIB), None]),
        # Of a stream below half nothing goes, however long the other one is.
        (
            [Output(100 * MIB), Output(7 * MIB)],
            [Span(9 * MIB // 2, 100 * MIB - (9 * MIB * 7 // 8 - 9 * MIB // 2)), None],
        ),
        # What was cut before counts as gone.
        ([Output(100 * MIB, Span(8 * MIB, 94 * MIB)), Output(0)], [None, None]),
        # A task that made its own output short and long again.
        ([Output(3 * MIB, Span(8 * MIB, 94 * MIB)), Output(0)], [None, None]),
    ],
)
def test_what_is_cut_out(outputs: list[Output], expected: list[Span | None]) -> None:
    got = cuts(outputs, LIMIT, ALIGN)
    assert [(_rounded(span) if span else None) for span in got] == [
        (_rounded(span) if span else None) for span in expected
    ]


def _rounded(span: Span) -> Span:
    return Span(span.start - span.start % ALIGN, span.end + -span.end % ALIGN)


@given(st.lists(sizes, min_size=2, max_size=2), limits)
def test_the_streams_together_keep_at_most_the_limit(written: list[int], limit: int) -> None:
    left = after([Output(size) for size in written], limit)
    assert sum(one.kept for one in left) <= max(limit, 0)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=8), limits)
def test_so_it_stays_while_they_grow(growth: list[tuple[int, int]], limit: int) -> None:
    outputs = [Output(0), Output(0)]
    for more in growth:
        grown = [Output(one.size + plus, one.hole) for one, plus in zip(outputs, more, strict=True)]
        outputs = after(grown, limit)
        assert sum(one.kept for one in outputs) <= limit
        for before, now in zip(grown, outputs, strict=True):
            # Nothing goes of a stream that has no more than half, and a hole never shrinks.
            assert now.hole == before.hole or before.kept > limit // 2
            assert before.hole == NO_HOLE or (now.hole.start <= before.hole.start and now.hole.end >= before.hole.end)


@given(st.lists(sizes, min_size=2, max_size=2), limits)
def test_holes_are_of_whole_blocks_within_the_file(written: list[int], limit: int) -> None:
    for size, span in zip(written, cuts([Output(size) for size in written], limit, ALIGN), strict=True):
        if span is not None:
            assert span.start % ALIGN == span.end % ALIGN == 0
            assert 0 < span.start < span.end <= size


@given(st.lists(sizes, min_size=2, max_size=2), limits)
def test_a_stream_that_is_cut_keeps_its_beginning_and_its_end(written: list[int], limit: int) -> None:
    for size, span in zip(written, cuts([Output(size) for size in written], limit, ALIGN), strict=True):
        if span is not None:
            assert span.start >= limit // 4 - ALIGN
            assert size - span.end >= limit // 8 - 2 * ALIGN


@pytest.mark.parametrize(
    ("output", "allocated", "expected"),
    [
        (Output(100 * MIB), 100 * MIB, 0),
        (Output(100 * MIB), 10 * MIB, 0),  # sparse, or compressed
        (Output(100 * MIB, Span(8 * MIB, 98 * MIB)), 10 * MIB, 0),
        (Output(100 * MIB, Span(8 * MIB, 98 * MIB)), 17 * MIB, 7 * MIB),
        (Output(0), 64 * MIB, 64 * MIB),
    ],
)
def test_what_the_length_does_not_explain(output: Output, allocated: int, expected: int) -> None:
    assert hidden(output, allocated) == expected


@pytest.mark.parametrize(
    ("hidden_mib", "share_mib", "hides", "hoards"),
    [
        *[(0, 8, False, False), (1, 8, False, False), (2, 8, True, False), (9, 8, True, False), (10, 8, True, True)],
        *[(2, 128, False, False), (17, 128, True, False), (130, 128, True, True)],
    ],
)
def test_tables_and_what_a_file_system_reserves_by_itself_are_nothing(
    hidden_mib: int, share_mib: int, *, hides: bool, hoards: bool
) -> None:
    assert is_hiding(hidden_mib * MIB, share_mib * MIB) is hides
    assert is_hoarding(hidden_mib * MIB, share_mib * MIB) is hoards
