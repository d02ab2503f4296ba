"""UUIDv7 ids made by the client, so that a submit can be repeated without making a second task.

RFC 9562, section 5.7, with method 3 of section 6.2: the 12 bits after the millisecond hold the fraction of it, and
an id never sorts before one made earlier in this process. Tasks of one caller are thereby listed in its order.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def new_task_id() -> str:
    """A UUIDv7 that sorts after all that this process made before."""
    global _last  # noqa: PLW0603  (one clock per process is the point)
    now_ns = time.time_ns()
    ms, rest_ns = divmod(now_ns, 1_000_000)
    ticks = (ms << 12) | (rest_ns * 4096 // 1_000_000)
    with _lock:
        ticks = _last = max(ticks, _last + 1)
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))
