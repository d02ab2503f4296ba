"""Reading what an option names: a file, or - for stdin."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

STDIN = "-"


def opened(source: str) -> AbstractContextManager[IO[bytes]]:
    """The bytes of a file, or of stdin, which is left open. Raises OSError."""
    return nullcontext(sys.stdin.buffer) if source == STDIN else Path(source).open("rb")
