#!/usr/bin/env python3
"""Draws the table of transitions (node/core/lifecycle.py) into docs/architecture.md, between the two markers.

    python docs/draw_transitions.py

`tests/unit/test_lifecycle_picture.py` fails when the picture is not that of the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- transitions: drawn by docs/draw_transitions.py -->"
END = "<!-- end of transitions -->"


def picture() -> str:
    """A Mermaid state diagram: one arrow per (from, cause, to) of the table."""
    from node.core.lifecycle import TABLE
    from node.core.model import Status

    lines = ["```mermaid", "stateDiagram-v2"]
    for (before, cause), allowed in TABLE.items():
        for after in sorted(allowed, key=list(Status).index):
            lines.append(f"    {before or '[*]'} --> {after}: {cause.replace('_', ' ')}")
    lines += [f"    {status} --> [*]" for status in Status if status.is_terminal]
    return "\n".join([*lines, "```"])


def with_picture(document: str) -> str:
    """The document with the picture between its markers. Raises ValueError where they are missing."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT.name} lacks the markers for the picture")
    return f"{head}{BEGIN}\n{picture()}\n{END}{tail}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    DOCUMENT.write_text(with_picture(DOCUMENT.read_text()))
