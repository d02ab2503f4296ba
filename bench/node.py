"""One whole node, seen by its client, beside `xargs -P2` on the same machine in the same run.

Every task is an isolated `/bin/true`; a run is the time from the submit to the moment at which the client knows that
the last task has ended. The node is started as its user starts it, in a directory of its own.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pilfer import Client, TaskSpec

COMMAND = "/bin/true"
RUNS = 3
LATENCY_SAMPLES = 200
LATENCY_GAP_S = 0.05


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report."""

    what: str
    value: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class BenchNode:
    client: Client
    process: psutil.Process

    def memory_mib(self) -> dict[str, float]:
        """Resident memory of the node and of each of its children."""
        found = {"node": self.process.memory_info().rss / 2**20}
        for child in self.process.children():
            name = "etcd" if child.name().startswith("etcd") else "spawner"
            found[name] = found.get(name, 0.0) + child.memory_info().rss / 2**20
        return found


@contextlib.contextmanager
def running_node() -> Iterator[BenchNode]:
    """A node of its own, stopped afterwards."""
    with tempfile.TemporaryDirectory(prefix="pilfer-bench-") as directory:
        data = Path(directory) / "node"
        with (Path(directory) / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "node", "start", "--data-dir", str(data), "--log-level", "warning"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit(f"the node did not start:\n{(Path(directory) / 'log').read_text()}")
            try:
                with Client(f"unix:{data}/node.sock", timeout_s=600) as client:
                    yield BenchNode(client, psutil.Process(process.pid))
            finally:
                process.terminate()
                process.wait(60)
                process.stdout.close()


def run_tasks(client: Client, count: int) -> float:
    """Seconds from the submit of `count` tasks, in one call, to their end."""
    start = time.perf_counter()
    ids = client.submit_many([TaskSpec(command=COMMAND)] * count, batch=count)
    for task in client.wait(ids, timeout_s=600):
        if task.exit_code != 0:
            raise SystemExit(f"a task failed: {task}")
    return time.perf_counter() - start


def run_xargs(count: int) -> float:
    start = time.perf_counter()
    subprocess.run(f"seq {count} | xargs -P2 -n1 {COMMAND}", shell=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def throughput(client: Client, count: int) -> Figure:
    """Medians of runs that take turns with xargs."""
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(count / run_tasks(client, count))
        theirs.append(count / run_xargs(count))
    return Figure(f"{count:,} submitted in one call, tasks/s", spread(ours), spread(theirs))


def one_by_one(client: Client, count: int) -> Figure:
    """Each submitted when the one before has ended."""
    start = time.perf_counter()
    for _ in range(count):
        client.wait(client.submit(COMMAND))
    ours = count / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(count):
        subprocess.run([COMMAND], check=True)
    return Figure(f"{count} one by one, tasks/s", f"{ours:.0f}", f"{count / (time.perf_counter() - start):.0f}")


def latency(client: Client) -> Figure:
    """From submit to the known end, with a pause between tasks, so that everything has gone idle."""
    ours, theirs = [], []
    for _ in range(LATENCY_SAMPLES):
        time.sleep(LATENCY_GAP_S)
        start = time.perf_counter()
        client.wait(client.submit(COMMAND))
        ours.append((time.perf_counter() - start) * 1000)
        time.sleep(LATENCY_GAP_S)
        start = time.perf_counter()
        subprocess.run([COMMAND], check=True)
        theirs.append((time.perf_counter() - start) * 1000)
    return Figure("idle latency, submit to end, p50 / p99 ms", percentiles(ours), percentiles(theirs))


def memory(node: BenchNode) -> str:
    return ", ".join(f"{name} {mib:.0f}" for name, mib in sorted(node.memory_mib().items()))


def measure(*, many: int) -> Iterator[Figure]:
    """Every figure, one by one. `many`: how many tasks run before memory is looked at again."""
    with running_node() as node:
        node.client.wait(node.client.submit(COMMAND))
        yield Figure("memory idle, MiB", memory(node))
        yield latency(node.client)
        yield one_by_one(node.client, 200)
        yield throughput(node.client, 1_000)
        yield throughput(node.client, 10_000)
        if many:
            start = time.perf_counter()
            done = 0
            while done < many:
                some = min(10_000, many - done)
                run_tasks(node.client, some)
                done += some
            rate = many / (time.perf_counter() - start)
            yield Figure(f"{many:,} in calls of 10,000, tasks/s", f"{rate:.0f}")
            yield Figure(f"memory after {many:,} tasks, MiB", memory(node))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def percentiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} / {ordered[int(len(ordered) * 0.99) - 1]:.1f}"
