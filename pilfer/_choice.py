"""Which of several nodes to talk to, and when to turn to another. Pure: no I/O, no clock.

Theory. Every node answers every call, so one that answers is kept (its connection stands, and it has read what this
client did last). One that fails is left at once for the next in the order of the addresses, also by calls that begin
later: the choice is shared by all calls of a client. A call makes *rounds*: in one round it tries each node once, and
between two nodes of a round it does not pause, since one node's trouble says nothing about another. Only after a whole
round without an answer it pauses (`pilfer/_retry.py`), and may give up.

A node that is frozen holds its connections open and says nothing, so silence must count as failure where others may
answer. How long silence is borne grows with each round: a cluster that is merely slow is not left by every call.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilfer.address import Target
from pilfer.errors import NoQuorum, PilferError, TimedOut, Unavailable

#: How long a call that takes milliseconds may go unanswered in the first round, where other nodes are named.
SILENCE_S = 3.0


class Choice:
    """The node that all calls of one client begin with. Threads may share it: a lost race costs one more try."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)
        self.current = 0

    @property
    def is_only_one(self) -> bool:
        return len(self.targets) == 1

    def left(self, index: int) -> None:
        """A call failed there: the next call begins elsewhere, if it was to begin there."""
        if self.current == index:
            self.current = (index + 1) % len(self.targets)


class Tour:
    """One call's (or one stream's) way through the nodes. Its first step is `Choice.current`."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._tried: set[int] = set()
        self._rounds = 0
        #: What each node said last, in the order of the addresses when told.
        self._said: dict[int, str] = {}
        #: What was answered, though not what was wished for; the most telling of it.
        self._refusal: Unavailable | None = None
        self.index = choice.current

    def silence_s(self, longest_s: float) -> float:
        """How long the next try may go unanswered, when an answer may take `longest_s` at most."""
        if self._choice.is_only_one:
            return longest_s
        return min(longest_s, SILENCE_S * 2.0**self._rounds)

    def answered(self) -> None:
        """Whatever it said, this node is there."""
        if self._said:
            self._choice.current = self.index
        self._tried.clear()
        self._said.clear()
        self._refusal = None
        self._rounds = 0

    def failed(self, error: PilferError, *, silence_s: float | None = None) -> bool:
        """Goes on to the next node. silence_s: it said nothing for so long. Returns whether a round is over."""
        self._said[self.index] = _words(error, self._choice.targets[self.index], silence_s)
        if isinstance(error, Unavailable) and error.is_from_node and not isinstance(self._refusal, NoQuorum):
            self._refusal = error
        self._tried.add(self.index)
        self._choice.left(self.index)
        if len(self._tried) == len(self._choice.targets):
            self._tried.clear()
            self._rounds += 1
            self.index = self._choice.current
            return True
        count = len(self._choice.targets)
        ahead = ((self._choice.current + step) % count for step in range(count))
        self.index = next(index for index in ahead if index not in self._tried)
        return False

    def verdict(self, error: Unavailable | TimedOut) -> Unavailable | TimedOut:
        """The error that the caller is told: of one node its own; of several what each said.

        A node that answered says more than silence: its answer is told where the last try had no time left for one, and
        of several it decides the class.
        """
        if self._choice.is_only_one:
            return self._refusal if self._refusal is not None and isinstance(error, TimedOut) else error
        targets = self._choice.targets
        said = "; ".join(f"{targets[index]}: {self._said[index]}" for index in sorted(self._said))
        untried = len(targets) - len(self._said)
        rest = f"; {untried} not asked yet" if untried else ""
        message = f"none of the {len(targets)} nodes named could answer: {said}{rest}"
        if self._refusal is not None:
            return type(self._refusal)(message, code=self._refusal.code, is_from_node=True)
        return type(error)(message, code=error.code)


def _words(error: PilferError, target: Target, silence_s: float | None) -> str:
    if silence_s is not None:
        return f"no answer within {silence_s:.3g} s"
    return error.message.removeprefix(f"no node answers at {target}: ")
