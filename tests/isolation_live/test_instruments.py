"""The instrument that stands in for an ordinary user opens the way to what he needs, and to nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import ordinary_user

pytestmark = [pytest.mark.isolation, pytest.mark.usefixtures("root")]


def test_an_ordinary_user_reaches_what_he_needs_below_a_closed_directory(tmp_path: Path) -> None:
    """One path within the other, as a project and the Python in it."""
    project, python = tmp_path / "closed" / "project", tmp_path / "closed" / "project" / "python"
    python.mkdir(parents=True)
    (project / "program").write_text("the program")
    (python / "library").write_text("the library")
    (tmp_path / "closed" / "secret").write_text("not needed")
    (tmp_path / "closed").chmod(0o700)
    wanted = [str(project / "program"), str(python / "library"), str(tmp_path / "closed" / "secret")]
    done = subprocess.run(
        [*ordinary_user.prefix(project, python), "cat", *wanted],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == "the programthe library", done.stderr
    assert "secret" in done.stderr
