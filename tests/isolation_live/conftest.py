"""A spawner of its own for each test, below a cgroup parent of its own, and a way to run one command in it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from isolation.client import Sandbox, Spawner, SpawnerConfig
from isolation.spec import Ended, Limits, SandboxSpec
from tests.support.leaks import cgroups_of
from tests.support.require import require
from tests.support.wait import wait_until

PATH = "/usr/local/bin:/usr/bin:/bin"
LIMITS = Limits(cpu=2.0, memory_bytes=256 << 20, pids=64)


@dataclass(frozen=True)
class Result:
    ended: Ended
    stdout: str
    stderr: str


class Runner:
    """Runs commands in a spawner's sandboxes with their output in memory."""

    def __init__(self, spawner: Spawner) -> None:
        self.spawner = spawner
        self._count = 0
        self._outputs: list[int] = []

    def spec(self, *argv: str, env: Mapping[str, str] | None = None, **fields: Any) -> SandboxSpec:
        self._count += 1
        fields.setdefault("limits", LIMITS)
        fields.setdefault("id", f"t{self._count}")
        return SandboxSpec(argv=argv, env={"PATH": PATH, **(env or {})}, **fields)

    async def launch(self, spec: SandboxSpec, *, stdin: bytes = b"") -> tuple[Sandbox, int, int]:
        """The sandbox, and the descriptors of its output; closed by `close`."""
        fds = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
        self._outputs += fds
        os.pwrite(fds[0], stdin, 0)
        sandbox = await self.spawner.launch(spec, stdin=fds[0], stdout=fds[1], stderr=fds[2])
        return sandbox, fds[1], fds[2]

    async def run(self, *argv: str, stdin: bytes = b"", **fields: Any) -> Result:
        sandbox, out, err = await self.launch(self.spec(*argv, **fields), stdin=stdin)
        ended = await sandbox.wait()
        return Result(ended, text(out), text(err))

    async def sh(self, script: str, **fields: Any) -> Result:
        return await self.run("sh", "-c", script, **fields)

    async def start(self, *argv: str, says: str = "", **fields: Any) -> Sandbox:
        """A sandbox that runs on; returns when its output contains `says`."""
        sandbox, out, _ = await self.launch(self.spec(*argv, **fields))
        await wait_until(lambda: says in text(out), what=f"output {says!r}")
        return sandbox

    def close(self) -> None:
        for fd in self._outputs:
            os.close(fd)


def text(fd: int) -> str:
    """What was written to an output so far."""
    return os.pread(fd, 1 << 22, 0).decode(errors="replace")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def config(tmp_path: Path) -> SpawnerConfig:
    require("isolation", is_there=os.geteuid() == 0, reason="sandboxes need root")
    return SpawnerConfig(host_id=f"test-{uuid.uuid4()}", scratch_root=tmp_path / "scratch", allow_host_network=True)


@pytest.fixture
async def runner(config: SpawnerConfig) -> AsyncIterator[Runner]:
    async for runner in running(config):
        yield runner


async def running(config: SpawnerConfig) -> AsyncIterator[Runner]:
    """A runner on a spawner of this configuration, and the check that nothing of either is left."""
    spawner = await Spawner.start(config)
    require("isolation", is_there=spawner.report.cgroup_version > 0, reason="; ".join(spawner.report.not_enforced))
    runner = Runner(spawner)
    try:
        yield runner
    finally:
        await spawner.close()
        runner.close()
    assert cgroups_of(config.host_id) == []
    assert list(config.scratch_root.iterdir()) == []


def with_limits(**fields: Any) -> Limits:
    return replace(LIMITS, **fields)
