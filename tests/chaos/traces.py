"""What a laboratory may leave on the machine (being built; the signatures stand)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traces:
    """What of a lab there is on the machine at one moment."""

    @classmethod
    def now(cls) -> Traces:
        return cls()

    def left_since(self, before: Traces) -> list[str]:
        """In words, what is there now and was not before."""
        return []
