"""The spawner beside what the kernel asks, other sandboxing tools, and no sandbox at all, in one run.

    .venv/bin/python -m bench.spawner [--rounds 5] [--count 200] [--only WORD] [--json] [--write]

Needs root, gcc, and cgroups of version 1 or 2; a tool that is missing is left out. Every line runs `/bin/true`, in
rounds that take turns, so that whatever else the machine does hits all of them alike; a figure is the median of the
rounds. What compares best are the ratios (each taken within a round) and the CPU time per sandbox.

* The spawner, asked by a driver in C, against a C program of the same steps (`bench/sandbox_floor.c`): what it costs
  beyond the kernel. Its figures include the request with its descriptors and both reports, which the other has not.
* Pinned to one core, with one sandbox at a time; on all cores, with as many at a time as serve it best.
* Idle latency is one start each 100 ms, since closed loops hide what the kernel does after a pause (attaching to a
  group by `cgroup.procs` takes 6 ms then).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.floor import compile_floor
from bench.request import COMMAND
from isolation import leftovers

DOCUMENT = Path(__file__).parent.parent / "docs" / "isolation.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

FLOOR, LEAN, CLIENT, BWRAP = "C program, same steps", "Pilfer's spawner", "Pilfer's spawner, node's client", "bwrap"
IDLE_GAP_US = 100_000
IDLE_STARTS = 20
#: An instance is given time to make its groups and namespaces ahead.
WARM_UP = 20

#: What, over what, at least.
TARGETS = ((LEAN, FLOOR, 0.7), (LEAN, BWRAP, 1.5))
PROGRAM_FD = 20


@dataclass(frozen=True, slots=True)
class Subject:
    what: str
    #: `{scratch}` and `{host}` stand for a directory and an id of each instance's own.
    command: Sequence[str]
    #: Sandboxes at a time that are tried on all cores; the best counts.
    lanes: tuple[int, ...]
    #: Slow ones get fewer starts per round.
    share: float = 1.0
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    per_s: float
    cpu_ms: float
    latencies_ms: list[float]


class Instance:
    """One process that runs a subject when it is told to, on some of the cores."""

    def __init__(self, subject: Subject, directory: Path, cores: Sequence[int]) -> None:
        self._subject = subject
        self._host = f"bench-{uuid.uuid4()}"
        names = {"{scratch}": str(directory / self._host), "{host}": self._host}
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *(names.get(word, word) for word in subject.command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=subject.fds,
        )

    def run(self, count: int, lanes: int, gap_us: int = 0) -> Sample:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count} {lanes} {gap_us}\n")
        self._process.stdin.flush()
        words = self._process.stdout.readline().split()
        if len(words) != count + 2:
            raise SystemExit(f"{self._subject.what} failed; its own words are above")
        wall_ns, cpu_ns, *latencies_ns = map(int, words)
        return Sample(count / wall_ns * 1e9, cpu_ns / count / 1e6, [ns / 1e6 for ns in latencies_ns])

    def close(self) -> str:
        """Its last words. Nothing is left of it."""
        words = self._process.communicate(timeout=120)[0].strip()
        leftovers.clean(self._host)
        return words


@dataclass(slots=True)
class Figures:
    """Of one subject, one entry per round (and per start, of the latencies)."""

    one_core_per_s: list[float] = field(default_factory=list)
    one_core_cpu_ms: list[float] = field(default_factory=list)
    alone_per_s: list[float] = field(default_factory=list)
    best_per_s: list[float] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)
    memory_mib: float | None = None


def subjects(directory: Path, program: Path, program_fd: int) -> list[Subject]:
    """All that this machine has."""
    command = [str(program), "command"]
    python = [sys.executable, "-m"]
    floor = [*python, "bench.floor", str(program_fd), "{host}", "{scratch}", "2"]
    found = [
        Subject("posix_spawn, no sandbox", [*command, COMMAND], (2,)),
        Subject(FLOOR, floor, (2,), fds=(program_fd,)),
        Subject(LEAN, [*python, "bench.drivers", "lean", "{scratch}", str(program)], (2, 3, 4)),
        Subject(CLIENT, [*python, "bench.drivers", "client", "{scratch}"], (2, 3, 4)),
    ]
    if shutil.which("bwrap"):
        found.append(Subject(BWRAP, [*command, "bwrap", *_BWRAP_OPTIONS, COMMAND], (2,), 0.5))
    if shutil.which("crun"):
        found.append(Subject("crun, no limits", _crun(directory, command), (2,), 0.2))
    return found


_BWRAP_OPTIONS = ["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
_BWRAP_OPTIONS += ["--tmpfs", "/tmp"]

#: In a mount namespace of its own: crun works with version 2 alone, or not at all, and wants a root that is a mount.
_CRUN_VIEW = 'mount -t cgroup2 none /sys/fs/cgroup && mount --bind / "$0/rootfs" && exec "$@"'


def _crun(directory: Path, command: Sequence[str]) -> list[str]:
    """A bundle with crun's own defaults, as far as they work without cgroups."""
    bundle = directory / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"args": [COMMAND], "terminal": False}
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    config["linux"]["namespaces"] = [kind for kind in config["linux"]["namespaces"] if kind["type"] != "cgroup"]
    del config["linux"]["resources"]
    path.write_text(json.dumps(config))
    view = ["unshare", "-m", "--propagation", "private", "sh", "-c", _CRUN_VIEW, str(bundle)]
    return [*view, *command, "crun", "--cgroup-manager=disabled", "run", "--bundle", str(bundle), "{}"]


def measure(chosen: Sequence[Subject], directory: Path, rounds: int, count: int) -> dict[str, Figures]:
    """Rounds that take turns."""
    cores = sorted(os.sched_getaffinity(0))
    figures = {subject.what: Figures() for subject in chosen}
    running = [(s, Instance(s, directory, cores[-1:]), Instance(s, directory, cores)) for s in chosen]
    try:
        for _, on_one, on_all in running:
            on_one.run(WARM_UP, 1)
            on_all.run(WARM_UP, 2)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for subject, on_one, on_all in running:
                of = figures[subject.what]
                some = max(10, int(count * subject.share))
                sample = on_one.run(some, 1)
                of.one_core_per_s.append(sample.per_s)
                of.one_core_cpu_ms.append(sample.cpu_ms)
                of.alone_per_s.append(on_all.run(some, 1).per_s)
                of.best_per_s.append(max(on_all.run(some, lanes).per_s for lanes in subject.lanes))
            for subject, _, on_all in running:
                figures[subject.what].idle_ms += on_all.run(IDLE_STARTS, 1, IDLE_GAP_US).latencies_ms
    finally:
        for subject, on_one, on_all in running:
            on_one.close()
            words = on_all.close()
            figures[subject.what].memory_mib = float(words) if words else None
    return figures


def table(figures: dict[str, Figures]) -> list[str]:
    lines = [
        "| what | one core: per s | CPU ms each | all cores, 1 at once: per s | best: per s | idle p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, of in figures.items():
        median = statistics.median
        p99 = statistics.quantiles(of.idle_ms, n=100)[98]
        lines.append(
            f"| {what} | {median(of.one_core_per_s):.0f} | {median(of.one_core_cpu_ms):.2f} "
            f"| {median(of.alone_per_s):.0f} | {median(of.best_per_s):.0f} | {median(of.idle_ms):.2f} | {p99:.2f} |"
        )
    return lines


def findings(figures: dict[str, Figures]) -> list[str]:
    """The targets, each ratio as the median over the rounds, with its range."""
    lines = []
    for what, over, least in TARGETS:
        if what not in figures or over not in figures:
            continue
        ours, theirs = figures[what], figures[over]
        for name, mine, other in (
            ("one core", ours.one_core_per_s, theirs.one_core_per_s),
            ("all cores, best", ours.best_per_s, theirs.best_per_s),
        ):
            ratios = [a / b for a, b in zip(mine, other, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            median = statistics.median(ratios)
            lines.append(f"* {what} / {over}, {name}: {median:.2f} ({spread}); the aim is {least} or more.")
    if LEAN in figures and FLOOR in figures:
        pairs = zip(figures[FLOOR].one_core_cpu_ms, figures[LEAN].one_core_cpu_ms, strict=True)
        ratio = statistics.median(floor / ours for floor, ours in pairs)
        lines.append(f"* CPU time of one sandbox, {FLOOR} / {LEAN} with its driver: {ratio:.2f}.")
    for what in (LEAN, CLIENT):
        if what in figures:
            of = figures[what]
            p50 = statistics.median(of.idle_ms)
            lines.append(f"* {what}: idle p50 {p50:.2f} ms (the aim is below 4 ms), memory {of.memory_mib:.1f} MiB.")
    return lines


def write(lines: Sequence[str]) -> None:
    """Puts the table in the place of the last one."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    kernel = ".".join(platform.release().split(".")[:2])
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = f"Measured on {today}: {os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}."
    DOCUMENT.write_text("\n".join([before + BEGIN, head, "", *lines, END]) + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200, help="starts per line and round")
    parser.add_argument("--only", help="lines that contain this word, for a quick look")
    parser.add_argument("--json", action="store_true", help="every figure of every round, instead of the table")
    parser.add_argument("--write", action="store_true", help="also put the table into docs/isolation.md")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the spawner needs root")
    # So that it cleans up behind itself then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="pilfer-bench-") as name:
        program = compile_floor(Path(name))
        # It is executed inside the view, where no path leads to it, and 3 is a number of the spawner's own.
        descriptor = os.dup2(os.open(program, os.O_RDONLY), PROGRAM_FD)
        found = subjects(Path(name), program, descriptor)
        chosen = [subject for subject in found if not arguments.only or arguments.only in subject.what]
        figures = measure(chosen, Path(name), arguments.rounds, arguments.count)
    if arguments.json:
        print(json.dumps({what: asdict(of) for what, of in figures.items()}))
        return
    lines = [*table(figures), "", *findings(figures)]
    print("\n".join(lines))
    if arguments.write:
        write(lines)


if __name__ == "__main__":
    main()
