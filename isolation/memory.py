"""Keeps the interpreter's memory out of the children.

A child between clone and exec runs C on a mapping of its own (`_sandbox.c`); copying the page tables of the
interpreter's heap and libraries for it would cost more than everything else that it does, and so would the page faults
afterwards. So every private mapping is marked MADV_DONTFORK (madvise(2)), except what the child needs: the stack, the
thread-local storage, and the files that hold the extension and the C library's vfork.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from isolation import _sandbox as sys_


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/self/maps (proc(5))."""

    start: int
    end: int
    is_private: bool
    #: A path, a name in brackets, or "".
    name: str


def parse_maps(text: str) -> list[Mapping]:
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        found.append(Mapping(start, end, fields[1].endswith("p"), fields[5] if len(fields) > 5 else ""))
    return found


def not_for_children(mappings: list[Mapping], needed: tuple[int, ...]) -> list[Mapping]:
    """Those that a child can do without: they hold no needed address, nor does the file that they are a part of."""
    holding = [m for m in mappings if any(m.start <= address < m.end for address in needed)]
    files = {m.name for m in holding if m.name}
    return [
        m
        for m in mappings
        # [stack], [vdso] and their like belong to every process; shared ones are shared on purpose.
        if m.is_private and (m.name == "[heap]" or not m.name.startswith("[")) and m not in holding
        if m.name not in files
    ]


def keep_out_of_forks(proc_fd: int) -> None:
    """Marks them; called once, when everything is imported and before the first sandbox."""
    fd = os.open("self/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        mappings = parse_maps(file.read())
    for mapping in not_for_children(mappings, tuple(sys_.needed_addresses())):
        sys_.syscall(sys_.SYS_madvise, mapping.start, mapping.end - mapping.start, sys_.MADV_DONTFORK)
