"""What the documents name is there: tests, files, checkers, make targets, commands with their flags, and settings.

A document that promises something names the test that would fail. A test that was renamed takes that promise away
without anybody noticing; here it is noticed. Names of tests may be shortened in a document: `..tail`, `head..` and
`..middle..`, in the file that was named last in the same row or paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from node.cli.group import root
from node.config import describe, load_settings
from tests.support.source import ROOT, python_files

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tests").rglob("README.md"))]
#: Those whose rows name tests as evidence, and how many they must at least name: an empty list proves nothing.
EVIDENCE = {"isolation.md": 60, "reliability.md": 12, "protocol.md": 40}

_SPAN = re.compile(r"`([^`\n]+)`")
_TEST_FILE = re.compile(r"(?P<file>[\w/]*\btest_[a-z0-9_]+\.py)(?:::(?P<name>\S+))?")
_TEST_NAME = re.compile(r"(?:::)?(?P<name>\.\.\w+(?:\.\.)?|test_\w+(?:\.\.)?)")
#: Only our own files have these beginnings; `etcd/ports.json`, say, lies in a data directory.
_FILE = re.compile(
    r"(?:tests|docs|node|etcd|isolation|pilfer|bench|examples|scripts|protos)/[\w./]+\.(?:py|c|md|sh|proto)"
)
_CHECKER = re.compile(r"(?:[A-Z][a-z]+){2,}")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def paragraphs(text: str) -> Iterator[str]:
    """Rows of tables, and whatever stands between blank lines."""
    for block in re.split(r"\n\s*\n", text):
        yield from block.splitlines() if block.startswith("|") else (block,)


@cache
def files_of(wanted: str) -> list[Path]:
    """All that a document may mean by it: `test_x.py`, `unit/test_x.py`, `tests/unit/test_x.py`."""
    end = "/" + wanted.removeprefix("tests/")
    return [path for path in python_files("tests") if str(path).endswith(end)]


@cache
def defined_in(path: Path) -> list[str]:
    return re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)


def is_in(files: list[Path], wanted: str) -> bool:
    """Whether one of the files has a test of that name."""
    pattern = re.escape(wanted).replace(r"\.\.", r"\w*")
    return any(re.fullmatch(pattern, test) for path in files for test in defined_in(path))


def named_tests(text: str) -> Iterator[tuple[str, bool]]:
    """Every test and file of tests that a document names, and whether it is there."""
    for paragraph in paragraphs(text):
        files: list[Path] = []
        last = ""
        for span in _SPAN.findall(paragraph):
            if found := _TEST_FILE.fullmatch(span):
                last, wanted = found["file"], found["name"]
                files = files_of(last)
                yield span, bool(files) and (wanted is None or is_in(files, wanted))
            elif last and (found := _TEST_NAME.fullmatch(span)):
                yield f"{last}: {span}", is_in(files, found["name"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_test_that_is_named_is_there(document: Path) -> None:
    named = list(named_tests(document.read_text()))
    assert [what for what, is_there in named if not is_there] == []
    assert len(named) >= EVIDENCE.get(document.name, 0)


def test_a_wrong_name_would_be_noticed() -> None:
    good = "| x | `unit/test_docs.py::test_a_wrong_name..`, `..would_be_noticed` |"
    assert [is_there for _, is_there in named_tests(good)] == [True, True]
    bad = "| x | `unit/test_docs.py::test_a_wrong`, `..would_be`, `test_no_such_file.py` |"
    assert [is_there for _, is_there in named_tests(bad)] == [False, False, False]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_file_that_is_named_is_there(document: Path) -> None:
    named = {span for span in _SPAN.findall(document.read_text()) if _FILE.fullmatch(span)}
    links = set(re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()))
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []
    assert [link for link in sorted(links) if not (document.parent / link).exists()] == []


def test_every_checker_that_is_named_is_there() -> None:
    source = "".join(path.read_text() for path in python_files("tests"))
    named = {span for span in _SPAN.findall((ROOT / "docs/reliability.md").read_text()) if _CHECKER.fullmatch(span)}
    assert {checker for checker in named if checker not in source} == set()
    assert "NothingLost" in named


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_make_target_is_there(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ *)make ([a-z0-9-]+)", document.read_text(), re.MULTILINE)) - targets == set()


def commands(text: str) -> Iterator[str]:
    """What a reader would type: `node ...` in spans and in blocks, without what follows `--` and comments."""
    blocks = "".join(re.findall(r"^```\w*$(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    spans = re.findall(r"`(node [^`]+)`", re.sub(r"^```\w*$.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    for typed in (*spans, *re.findall(r"^(node .+)$", blocks, re.MULTILINE)):
        yield re.split(r" -- | #|\)|>", " ".join(typed.split()))[0].strip()


def problem_of(typed: str) -> str | None:
    """What the command line would say against the verb and the flags; None: nothing."""
    words = typed.split()[1:]
    command: click.Command = root
    with click.Context(root) as context:
        while isinstance(command, click.Group) and words and re.fullmatch("[a-z]+", words[0]):
            found = command.get_command(context, words.pop(0))
            if found is None:
                return f"{typed}: no such command"
            command = found
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    wrong = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(words))) - known - {"--help", "-h"}
    return f"{typed}: {sorted(wrong)}" if wrong else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_command_that_is_shown_exists_with_its_flags(document: Path) -> None:
    assert [problem for typed in commands(document.read_text()) if (problem := problem_of(typed))] == []


def test_a_wrong_command_would_be_noticed() -> None:
    assert problem_of("node token create") is None
    assert problem_of("node drain NODE --wait") is None
    assert problem_of("node tokens") is not None
    assert problem_of("node drain NODE --waits") is not None


def test_every_setting_is_explained_with_its_default(tmp_path: Path) -> None:
    """In the table of docs/operations.md: all of them and no others, in the order of `node config`."""
    text = (ROOT / "docs/operations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", text.partition("## Settings\n")[2].partition("\n## ")[0], re.M)
    settings = load_settings({"data_dir": str(tmp_path)}, {}, system_file=tmp_path / "none")
    assert [key for key, _ in rows] == [key for key, _, _ in describe(settings)]
    defaults = dict(rows)
    for key, value, origin in describe(settings):
        if origin == "default" and value and key != "name":
            assert f"`{value}`" in defaults[key], key
