"""Who may import whom (conventions: policy, ports and adapters, shell; imports only inward)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import source
from tests.support.source import PACKAGES, ROOT, Import, belongs_to, imports, is_generated, module_name, python_files

#: What the core may use of the standard library: values, arithmetic, text. No clock, no chance, no input or output.
PURE = {
    "__future__", "bisect", "collections", "collections.abc", "dataclasses", "enum", "functools", "hashlib", "heapq",
    "itertools", "math", "operator", "re", "sys", "types", "typing", "uuid",
}  # fmt: skip
#: Pure modules have impure corners.
IMPURE_NAMES = (
    "uuid1",
    "uuid4",
    "getnode",
    "sys.std",
    "sys.argv",
    "sys.path",
    "sys.modules",
    "open(",
    "print(",
    "input(",
)

#: package -> what it may import of ours, and of others besides the standard library.
ALLOWED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "isolation": (("isolation",), ("prctl",)),
    "node.core": (("node.core",), ()),
    "etcd": (("etcd", "pilfer.v1", "node.core"), ("grpc", "google")),
    "pilfer": (("pilfer",), ("grpc", "google", "grpc_status")),
}

#: The composition root; and that of an operator's commands, for which no node runs.
ASSEMBLY = {"node.app", "node.assembly", "node.engines", "node.recovery.lone_etcd", "node.recovery.unpack"}
#: Adapters that reach outside are made there alone; all else is handed what it needs. Where another module may name
#: one as well, the reason stands beside it.
WIRED_IN_ASSEMBLY: dict[str, set[str]] = {
    "etcd.client": set(),
    "etcd.server": set(),
    "etcd.binary": set(),
    "isolation.client": {
        "node.running.supervised_spawner",  # an adapter itself: starts the spawner again when it dies
        "node.running.runner",  # the type of what it launches
        "node.running.run",  # the type of the sandbox that it holds
    },
}


def violations_of(package: str) -> Iterator[Import]:
    ours, others = ALLOWED[package]
    for path in python_files(package.replace(".", "/")):
        for found in imports(path):
            if belongs_to(found.module, *PACKAGES, "tests", "bench", "examples"):
                allowed = belongs_to(found.module, *ours)
            else:
                top = found.module.partition(".")[0]
                allowed = top in sys.stdlib_module_names or top in others
            if not allowed:
                yield found


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_it_may(package: str) -> None:
    assert [str(found) for found in violations_of(package)] == []


def test_nobody_ships_tests_benchmarks_or_examples() -> None:
    found = [
        str(item)
        for path in python_files(*PACKAGES)
        for item in imports(path)
        if belongs_to(item.module, "tests", "bench", "examples")
    ]
    assert found == []


def test_core_is_pure() -> None:
    for path in python_files("node/core"):
        for found in imports(path):
            assert found.module in PURE or belongs_to(found.module, "node.core"), str(found)
        text = path.read_text()
        for name in IMPURE_NAMES:
            assert name not in text, f"{path.name} uses {name}"


def test_adapters_are_wired_in_the_assembly_alone() -> None:
    found = [
        str(item)
        for path in python_files("node")
        for item in imports(path)
        if item.module in WIRED_IN_ASSEMBLY
        and not item.for_types_only
        and module_name(path) not in ASSEMBLY | WIRED_IN_ASSEMBLY[item.module]
    ]
    assert found == []


def test_adapters_that_are_named_here_exist() -> None:
    for module, users in WIRED_IN_ASSEMBLY.items():
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").exists(), module
        for user in users:
            path = ROOT.joinpath(*user.split(".")).with_suffix(".py")
            assert module in {item.module for item in imports(path)}, f"{user} needs no exception any more"


def test_reader_sees_imports_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: imports in functions, relative ones and submodules are seen."""
    path = tmp_path / "sample.py"
    path.write_text(
        "def f():\n    import node.app\n    from node import core\n    from . import port\n    from .keys import x\n"
    )
    monkeypatch.setattr(source, "module_name", lambda path: "etcd.sample")
    assert [item.module for item in imports(path)] == ["node.app", "node.core", "etcd.port", "etcd.keys"]


def test_generated_files_are_known_as_such() -> None:
    assert any(is_generated(path) for path in python_files("etcd", "pilfer"))
