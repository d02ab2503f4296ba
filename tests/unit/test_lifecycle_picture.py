"""The picture in docs/architecture.md is that of the table."""

from __future__ import annotations

import runpy

import pytest

from node.core.lifecycle import TABLE
from tests.support.source import ROOT

DRAW = runpy.run_path(str(ROOT / "docs" / "draw_transitions.py"))


def test_picture_is_up_to_date() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()
    assert document == DRAW["with_picture"](document), "run: python docs/draw_transitions.py"


def test_picture_has_an_arrow_for_each_way() -> None:
    arrows = [line for line in DRAW["picture"]().splitlines() if " --> " in line and ": " in line]
    assert len(arrows) == sum(len(allowed) for allowed in TABLE.values())
    assert "    [*] --> queued: submit" in arrows
    assert "    running --> failed: requeue" in arrows


def test_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        DRAW["with_picture"]("# Architecture")
