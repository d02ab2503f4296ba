"""Two drivers of the real spawner for `bench/spawner.py`, each a process of its own beside it.

`lean` is a C program (`sandbox_floor.c`, drive) that sends requests and reads reports: what the spawner itself can do.
`client` is the node's own end (`isolation/client.py`) on asyncio: what a node gets. Both answer a line `COUNT LANES
GAP_US` on stdin with `WALL_NS CPU_NS LATENCY_NS...`; CPU is that of driver, spawner, and all sandboxes.

    python -m bench.drivers client SCRATCH_ROOT
    python -m bench.drivers lean SCRATCH_ROOT PROGRAM
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from pathlib import Path

from bench.request import sandbox_spec
from isolation import process, protocol
from isolation.client import Spawner
from isolation.config import SpawnerConfig
from isolation.spec import HostReport

_ID = "the-id"
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def cpu_ns(pid: int) -> int:
    """Of a process and of all that it waited for (proc_pid_stat(5); in steps of a tick)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * _TICK_NS


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def drive_lean(program: Path, scratch_root: Path) -> None:
    """Becomes the C program, with a spawner of its own."""
    started = process.start()
    protocol.send(started.control, protocol.Configure(_config(scratch_root)))
    report = protocol.decode(started.requests.recv(protocol.INLINE_BYTES))
    if not isinstance(report, HostReport):
        raise SystemExit(f"the spawner did not start: {report}")
    head, _, tail = protocol.encode(protocol.Launch(sandbox_spec(_ID))).decode().partition(_ID)
    for end in (started.requests, started.control):
        os.set_inheritable(end.fileno(), True)  # noqa: FBT003  (the function takes nothing else)
    words = [str(started.requests.fileno()), str(report.pid), head, tail]
    os.execv(program, ["sandbox_floor", "drive", *words])


class ThroughClient:
    """Keeps so many sandboxes going through the node's own client."""

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


def drive_client(scratch_root: Path) -> None:
    driver = ThroughClient(scratch_root)
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
    if sys.argv[1] == "client":
        drive_client(Path(sys.argv[2]))
    else:
        drive_lean(Path(sys.argv[3]), Path(sys.argv[2]))
