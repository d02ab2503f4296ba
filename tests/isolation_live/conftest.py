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
from isolation.spec import Ended, HostReport, Limits, SandboxSpec
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
        self._outputs: set[int] = set()

    def spec(self, *argv: str, env: Mapping[str, str] | None = None, **fields: Any) -> SandboxSpec:
        self._count += 1
        fields.setdefault("limits", LIMITS)
        fields.setdefault("id", f"t{self._count}")
        return SandboxSpec(argv=argv, env={"PATH": PATH, **(env or {})}, **fields)

    async def launch(self, spec: SandboxSpec, *, stdin: bytes = b"") -> tuple[Sandbox, int, int]:
        """The sandbox, and the descriptors of its output; closed by `close`."""
        source = os.memfd_create("stdin", os.MFD_CLOEXEC)
        out, err = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr"))
        self._outputs |= {out, err}
        try:
            os.pwrite(source, stdin, 0)
            sandbox = await self.spawner.launch(spec, stdin=source, stdout=out, stderr=err)
        finally:
            os.close(source)
        return sandbox, out, err

    async def run(self, *argv: str, stdin: bytes = b"", **fields: Any) -> Result:
        sandbox, out, err = await self.launch(self.spec(*argv, **fields), stdin=stdin)
        ended = await sandbox.wait()
        result = Result(ended, text(out), text(err))
        self._close(out, err)
        return result

    async def sh(self, script: str, **fields: Any) -> Result:
        return await self.run("sh", "-c", script, **fields)

    async def start(self, *argv: str, says: str = "", **fields: Any) -> Sandbox:
        """A sandbox that runs on; returns when its output contains `says`."""
        sandbox, out, _ = await self.launch(self.spec(*argv, **fields))
        await wait_until(lambda: says in text(out), what=f"output {says!r}")
        return sandbox

    def _close(self, *fds: int) -> None:
        for fd in fds:
            os.close(fd)
        self._outputs -= set(fds)

    def close(self) -> None:
        self._close(*self._outputs)


def text(fd: int) -> str:
    """What was written to an output so far."""
    return os.pread(fd, 1 << 22, 0).decode(errors="replace")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def config(tmp_path: Path) -> SpawnerConfig:
    return SpawnerConfig(host_id=f"test-{uuid.uuid4()}", scratch_root=tmp_path / "scratch", allow_host_network=True)


@pytest.fixture
async def runner(config: SpawnerConfig) -> AsyncIterator[Runner]:
    async for runner in running(config):
        yield runner


#: Of `report`, once found out.
_reports: list[HostReport] = []


@pytest.fixture
async def report(config: SpawnerConfig) -> HostReport:
    """What this host enforces for the user that runs the tests."""
    if not _reports:
        other = replace(config, host_id=f"{config.host_id}-report", scratch_root=config.scratch_root / "report")
        spawner = await Spawner.start(other)
        await spawner.close()
        other.scratch_root.rmdir()
        _reports.append(spawner.report)
    return _reports[0]


@pytest.fixture
def root() -> None:
    """For what an ordinary user cannot have, whatever its host allows."""
    require("isolation", is_there=os.geteuid() == 0, reason="this holds for root alone")


@pytest.fixture
def groups(report: HostReport) -> None:
    """For what control groups enforce, where there are some for the user that runs the tests."""
    require("isolation", is_there=report.cgroup_version > 0, reason="; ".join(report.not_enforced))


@pytest.fixture
def freezer(report: HostReport) -> None:
    """For what is frozen and not killed."""
    require_freezer(report)


def require_freezer(report: HostReport) -> None:
    """Skips where sandboxes are killed at the deadline because they cannot be frozen."""
    lacks = [words for words in report.not_enforced if "freezing" in words]
    require("isolation", is_there=not lacks, reason="; ".join(lacks))


async def running(config: SpawnerConfig) -> AsyncIterator[Runner]:
    """A runner on a spawner of this configuration, and the check that nothing of either is left."""
    spawner = await Spawner.start(config)
    if os.geteuid() == 0:
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
