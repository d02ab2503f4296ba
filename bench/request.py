"""The sandbox that every line of the spawner's bench asks for: `/bin/true` below the usual limits."""

from __future__ import annotations

from isolation.spec import Limits, SandboxSpec

COMMAND = "/bin/true"


def sandbox_spec(sandbox_id: str) -> SandboxSpec:
    return SandboxSpec(sandbox_id, (COMMAND,), {"PATH": "/bin"}, Limits(1.0, 512 << 20, 64))
