"""Which of the spawner's mappings its children do without."""

from __future__ import annotations

from isolation.memory import not_for_children, parse_maps

MAPS = """\
1000-2000 r-xp 00000000 fe:00 1                      /usr/bin/python3
2000-9000 rw-p 00000000 00:00 0                      [heap]
a000-b000 rw-p 00000000 00:00 0
b000-c000 rw-p 00000000 00:00 0
c000-d000 r-xp 00000000 fe:00 2                      /lib/libc.so.6
d000-e000 rw-p 00000000 fe:00 2                      /lib/libc.so.6
e000-f000 rw-s 00000000 00:01 9                      /dev/zero (deleted)
f000-ff00 r-xp 00000000 fe:00 3                      /with space/lib.so
7000000-7100000 rw-p 00000000 00:00 0                [stack]
"""


def test_only_what_holds_a_needed_address_is_left() -> None:
    mappings = parse_maps(MAPS)
    marked = not_for_children(mappings, (0xA010, 0xC010, 0x7000010))
    assert [(m.start, m.name) for m in marked] == [
        (0x1000, "/usr/bin/python3"),
        (0x2000, "[heap]"),
        (0xB000, ""),
        (0xF000, "/with space/lib.so"),
    ]
