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


def fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> dict[int, int]:
    """The columns that are shown in so many characters: index -> width. widths: what each would need in full."""

    def shortest(index: int) -> int:
        return min(widths[index], _FLEXIBLE_MIN) if columns[index].is_flexible else widths[index]

    shown = list(range(len(columns)))
    while sum(map(shortest, shown)) + _GAP * (len(shown) - 1) > width:
        candidates = [index for index in shown if columns[index].dispensable]
        if not candidates:
            break
        shown.remove(max(candidates, key=lambda index: columns[index].dispensable))
    found = {index: shortest(index) for index in shown}
    left = width - sum(found.values()) - _GAP * (len(shown) - 1)
    # What is left goes to those that are cut, in equal shares.
    while left > 0 and (cut := [index for index in shown if found[index] < widths[index]]):
        share = max(1, left // len(cut))
        for index in cut:
            more = min(share, widths[index] - found[index], left)
            found[index] += more
            left -= more
    return found


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: fitted into the width of a terminal, whole in a pipe."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [*rows]
    is_terminal = sys.stdout.isatty()
    screen = Console()
    widths = [max(map(cell_len, column)) for column in zip((c.name for c in columns), *cells, strict=True)]
    shown = fitting(columns, widths, screen.width if is_terminal else _PIPE_WIDTH)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, width in shown.items():
        drawn.add_column(columns[index].name.upper(), no_wrap=True, overflow="ellipsis", width=width)
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
