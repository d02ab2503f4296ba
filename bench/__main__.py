"""`make bench`: measures one node and writes the table into docs/benchmarks.md between its markers.

python -m bench [--many N] [--no-write]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

from bench.node import Figure, measure

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=int, default=100_000, help="tasks before memory is looked at again; 0: none")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    figures = []
    for figure in measure(many=options.many):
        print(f"{figure.what}: {figure.value}" + (f"   beside: {figure.beside}" if figure.beside else ""), flush=True)
        figures.append(figure)
    if not options.no_write:
        write(figures)


def write(figures: list[Figure]) -> None:
    """Puts the table in the place of the last one."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"Measured on {today}: {os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {kernel}, "
        f"Python {platform.python_version()}.",
        "",
        "| what | Pilfer | beside it, not isolated |",
        "|---|---|---|",
        *(f"| {figure.what} | {figure.value} | {figure.beside or '-'} |" for figure in figures),
    ]
    text = REPORT.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    REPORT.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
