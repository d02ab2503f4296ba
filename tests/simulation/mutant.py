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
    #: By which checkers it may be noticed, and by nothing else that is told of its worlds; none where it does no harm.
    rules: tuple[str, ...] = ()
    #: Further changes, each (path, before, after): where the defect alone is covered by other lines of defence.
    beside: tuple[tuple[str, str, str], ...] = ()

    @property
    def is_of_the_instrument(self) -> bool:
        """The change, or the main one of them, is in what the simulation puts in place of a part of the product."""
        return self.path.startswith("tests/")

    @property
    def changes(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.path, self.before, self.after), *self.beside)
