"""Reading this repository's own source: files, imports, functions. For the tests that guard the layout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The packages of the project that are installed.
PACKAGES = ("pilfer", "node", "etcd", "isolation")


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, wherever in the file it stands."""

    path: Path
    line: int
    module: str
    #: Below `if TYPE_CHECKING:`, and so never loaded.
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def is_generated(path: Path) -> bool:
    return path.stem.endswith(("_pb2", "_pb2_grpc"))


@cache
def python_files(*packages: str) -> tuple[Path, ...]:
    """The .py files below these directories of the repository, without caches and hidden directories."""
    found = (path for package in packages for path in (ROOT / package).rglob("*.py"))
    return tuple(sorted(p for p in found if not any(part.startswith((".", "__py")) for part in p.parent.parts[1:])))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    """Every import of the file, in functions too. `from a import b` counts as a.b where that is a module of ours."""
    for_types = {
        id(inner)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(path, node)
            names = [f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(path, node.lineno, name, id(node) in for_types)


def _base(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")
    keep = len(package) - node.level + (path.name == "__init__.py")
    return ".".join([*package[:keep], *([node.module] if node.module else [])])


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def belongs_to(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)
