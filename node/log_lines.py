"""The node's own log: lines for people and for programs that read them.

What a message quotes may be a stranger's: a task's command, the name of another machine's host, an error of either.
None of it may act on the terminal that the log is shown on, nor look like a line of ours: a record begins at the first
column, and whatever goes on below it is set in.
"""

from __future__ import annotations

import logging
import sys
import time

from node.cli.visible import visible

_INDENT = "    "


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO    node.running.runner: what happened`, in UTC."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", f"\n{_INDENT}")


def start_logging(level: str) -> None:
    """On stderr, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in ("grpc", "asyncio"):  # their debug lines are about themselves, a dozen for each call
        logging.getLogger(name).setLevel(logging.WARNING)
