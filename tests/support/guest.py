"""Which machine this is: the guest of `make test-v2`, and which version of control groups it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from isolation.cgroup.find import parse_mounts
from tests.support.require import require

#: Set by tests/guest on the kernel's command line, where no environment can forge it.
MARK = "pilfer.guest"


@cache
def in_guest() -> bool:
    """Whether this is the guest, which is thrown away after the tests and has no network."""
    return MARK in Path("/proc/cmdline").read_text().split()


@cache
def cgroup_version() -> int:
    """1, 2, or 0: the one whose memory controller there is."""
    mounted = parse_mounts(Path("/proc/self/mountinfo").read_text())
    if any("memory" in hierarchy.controllers for hierarchy in mounted):
        return 1
    for hierarchy in mounted:
        if hierarchy.version == 2 and "memory" in (hierarchy.mount_point / "cgroup.controllers").read_text().split():
            return 2
    return 0


def require_v2() -> None:
    """Skips where control groups are not of version 2, or fails with REQUIRE=v2."""
    require("v2", is_there=cgroup_version() == 2, reason="needs control groups of version 2 (make test-v2)")
