"""The shape of the source: small files and functions, said what they are for, and nothing of one machine in them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source import PACKAGES, ROOT, is_generated, parsed, python_files

FILE_LINES_MAX = 500
#: One translation unit: what runs between clone and exec stands together.
C_LINES_MAX = 700
FUNCTION_LINES_MAX = 60
#: Paths that exist on one machine only. Written in pieces, or this file would find itself.
MACHINE_PATHS = re.compile("/" + "work/|/" + "tmp/brief")
HOMES = re.compile("/" + r"root/\w|/home/" + r"[a-z]\w*/")
#: The sandbox hides homes, so its code, tests and document name them.
MAY_NAME_HOMES = ("isolation/", "tests/isolation_live/", "tests/hostile/", "docs/isolation.md")
TEXT_SUFFIXES = {".py", ".pyi", ".c", ".h", ".md", ".toml", ".sh", ".proto", ".cfg", ".yml", ".yaml", ""}

HAND_WRITTEN = [path for path in python_files(*PACKAGES, "bench", "examples") if not is_generated(path)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_are_small() -> None:
    limits = dict.fromkeys(HAND_WRITTEN, FILE_LINES_MAX)
    limits |= dict.fromkeys(ROOT.glob("isolation/*.c"), C_LINES_MAX)
    sizes = {path: len(path.read_text().splitlines()) for path in limits}
    assert {name(path): lines for path, lines in sizes.items() if lines > limits[path]} == {}


def test_functions_are_small() -> None:
    """Of the packages; a test may be a long table."""
    long = {
        f"{name(path)}:{function.lineno} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in HAND_WRITTEN
        for function in functions(path)
    }
    assert {which: lines for which, lines in long.items() if lines > FUNCTION_LINES_MAX} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [name(path) for path in HAND_WRITTEN if path.read_text().strip() and not ast.get_docstring(parsed(path))]
    assert silent == []


def test_every_directory_of_a_package_is_a_package_with_a_docstring() -> None:
    for directory in {path.parent for path in python_files(*PACKAGES)}:
        init = directory / "__init__.py"
        assert init.exists(), f"{name(directory)} has no __init__.py"
        assert ast.get_docstring(parsed(init)), f"{name(init)} has no docstring"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of the files that belong to the project")
    return [ROOT / entry for entry in listed.stdout.decode().split("\0") if entry]


def test_no_paths_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        if path.suffix not in TEXT_SUFFIXES or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            is_home = HOMES.search(line) and not name(path).startswith(MAY_NAME_HOMES)
            if MACHINE_PATHS.search(line) or is_home:
                found.append(f"{name(path)}:{number}: {line.strip()[:100]}")
    assert found == []


#: What is excepted, in the linter's words, and then why.
EXCEPTION = re.compile(r"#\s*(?:noqa|type:\s*ignore)\b(?P<codes>[:\[][\w\-, ]+\]?)?(?P<reason>.*)")


def test_every_exception_for_the_linter_has_its_reason() -> None:
    """Beside it; where one file makes the same exception again, beside the first."""
    bare = []
    for path in (*HAND_WRITTEN, *python_files("tests")):
        explained: set[str] = set()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = EXCEPTION.search(line)
            if found is None or path == Path(__file__):
                continue
            codes = set(re.findall(r"[\w-]+", found["codes"] or ""))
            if codes and found["reason"].strip(" #()"):
                explained |= codes
            elif not codes or not codes <= explained:
                bare.append(f"{name(path)}:{number}")
    assert not bare, "no reason given: " + ", ".join(bare)


@pytest.mark.parametrize(
    "module", ["pilfer", "pilfer.v1", "pilfer.v1.tasks_pb2", "node", "node.core.claim", "isolation"]
)
def test_import_loads_no_grpc(module: str) -> None:
    """grpc costs 70 ms and starts threads: only who talks loads it."""
    code = f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] in ('grpc', 'rich')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
