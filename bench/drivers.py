"""Two drivers of the real spawner for `bench/spawner.py`, each a process of its own beside it.

`lean` sends requests and reads reports on a blocking socket: what the spawner itself can do. `client` is the node's own
end (`isolation/client.py`) on asyncio: what a node gets. Both answer a line `COUNT LANES GAP_US` on stdin with
`WALL_NS CPU_NS LATENCY_NS...`, as `sandbox_floor.c` does. CPU is that of driver, spawner, and all sandboxes.

    python -m bench.drivers lean|client SCRATCH_ROOT
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from bench.request import sandbox_spec
from isolation import process, protocol
from isolation.client import Spawner
from isolation.config import SpawnerConfig
from isolation.spec import Ended, HostReport, Started

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_ns(pid: int) -> int:
    """Of a process and of all that it waited for (proc_pid_stat(5); in steps of a tick)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * _TICK_NS


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


class Lean:
    """Keeps so many sandboxes going, and does little else."""

    def __init__(self, scratch_root: Path) -> None:
        self._process, self._requests, self._control = process.start()
        protocol.send(self._control, protocol.Configure(_config(scratch_root)))
        report = self._receive()
        if not isinstance(report, HostReport):
            raise SystemExit(f"the spawner did not start: {report}")
        self.pid = report.pid
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._stdio = (null, null, null)

    def _receive(self) -> protocol.Message:
        return protocol.decode(self._requests.recv(protocol.INLINE_BYTES))

    def run(self, count: int, lanes: int, gap_s: float) -> list[int]:
        """Nanoseconds from each request to the report of its end."""
        began: dict[str, int] = {}
        took: list[int] = []
        asked = 0
        while len(took) < count:
            while asked < count and len(began) < lanes:
                if gap_s:
                    time.sleep(gap_s)
                sandbox_id = f"bench-{asked}"
                asked += 1
                began[sandbox_id] = time.monotonic_ns()
                protocol.send(self._requests, protocol.Launch(sandbox_spec(sandbox_id)), self._stdio)
            report = self._receive()
            if isinstance(report, Ended) and report.exit_code == 0:
                took.append(time.monotonic_ns() - began.pop(report.id))
            elif not isinstance(report, Started):
                raise SystemExit(f"a sandbox failed: {report}")
        return took

    def close(self) -> None:
        self._requests.close()
        self._control.close()
        self._process.wait(20)


class ThroughClient:
    """The same through the node's own client."""

    def __init__(self, scratch_root: Path) -> None:
        self._runner = asyncio.Runner()
        self._spawner = self._runner.run(Spawner.start(_config(scratch_root)))
        self.pid = self._spawner.pid
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def run(self, count: int, lanes: int, gap_s: float) -> list[int]:
        return self._runner.run(self._run(count, lanes, gap_s))

    async def _run(self, count: int, lanes: int, gap_s: float) -> list[int]:
        took: list[int] = []
        numbers = iter(range(count))

        async def lane() -> None:
            for number in numbers:
                if gap_s:
                    await asyncio.sleep(gap_s)
                began = time.monotonic_ns()
                spec = sandbox_spec(f"bench-{number}")
                sandbox = await self._spawner.launch(spec, stdin=self._null, stdout=self._null, stderr=self._null)
                ended = await sandbox.wait()
                if ended.exit_code != 0:
                    raise SystemExit(f"a sandbox failed: {ended}")
                took.append(time.monotonic_ns() - began)

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())
        return took

    def close(self) -> None:
        self._runner.run(self._spawner.close())
        self._runner.close()


def _config(scratch_root: Path) -> SpawnerConfig:
    return SpawnerConfig(host_id=f"bench-{uuid.uuid4()}", scratch_root=scratch_root)


def main(kind: str, scratch_root: Path) -> None:
    makers: dict[str, Callable[[Path], Lean | ThroughClient]] = {"lean": Lean, "client": ThroughClient}
    driver = makers[kind](scratch_root)
    try:
        for line in sys.stdin:
            count, lanes, gap_us = map(int, line.split())
            began, cpu = time.monotonic_ns(), cpu_ns(driver.pid) + time.process_time_ns()
            took = driver.run(count, lanes, gap_us / 1e6)
            used = cpu_ns(driver.pid) + time.process_time_ns() - cpu
            print(time.monotonic_ns() - began, used, *took, flush=True)
        print(f"{memory_mib(driver.pid):.1f}", flush=True)
    finally:
        driver.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
