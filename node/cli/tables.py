"""Tables for people: fitted into a terminal, whole in a pipe. rich is loaded when one is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click

#: Wide enough for any row: what is piped is not cut.
_PIPE_WIDTH = 100_000
#: Between two columns of a table.
_GAP = 2
#: A column that may be cut keeps so many characters.
_FLEXIBLE_MIN = 8


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    #: May be cut short where a terminal is narrow.
    is_flexible: bool = False
    #: Left out of a narrow terminal, the highest first; 0: never.
    dispensable: int = 0


def fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The indices of the columns that are shown in so many characters."""

    def needed(indices: Sequence[int]) -> int:
        shortest = (min(widths[i], _FLEXIBLE_MIN) if columns[i].is_flexible else widths[i] for i in indices)
        return sum(shortest) + _GAP * (len(indices) - 1)

    shown = list(range(len(columns)))
    while needed(shown) > width and (candidates := [i for i in shown if columns[i].dispensable]):
        shown.remove(max(candidates, key=lambda i: columns[i].dispensable))
    return shown


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: fitted into the width of a terminal, whole in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [*rows]
    is_terminal = sys.stdout.isatty()
    screen = Console()
    widths = [max(map(len, column)) for column in zip((c.name for c in columns), *cells, strict=True)]
    shown = fitting(columns, widths, screen.width) if is_terminal else range(len(columns))
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index in shown:
        fixed = None if columns[index].is_flexible else widths[index]
        drawn.add_column(columns[index].name.upper(), no_wrap=True, overflow="ellipsis", min_width=fixed)
    for row in cells:
        drawn.add_row(*(Text(row[index]) for index in shown))
    if is_terminal:
        screen.print(drawn)
        return
    plain = Console(width=_PIPE_WIDTH, color_system=None)
    with plain.capture() as captured:
        plain.print(drawn)
    for text in captured.get().splitlines():
        click.echo(text.rstrip())
