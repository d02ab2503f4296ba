"""Sizes, durations and truth values as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.units import MAX_SIZE_BYTES, format_duration, format_size, parse_bool, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1", 1),
        ("512M", 512 * 2**20),
        ("512MB", 512 * 2**20),
        ("512MiB", 512 * 2**20),
        ("1.5G", 3 * 2**29),
        ("1k", 1024),
        (" 2 T ", 2 * 2**40),
        ("100B", 100),
        ("9007199254740993", 9007199254740993),  # beyond what a float holds exactly
        (str(MAX_SIZE_BYTES), MAX_SIZE_BYTES),
    ],
)
def test_sizes_are_binary_and_exact(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "+1", "1X", "M", "1e3", "nan", "1.M", "½", "٣", "1 2", str(2**63), "8192P"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"512M|too large"):
        parse_size(text)


@given(st.integers(0, MAX_SIZE_BYTES // 2))
def test_a_printed_size_reads_back_to_within_its_one_decimal(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.06)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1K"),
        (1536, "1.5K"),
        (2**20 - 1, "1M"),
        (512 * 2**20, "512M"),
        (10**12, "931.3G"),
    ],
)
def test_sizes_are_printed_short(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("10", 10),
        ("0.25", 0.25),
        ("10s", 10),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("7d", 604_800),
        ("1.5h", 5400),
        ("2M", 120),
    ],
)
def test_durations(text: str, duration_s: float) -> None:
    assert parse_duration(text) == pytest.approx(duration_s)


@pytest.mark.parametrize("text", ["", "-1s", "s", "10x", "1h30", "ten", "inf", "nan", "1s,", "1e400", "9" * 400])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"1h30m|too long"):
        parse_duration(text)


@given(st.floats(0, 1e9).filter(lambda seconds: seconds == 0 or seconds > 1e-4))
def test_a_printed_duration_reads_back_to_within_its_two_units(duration_s: float) -> None:
    assert parse_duration(format_duration(duration_s)) == pytest.approx(duration_s, rel=0.05)


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0, "0s"),
        (0.0012, "1.2ms"),
        (0.5, "500ms"),
        (0.99999, "1s"),
        (12.34, "12.3s"),
        (59.99, "1m"),
        (90, "1m30s"),
        (3600, "1h"),
        (3605, "1h"),
        (90_000, "1d1h"),
        (604_800, "7d"),
    ],
)
def test_durations_are_printed_short(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


def test_truth() -> None:
    assert [parse_bool(word) for word in ("1", "true", "YES", " on ")] == [True] * 4
    assert [parse_bool(word) for word in ("0", "false", "No", "off")] == [False] * 4
    with pytest.raises(ValueError, match="true or false"):
        parse_bool("maybe")
