"""What is shipped, and what must stay light to load. Part of `make check`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("pilfer", "node", "etcd", "isolation")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pilfer", ("grpc", "google.protobuf", "rich", "asyncio")),
        ("import pilfer.v1.tasks_pb2", ("grpc",)),
        ("import node.config, node.units", ("grpc", "google.protobuf", "rich", "asyncio", "cryptography")),
        ("import isolation.spec", ("grpc", "asyncio", "node", "etcd", "pilfer")),
    ],
)
def test_what_must_be_light_loads_nothing_heavy(statement: str, absent: tuple[str, ...]) -> None:
    program = f"{statement}\nimport sys\nprint(sorted(set({absent!r}) & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"


def test_every_package_is_shipped() -> None:
    """Packages are named one by one in pyproject.toml: one that is forgotten is missing only where it is installed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    directories = {path.parent for package in PRODUCT for path in (ROOT / package).rglob("*.py")}
    assert sorted(listed) == sorted(".".join(path.relative_to(ROOT).parts) for path in directories)


@pytest.mark.parametrize(
    "name",
    ["Makefile", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".ci/run", "protos", "docs", *PRODUCT],
)
def test_the_top_level_is_there(name: str) -> None:
    assert (ROOT / name).exists()
