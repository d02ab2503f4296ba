"""No attack starts outside of a sandbox, a throwaway namespace or the guest."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.harness import ATTACKS, MARKER, PYTHON, REFUSED, Hostile, marker, throwaway
from tests.support.wait import patient

pytestmark = pytest.mark.isolation

SCRIPTS = sorted(ATTACKS.glob("*.py"))
#: Parts of attacks, which import them.
GUARDS = {"guard", "attempts"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_attack_begins_with_the_guard_and_refuses_the_machine(path: Path) -> None:
    """Without a marker; and with one, since here are the test's own namespaces. Read before it is run."""
    assert _begins_with_guard(path)
    for env in ({}, {MARKER: marker()}, {MARKER: "x pid:[1] mnt:[1]"}):
        done = subprocess.run(
            [*PYTHON, str(path)], env=env, capture_output=True, text=True, check=False, timeout=patient(60)
        )
        assert done.returncode == REFUSED, (env, done)
        assert "refused to attack" in done.stderr


def _begins_with_guard(path: Path) -> bool:
    """Nothing but a docstring and imports of the standard library comes before the guard."""
    if path.stem == "guard":
        return True
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [statement.module] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
            if GUARDS.intersection(map(str, names)):
                return True
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            return False
    return False


def test_every_attack_is_of_a_kind_that_is_looked_at() -> None:
    for path in ATTACKS.iterdir():
        # Beside an attack, it would be imported in place of the standard library's.
        assert path.stem not in sys.stdlib_module_names, path
        assert path.suffix == ".py" or path.name == "__pycache__", path


def test_a_namespace_with_the_power_of_root_is_refused() -> None:
    """Root of the machine in a PID and a mount namespace of his own; and in a user namespace that has him."""
    for more in ((), ("--user", "--map-root-user")):
        command = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", *more, "--", *PYTHON]
        done = subprocess.run(
            [*command, str(ATTACKS / "guard.py")],
            env={"PATH": os.environ["PATH"], MARKER: marker()},
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(60),
        )
        assert done.returncode == REFUSED, done


async def test_the_guard_lets_through_where_attacks_may_run(hostile: Hostile) -> None:
    """So that the refusals above mean something."""
    assert (await hostile.run("guard")).exit_code == 0
    assert (await throwaway("guard")).exit_code == 0
