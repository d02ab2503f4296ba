"""What a failed run leaves behind (being built; the signatures stand)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.chaos.checks import Checks
from tests.chaos.load import Load
from tests.support.lab import Lab


def keep(  # noqa: PLR0917  (each is another thing)
    directory: Path, lab: Lab, load: Load, checks: Checks, story: Sequence[str], flaws: Sequence[str]
) -> None:
    """Everything that is needed to understand the run, in this directory, which is made. While the lab is there."""
