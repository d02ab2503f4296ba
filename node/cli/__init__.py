"""The command line: `node ...`, and the same program as `pilfer ...`.

One file per verb; a verb's file is loaded when the verb is called, and grpc, protobuf and rich when they are needed,
so that `node --help` takes less than 0.2 s.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of both commands."""
    from node.cli.failures import run

    sys.exit(run(sys.argv[1:]))
