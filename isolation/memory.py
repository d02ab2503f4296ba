"""Keeps the interpreter's memory out of the children.

A child between clone and exec runs C on a mapping of its own (`_sandbox.c`); copying the page tables of the
interpreter's heap for it would cost more than everything else that it does, and so would the page faults afterwards.
So the large private mappings are marked MADV_DONTFORK (madvise(2)), except those that hold what the child needs:
stack, thread-local storage, the C library's and the extension's own data.
"""

from __future__ import annotations

import os

from isolation import _sandbox as sys_

#: Smaller mappings cost little and may hold anything.
LARGE_BYTES = 128 * 1024


def keep_heap_out_of_forks(proc_fd: int) -> int:
    """Marks the large private writable mappings; gives how many bytes. Called once, before the first sandbox."""
    fd = os.open("self/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    needed = sys_.needed_addresses()
    total = 0
    for line in lines:
        fields = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        name = fields[5] if len(fields) > 5 else ""
        is_private_data = fields[1].startswith("rw") and fields[1].endswith("p")
        if not is_private_data or end - start < LARGE_BYTES or name == "[stack]" or ".so" in name:
            continue
        if any(start <= address < end for address in needed):
            continue
        sys_.syscall(sys_.SYS_madvise, start, end - start, sys_.MADV_DONTFORK)
        total += end - start
    return total
