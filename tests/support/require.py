"""What a test needs of the machine: a skip that says what is missing, or, with REQUIRE=name,name, a failure."""

from __future__ import annotations

import os

import pytest


def is_required(name: str) -> bool:
    """Whether REQUIRE names it, so that lacking it must not pass silently."""
    return name in os.environ.get("REQUIRE", "").split(",")


def require(name: str, *, is_there: bool, reason: str) -> None:
    """Skips with the reason when it is not there, or fails where REQUIRE names it."""
    if is_there:
        return
    if is_required(name):
        pytest.fail(f"REQUIRE={name}, but: {reason}")
    pytest.skip(reason)
