"""Asking a cluster that is being hurt: any node that runs, a short time, and no answer is an answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from pilfer import Client, PilferError
from tests.support.lab import Lab

T = TypeVar("T")
CALL_S = 2.0


def ask(lab: Lab, rng: random.Random, call: Callable[[Client], T], *, timeout_s: float = CALL_S) -> T | None:
    """What one node that runs answers; None where it does not, or refuses."""
    up = lab.up()
    if not up:
        return None
    try:
        with rng.choice(up).client(patience_s=0.0, timeout_s=timeout_s) as client:
            return call(client)
    except (PilferError, OSError):
        return None
