"""The spawner alone: sandboxes per second and idle latency, beside posix_spawn and `xargs -P2`, in one run.

    .venv/bin/python -m bench.spawner [--count 2000] [--json]

Needs root. Every line runs the same `/bin/true`. The floor does nothing but start it: what a sandbox costs is the
difference. Idle latency is one start each 100 ms, since closed loops hide what the kernel does after a pause
(attaching to a group by `cgroup.procs` takes 6 ms then).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from isolation.client import Spawner, SpawnerConfig
from isolation.spec import Limits, SandboxSpec

COMMAND = "/bin/true"
IDLE_STARTS = 50
IDLE_GAP_S = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    per_s: float | None
    p50_ms: float | None
    p99_ms: float | None


def _latencies(what: str, seconds: list[float], wall_s: float | None) -> Line:
    cuts = statistics.quantiles(seconds, n=100)
    rate = len(seconds) / wall_s if wall_s else None
    return Line(what, rate, cuts[49] * 1000, cuts[98] * 1000)


class Bench:
    """Launches through one spawner."""

    def __init__(self, spawner: Spawner, null: int) -> None:
        self._spawner = spawner
        self._null = null
        self._count = 0

    async def one(self) -> float:
        """Seconds from the request to the report of the end."""
        self._count += 1
        spec = SandboxSpec(f"bench-{self._count}", (COMMAND,), {"PATH": "/bin"}, Limits(1.0, 512 << 20, 64))
        began = time.perf_counter()
        sandbox = await self._spawner.launch(spec, stdin=self._null, stdout=self._null, stderr=self._null)
        ended = await sandbox.wait()
        if ended.exit_code != 0:
            raise RuntimeError(f"{COMMAND} did not run: {ended}")
        return time.perf_counter() - began

    async def closed_loop(self, count: int, at_once: int) -> Line:
        seconds: list[float] = []

        async def lane() -> None:
            for _ in range(count // at_once):
                seconds.append(await self.one())

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(lane())
        return _latencies(f"spawner, {at_once} at once", seconds, time.perf_counter() - began)

    async def idle(self) -> Line:
        seconds = []
        for _ in range(IDLE_STARTS):
            await asyncio.sleep(IDLE_GAP_S)
            seconds.append(await self.one())
        return _latencies("spawner, one each 100 ms", seconds, None)


def _spawn_once() -> float:
    began = time.perf_counter()
    pid = os.posix_spawn(COMMAND, [COMMAND], {"PATH": "/bin"})
    os.waitpid(pid, 0)
    return time.perf_counter() - began


def floor_closed(count: int) -> Line:
    began = time.perf_counter()
    seconds = [_spawn_once() for _ in range(count)]
    return _latencies("posix_spawn, 1 at once", seconds, time.perf_counter() - began)


def floor_idle() -> Line:
    seconds = []
    for _ in range(IDLE_STARTS):
        time.sleep(IDLE_GAP_S)
        seconds.append(_spawn_once())
    return _latencies("posix_spawn, one each 100 ms", seconds, None)


def xargs(count: int) -> Line:
    numbers = "\n".join(map(str, range(count)))
    began = time.perf_counter()
    subprocess.run(["xargs", "-P2", "-n1", COMMAND], input=numbers.encode(), check=True)
    return Line("xargs -P2 -n1", count / (time.perf_counter() - began), None, None)


async def run(count: int) -> list[Line]:
    lines = [floor_closed(count), floor_idle(), xargs(count)]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with tempfile.TemporaryDirectory() as directory:
        config = SpawnerConfig(host_id=f"bench-{uuid.uuid4()}", scratch_root=Path(directory, "scratch"))
        spawner = await Spawner.start(config)
        try:
            bench = Bench(spawner, null)
            await bench.closed_loop(100, 4)  # warm: pools are filled
            lines += [await bench.closed_loop(count, at_once) for at_once in (1, 2, 4, 16)]
            lines.append(await bench.idle())
            status = Path(f"/proc/{spawner.pid}/status").read_text()
            rss_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
            lines.append(Line(f"(spawner's memory {int(rss_kib) / 1024:.1f} MiB)", None, None, None))
        finally:
            await spawner.close()
    return lines


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="starts per line (default 2000)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the spawner needs root")
    lines = asyncio.run(run(arguments.count))
    if arguments.json:
        for line in lines:
            print(json.dumps(asdict(line)))
        return
    print(f"{'':34} {'per s':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for line in lines:
        cells = (_cell(line.per_s, ".0f"), _cell(line.p50_ms, ".2f"), _cell(line.p99_ms, ".2f"))
        print(f"{line.what:34} {cells[0]:>8} {cells[1]:>8} {cells[2]:>8}")


if __name__ == "__main__":
    main()
