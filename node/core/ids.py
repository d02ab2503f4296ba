"""Ids: what a task id looks like, and how a new one is made.

A task id is any UUID in canonical lower-case text. Those made here are UUIDv7 (RFC 9562), which sort by the time at
which they were made, so that a queue of them is first in, first out and a listing pages in a stable order. Node and
host ids are UUIDs of the same form.
"""

from __future__ import annotations

import re
from typing import Protocol

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_SHAPE = "00000000-0000-0000-0000-000000000000"


class RandomBits(Protocol):
    """Where randomness comes from: random.Random, seeded or the system's."""

    def getrandbits(self, k: int, /) -> int: ...


def is_task_id(text: str) -> bool:
    """Whether this is a UUID in canonical lower-case text, of any version."""
    return _UUID.fullmatch(text) is not None


def is_id_prefix(text: str) -> bool:
    """Whether an id can begin with this text, which is not empty; in either case."""
    return bool(text) and _UUID.fullmatch(text.lower() + _SHAPE[len(text) :]) is not None


def new_task_id(now: float, random: RandomBits) -> str:
    """A UUIDv7: milliseconds of Unix time, then 12 bits of the fraction of that millisecond (method 3 of RFC 9562,
    section 6.2), then 62 random bits. Ids of rising times sort in that order, down to a quarter of a microsecond."""
    ticks = int(now * 4_096_000)  # 1/4096 ms
    value = ticks >> 12 << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | random.getrandbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_task_ids(count: int, now: float, random: RandomBits) -> list[str]:
    """Many ids of one moment, in the order in which the queue will have them."""
    return sorted(new_task_id(now, random) for _ in range(count))


def uuid7_time(task_id: str) -> float | None:
    """When a UUIDv7 was made (Unix seconds, to the millisecond); None for any other id."""
    if not is_task_id(task_id) or task_id[14] != "7":
        return None
    return int(task_id[:8] + task_id[9:13], 16) / 1000
