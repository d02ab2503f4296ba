"""The layout and the import rules of the project, read from its source.

Part of `make check`. Nothing is imported here but in a fresh interpreter, so that what loads by accident shows.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("pilfer", "node", "etcd", "isolation")
SUPPORT = ("tests", "bench", "examples")

#: package -> what of ours it may import. The longest fitting package is the rule; nobody may import SUPPORT.
MAY_IMPORT = {
    "isolation": ("isolation",),
    "node.core": ("node.core",),
    "etcd": ("etcd", "pilfer.v1", "node.core"),
    "pilfer": ("pilfer",),
    "node": PRODUCT,
}

#: Time, randomness, the outside world and the loop come into the core as values.
IMPURE = {
    "asyncio",
    "io",
    "os",
    "pathlib",
    "secrets",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "logging",
}

#: A file that grows beyond this has a second concept in it.
MAX_LINES = 520


def sources(*packages: str) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in found if not path.stem.endswith(("_pb2", "_pb2_grpc"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of each import, those for type checking and inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield statement.lineno, alias.name
        elif isinstance(statement, ast.ImportFrom):
            base = ".".join(package[: len(package) - statement.level + 1]) if statement.level else ""
            module = ".".join(filter(None, (base, statement.module)))
            for alias in statement.names:
                # `from node import core` imports node.core.
                yield statement.lineno, f"{module}.{alias.name}"


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(path: Path) -> list[str]:
    name = module_name(path)
    rule = max((package for package in MAY_IMPORT if is_within(name, (package,))), key=len)
    found: list[str] = []
    for line, wanted in imported(path):
        top = wanted.partition(".")[0]
        where = f"{path.relative_to(ROOT)}:{line} imports {wanted}"
        if top in (*PRODUCT, *SUPPORT) and not is_within(wanted, MAY_IMPORT[rule]):
            found.append(f"{where}; {rule} may import of ours only {', '.join(MAY_IMPORT[rule])}")
        if rule == "node.core" and top != "node" and (top not in sys.stdlib_module_names or top in IMPURE):
            found.append(f"{where}; the core is pure")
        if rule == "isolation" and top in ("grpc", "google", "asyncio") and name.startswith("isolation.spawner"):
            found.append(f"{where}; the spawner stays small")
    return found


@pytest.mark.parametrize("package", PRODUCT)
def test_imports_point_inward(package: str) -> None:
    assert [wrong for path in sources(package) for wrong in violations(path)] == []


def test_the_rules_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for place, line in {
        "node/core/a.py": "import time",
        "node/core/b.py": "from node.config import Settings",
        "node/core/c.py": "import grpc",
        "isolation/d.py": "def f() -> None:\n    from node import core",
        "etcd/e.py": "from pilfer import Client",
        "pilfer/f.py": "from etcd.keys import task_key",
        "node/g.py": "import tests.support.wait",
    }.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line + "\n")
        assert len(violations(path)) == 1, place
    for place, line in {
        "node/core/i.py": "import random\nfrom node.core.model import Task",
        "etcd/j.py": "from pilfer.v1 import records_pb2\nfrom node.core.model import Task\nfrom . import keys",
        "node/k.py": "import etcd.client\nimport isolation.client\nimport asyncio",
    }.items():
        path = tmp_path / place
        path.write_text(line + "\n")
        assert violations(path) == [], place


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


@pytest.mark.parametrize("path", sources(*PRODUCT), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_holds_one_concept(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "name",
    ["Makefile", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".ci/run", "protos", "docs", *PRODUCT],
)
def test_the_top_level_is_there(name: str) -> None:
    assert (ROOT / name).exists()
