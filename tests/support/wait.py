"""Waiting for a condition, instead of sleeping and hoping.

How long is long depends on the machine: PATIENCE=10 in the environment says that this one is ten times as slow as the
one that the tests were written on (the guest of `make test-v2` is emulated). It lengthens what is waited for, and
nothing that a test asserts about order or amounts.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable


def patient(seconds: float) -> float:
    """A time limit as this machine needs it."""
    return seconds * float(os.environ.get("PATIENCE", "1"))


async def wait_until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]],
    timeout_s: float = 20.0,
    *,
    what: str = "",
    every_s: float = 0.02,
) -> None:
    """Returns when the condition holds; raises AssertionError naming `what` when it does not within timeout_s, which
    PATIENCE lengthens."""
    timeout_s = patient(timeout_s)
    loop = asyncio.get_running_loop()  # its clock, which may be a virtual one
    deadline = loop.time() + timeout_s
    while True:
        held = condition()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        if loop.time() > deadline:
            name = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {timeout_s} s: {name}")
        await asyncio.sleep(every_s)


def wait_until_sync(
    condition: Callable[[], bool], timeout_s: float = 20.0, *, what: str = "", every_s: float = 0.02
) -> None:
    """The same outside of a loop."""
    timeout_s = patient(timeout_s)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or 'the condition'}")
        time.sleep(every_s)
