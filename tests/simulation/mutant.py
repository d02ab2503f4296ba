"""What a mutant is: a deliberate defect, as a change of the text of a few files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One defect: in `path`, `before` becomes `after`. `before` stands there exactly once."""

    name: str
    path: str
    before: str
    after: str
    #: Further changes, each (path, before, after): where the defect alone is covered by other lines of defence.
    beside: tuple[tuple[str, str, str], ...] = ()

    @property
    def changes(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.path, self.before, self.after), *self.beside)
