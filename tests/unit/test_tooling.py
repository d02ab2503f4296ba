"""The Makefile and its scripts: what they promise is what they do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"])


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=100)


def test_help_lists_every_target_with_a_sentence() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    # Below another make it would also say where it is.
    listed = run("make", "--no-print-directory", "help").stdout.splitlines()
    helped = {line.split()[1]: line.split(None, 2)[2] for line in listed}
    # What others are made of has no line of its own.
    assert phony - {"setup-tests"} == set(helped)
    assert {"setup", "protos", "check", "fix", "test", "test-fast", "bench", "demo"} <= set(helped)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    assert run("bash", "-n", script).returncode == 0


@pytest.mark.parametrize("directory", ["unit", "model", "simulation"])
def test_what_only_computes_has_no_live_tests(directory: str) -> None:
    """They would run nowhere: scripts/test.sh looks for them in the other directories alone."""
    assert f"--ignore tests/{directory}" in (ROOT / "scripts" / "test.sh").read_text()
    live = re.compile(r"pytest\.mark\.(etcd|isolation|node|cluster|witness)\b")
    assert [path.name for path in (ROOT / "tests" / directory).rglob("*.py") if live.search(path.read_text())] == []


@pytest.mark.parametrize(
    ("version", "is_good"),
    [
        ("3.4.22", False),
        ("3.4.23", True),
        ("3.4.45", True),
        ("3.5.0", False),
        ("3.5.1", False),
        ("3.5.2", False),
        ("3.5.3", True),
        ("3.5.23", True),
        ("3.10.0", True),
        ("3.3.27", False),
        ("2.3.8", False),
        ("", False),
    ],
)
def test_which_etcd_is_good_enough(tmp_path: Path, version: str, is_good: bool) -> None:
    etcd = tmp_path / "etcd"
    etcd.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\necho 'Git SHA: 1'\n")
    etcd.chmod(0o755)
    function = re.search(
        r"^is_good_etcd\(\) \{.*?^\}", (ROOT / "scripts/setup.sh").read_text(), re.MULTILINE | re.DOTALL
    )
    assert function
    found = run(
        "bash", "-euo", "pipefail", "-c", f'{function[0]}\nif is_good_etcd "$0"; then exit 0; else exit 7; fi', etcd
    )
    assert found.returncode == (0 if is_good else 7), found.stderr


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """Protos, stubs and the script, beside the real environment."""
    if not (ROOT / ".venv/bin/protoc-gen-mypy_grpc").exists():
        pytest.skip("no .venv with the generators: make setup")
    for name in ("protos", "pilfer", "etcd", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    return tmp_path


def test_stubs_come_from_the_protos(copied_tree: Path) -> None:
    checked = run("scripts/protos.sh", "--check", cwd=copied_tree)
    assert checked.returncode == 0, checked.stderr


def test_drift_of_a_stub_is_noticed_and_mended(copied_tree: Path) -> None:
    proto = copied_tree / "protos/pilfer/v1/tasks.proto"
    proto.write_text(proto.read_text() + "\nmessage OfATest { string value = 1; }\n")
    leftover = copied_tree / "pilfer/v1/gone_pb2.py"
    leftover.write_text("# its proto was removed\n")
    checked = run("scripts/protos.sh", "--check", cwd=copied_tree)
    assert checked.returncode == 1
    assert "pilfer/v1/tasks_pb2.py" in checked.stderr
    assert "pilfer/v1/gone_pb2.py" in checked.stderr
    leftover.unlink()
    assert run("scripts/protos.sh", cwd=copied_tree).returncode == 0
    assert run("scripts/protos.sh", "--check", cwd=copied_tree).returncode == 0
