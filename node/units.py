"""Sizes, durations and truth values as people write them: parsed and printed, for the settings and the command line.

Sizes are binary throughout: K, KB and KiB all mean 1024 bytes, so that `512M` is the same amount everywhere in
Pilfer, as in cgroup files and with docker. What `format_size` and `format_duration` print can be parsed again.

Pure; imports nothing of ours and nothing slow, since the command line loads it at every start.
"""

from __future__ import annotations

import math
import re
from typing import Final

_SIZE_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(I?B)?", re.IGNORECASE | re.ASCII)

#: Largest first: printed in this order.
_DURATION_UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|us|[smhd])\s*", re.IGNORECASE | re.ASCII)
_PLAIN_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})

#: The kernel counts bytes in signed 64 bits, and so do the records.
MAX_SIZE_BYTES: Final = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes of `512M`, `1.5G`, `1GiB` or a plain number of bytes.

    Raises ValueError, with an example of what is meant, for anything else: negative, empty, beyond 2^63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or one with K, M, G or T, such as 512M")
    number, unit, _ = match.groups()
    # Whole numbers are kept exact: a float has only 53 bits.
    scale = _SIZE_UNITS[unit.upper()]
    size = round(float(number) * scale) if "." in number else int(number) * scale
    if size > MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is too large: at most {MAX_SIZE_BYTES} bytes")
    return size


def format_size(size_bytes: int) -> str:
    """`512M`, `1.5G`, `100`: at most one decimal, except that 1023.96K is `1M`."""
    if size_bytes < 0:
        raise ValueError(f"a size cannot be negative: {size_bytes}")
    scaled = float(size_bytes)
    units = list(_SIZE_UNITS)
    for unit in units:
        # The comparison is with the rounded value, so that nothing is printed as 1024K.
        if round(scaled, 1) < 1024 or unit == units[-1]:
            return f"{round(scaled, 1):g}{unit}" if round(scaled, 1) < 1e5 else f"{scaled:.0f}{unit}"
        scaled /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def parse_duration(text: str) -> float:
    """Seconds of `10s`, `500ms`, `1h30m`, `7d` or a plain number of seconds.

    Raises ValueError, with an example of what is meant, for anything else: negative, empty, without a number.
    """
    stripped = text.strip()
    if _PLAIN_NUMBER.fullmatch(stripped):
        total_s = float(stripped)
    else:
        total_s, position = 0.0, 0
        while match := _DURATION_PART.match(stripped, position):
            total_s += float(match[1]) * _DURATION_UNITS[match[2].lower()]
            position = match.end()
        if not stripped or position != len(stripped):
            raise ValueError(f"{text!r} is not a duration: write seconds, or such as 10s, 500ms, 5m, 1h30m or 7d")
    if not math.isfinite(total_s):
        raise ValueError(f"{text!r} is too long")
    return total_s


def format_duration(duration_s: float) -> str:
    """`0s`, `1.2ms`, `12.3s`, `1m30s`, `7d`: the two largest units, rounded to what a person wants to know."""
    if not math.isfinite(duration_s) or duration_s < 0:
        raise ValueError(f"a duration is a number of seconds from 0 on: {duration_s}")
    if duration_s == 0:
        return "0s"
    for unit in ("us", "ms", "s"):
        scaled = duration_s / _DURATION_UNITS[unit]
        rounded = round(scaled, 1) if scaled < 100 else round(scaled)
        if rounded < (60 if unit == "s" else 1000):
            return f"{rounded:g}{unit}"
    return _format_long(round(duration_s))


def _format_long(total_s: int) -> str:
    """A minute and more, in whole seconds."""
    parts: list[str] = []
    rest = total_s
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_DURATION_UNITS[unit]))
        if count:
            parts.append(f"{count}{unit}")
        # Two units in a row: 1d5s would pretend to a precision that 1d0h does not need.
        if parts and (len(parts) == 2 or not count):
            break
    return "".join(parts)


def parse_bool(text: str) -> bool:
    """True of 1, true, yes, on; False of 0, false, no, off; in any case. Raises ValueError for anything else."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false: write true or false")
