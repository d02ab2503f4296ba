"""One step of a plan: a system call with a name, as data."""

from __future__ import annotations

from typing import NamedTuple

#: A system call: the errno that counts as success (0: none), its number, its arguments.
Call = tuple[int | bytes | list[int | bytes | list[int | bytes]] | None, ...]


class Step(NamedTuple):
    name: str
    #: The path or value that it is about.
    subject: str
    call: Call
