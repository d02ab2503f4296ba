"""What a mutant is: a deliberate defect, as a change of the text of one file or two."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One defect: in `path`, `before` becomes `after`. `before` stands there exactly once."""

    name: str
    path: str
    before: str
    after: str
    #: A second change, (path, before, after): where the defect alone is covered by another line of defence.
    beside: tuple[str, str, str] | None = None

    @property
    def changes(self) -> tuple[tuple[str, str, str], ...]:
        first = (self.path, self.before, self.after)
        return (first,) if self.beside is None else (first, self.beside)
