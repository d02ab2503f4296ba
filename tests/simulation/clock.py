"""Virtual clocks and seeded chance, in place of the machine's, for the node's modules.

The modules take time from `time`, ids from `uuid` and jitter from `random`; for the length of a simulation these names
lead here. The wall clock is a host's own, and may jump.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import random
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

#: 2026-01-01: what the wall clock shows at the loop's zero.
EPOCH = 1_767_225_600.0

#: Of modules that use them.
_TIME = (
    "node.running.claimer",
    "node.running.runner",
    "node.running.own_keys",
    "node.cluster.sweeper",
    "node.cluster.session",
    "etcd.store",
)
_UUID = ("node.cluster.lease_keeper",)
_RANDOM = ("node.running.runner", "node.cluster.lease_keeper", "etcd.watch")

#: What the host's wall clock is ahead of the true time.
wall_offset: contextvars.ContextVar[list[float] | None] = contextvars.ContextVar("wall_offset", default=None)


def monotonic() -> float:
    """Seconds of virtual time."""
    return asyncio.get_running_loop().time()


def wall() -> float:
    """Unix seconds, as the host sees them."""
    offset = wall_offset.get()
    return EPOCH + monotonic() + (offset[0] if offset else 0.0)


@contextlib.contextmanager
def virtual_world(chance: random.Random) -> Iterator[None]:
    """Puts them in place."""
    clock = SimpleNamespace(time=wall, monotonic=monotonic, clock_gettime=lambda _: monotonic(), CLOCK_BOOTTIME=0)
    ids = SimpleNamespace(uuid4=lambda: uuid.UUID(int=chance.getrandbits(128), version=4), UUID=uuid.UUID)
    dice = SimpleNamespace(
        Random=lambda *_: random.Random(chance.getrandbits(64)), uniform=chance.uniform, random=chance.random
    )
    replaced: list[tuple[Any, str, Any]] = []
    for names, attribute, value in ((_TIME, "time", clock), (_UUID, "uuid", ids), (_RANDOM, "random", dice)):
        for name in names:
            module = importlib.import_module(name)
            replaced.append((module, attribute, getattr(module, attribute)))
            setattr(module, attribute, value)
    # Who makes a call is told by its certificate, of which there is none here.
    join = importlib.import_module("node.api.join")
    replaced.append((join, "caller_of", join.caller_of))
    join.caller_of = lambda context: context.caller  # type: ignore[attr-defined]  # a module's own name
    try:
        yield
    finally:
        for module, attribute, value in replaced:
            setattr(module, attribute, value)
