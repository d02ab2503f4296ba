"""One cluster of three nodes for most of these tests, at rest and without tasks at the beginning of each.

After each test everything is healed, and the witness is asked: no two runs of a task may ever have overlapped, whatever
the test itself was about. At the end of the session the history is judged from its first revision to its last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.beats import excesses
from tests.support.lab import CPU, Lab, laboratory
from tests.support.leaks import Belongings

#: Among a test's reported properties: what was measured, told at the end. The bounds of the tests are generous, the
#: figures are not.
_FIGURE = "figure"

NODES = ("a", "b", "c")


class Note:
    """Notes figures for the summary at the end. They go with the test's report, which may come from another process."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, what: str, seconds: float) -> None:
        self.figure(f"{seconds:.3f} s", what)

    def figure(self, value: str, what: str) -> None:
        self._record(_FIGURE, f"{value:>9}  {what}")


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    return Note(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [
        value for report in reports if report.when == "call" for key, value in report.user_properties if key == _FIGURE
    ]
    if figures:
        terminalreporter.section("cluster: measured on a shared machine")
        for line in figures:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def cluster_of_three() -> Iterator[Lab]:
    before = Belongings.now()
    with laboratory() as lab:
        lab.grow(*NODES, voters=3)
        yield lab
        # Voters that were down may be needed to read it: it is read while all are up.
        lab.heal()
        lab.clear()
        lab.judge(expect_ended=True)
    assert Belongings.now().leaked_since(before) == []


@pytest.fixture
def lab(cluster_of_three: Lab) -> Iterator[Lab]:
    """The cluster, at rest."""
    yield cluster_of_three
    cluster_of_three.heal()
    cluster_of_three.clear()
    assert cluster_of_three.witness.flaws() == []
    # Every task here needs a whole CPU.
    runs = cluster_of_three.witness.runs
    assert excesses(runs, dict.fromkeys(runs.node_ids, CPU)) == []
