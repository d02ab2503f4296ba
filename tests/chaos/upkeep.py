"""Memory, descriptors and threads of every process of the nodes, by incarnation, sampled while they live.

Theory. Load and faults make all of it go up and down, so neither a last value nor a maximum says anything, but a leak
grows without end. Of an incarnation that lived long enough the first moments are left out (what it loads once), and the
rest is cut into quarters: it *grows* when the medians of the second, third and fourth ascend one after the other, and
the last exceeds the second by more than an allowance. Medians are deaf to peaks; the allowance is what the fill level
of caches and queues may differ by. What lived too short for that is held to a ceiling alone, like everything.

Memory is what is anonymous (smaps_rollup): pages of files come and go as the kernel likes, and etcd maps its database,
which its quota bounds. etcd's own grows by twice the lab's quota when that is used up, and sinks slowly: growth beyond
that is none of the load's.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.lab import Lab

EVERY_S = 4.0
WARM_UP_S = 60.0
#: Shorter lives (without the warm-up) are not judged for growth.
JUDGED_S = 120.0
#: Of one incarnation; then every second one is dropped, and the next ones are taken half as often.
SAMPLES_MAX = 512
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment."""

    #: time.monotonic().
    at: float
    anonymous_bytes: int
    rss_bytes: int
    pss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Bound:
    """For one quantity of one part: never above the ceiling; growth up to share and amount together is none."""

    ceiling: float
    share: float
    amount: float
    unit: float = 1


#: Measured in an hour of chaos on a busy machine, at most, and the most that the fourth quarter of a life had more than
#: the second: node 77 MiB and 6, 66 descriptors and 10, 3 threads; spawner 10.5 MiB and 0, 184 descriptors and 41; etcd
#: (with the lab's quota of 64 MiB) 222 MiB and 142, 73 descriptors and 16, 1 thread. Ceilings are for short lives too.
BOUNDS: Mapping[str, Mapping[str, Bound]] = {
    "node": {
        "anonymous_bytes": Bound(200 * _MIB, 0.15, 12 * _MIB, _MIB),
        "descriptors": Bound(400, 0.2, 24),
        "threads": Bound(80, 0.2, 8),
    },
    "spawner": {
        "anonymous_bytes": Bound(30 * _MIB, 0, 1 * _MIB, _MIB),
        "descriptors": Bound(400, 0.2, 32),
        "threads": Bound(2, 0, 0),
    },
    "etcd": {
        "anonymous_bytes": Bound(320 * _MIB, 0, 180 * _MIB, _MIB),
        "descriptors": Bound(400, 0.2, 32),
        "threads": Bound(80, 0.2, 16),
    },
}


@dataclass(slots=True)
class Life:
    """One process from its start to its end."""

    part: str
    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)
    _every_s: float = EVERY_S

    def add(self, sample: Sample) -> None:
        if self.samples and sample.at - self.samples[-1].at < self._every_s / 2:
            return
        self.samples.append(sample)
        if len(self.samples) > SAMPLES_MAX:
            del self.samples[1::2]
            self._every_s *= 2

    def __str__(self) -> str:
        return f"{self.part} of {self.name} (pid {self.pid})"


def quarters(values: Sequence[tuple[float, float]]) -> list[float] | None:
    """Medians of the four quarters, by time, of (moment, value) after the warm-up; None where it lived too short."""
    if not values:
        return None
    first, last = values[0][0] + WARM_UP_S, values[-1][0]
    if last - first < JUDGED_S:
        return None
    found: list[list[float]] = [[], [], [], []]
    for at, value in values:
        if at >= first:
            found[min(3, int((at - first) / (last - first) * 4))].append(value)
    return [statistics.median(quarter) for quarter in found] if all(found) else None


def flaws_of(life: Life) -> list[str]:
    """ProcessesAreFlat: what grew, and what was too much, in words."""
    found: list[str] = []
    for quantity, bound in BOUNDS[life.part].items():
        values = [(sample.at, float(getattr(sample, quantity))) for sample in life.samples]
        if not values:
            continue
        top = max(value for _, value in values)
        if top > bound.ceiling:
            found.append(
                f"{life}: {quantity} {top / bound.unit:.0f}, never to be above {bound.ceiling / bound.unit:.0f}"
            )
        medians = quarters(values)
        if medians is None:
            continue
        _, second, third, fourth = medians
        if second < third < fourth and fourth - second > second * bound.share + bound.amount:
            told = ", ".join(f"{median / bound.unit:.0f}" for median in medians)
            lived_s = values[-1][0] - values[0][0]
            found.append(f"{life}: {quantity} grows: {told} in the quarters of {lived_s:.0f} s")
    return found


class Upkeep:
    """Samples the processes of a lab, in a thread."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._lives: dict[tuple[int, float], Life] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(4 * EVERY_S)

    def lives(self) -> list[Life]:
        with self._lock:
            return list(self._lives.values())

    def flaws(self) -> list[str]:
        return [f"ProcessesAreFlat: {words}" for life in self.lives() for words in flaws_of(life)]

    def summary(self) -> str:
        """The most that was seen, by part."""
        told: list[str] = []
        for part in BOUNDS:
            samples = [sample for life in self.lives() if life.part == part for sample in life.samples]
            if samples:
                memory = max(sample.anonymous_bytes for sample in samples) // _MIB
                descriptors = max(sample.descriptors for sample in samples)
                threads = max(sample.threads for sample in samples)
                told.append(f"{part} {memory} MiB, {descriptors} descriptors, {threads} threads")
        judged = sum(quarters([(sample.at, 0.0) for sample in life.samples]) is not None for life in self.lives())
        return f"at most {'; '.join(told)}; {judged} of {len(self.lives())} processes lived long enough to be judged"

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """One sample of each."""
        for (pid, began), part, name in _parts(self._lab):
            sample = _sample(pid)
            if sample is not None:
                with self._lock:
                    self._lives.setdefault((pid, began), Life(part, name, pid)).add(sample)


def _parts(lab: Lab) -> Iterable[tuple[tuple[int, float], str, str]]:
    """Every process of every node that runs: (pid, its start), part, name of the node. One look at the machine's
    processes for all of them."""
    nodes = {node.pid: node.name for node in lab.up()}
    for process in psutil.process_iter(["pid", "ppid", "name", "create_time"]):
        told = process.info
        if told["pid"] in nodes:
            # Until it has become the node it is the program that puts it into its place.
            if told["name"].startswith("python") or told["name"].startswith("node"):
                yield (told["pid"], told["create_time"]), "node", nodes[told["pid"]]
        elif told["ppid"] in nodes:
            part = "etcd" if told["name"].startswith("etcd") else "spawner"
            with contextlib.suppress(psutil.Error):
                if part == "etcd" or "spawner" in " ".join(process.cmdline()):
                    yield (told["pid"], told["create_time"]), part, nodes[told["ppid"]]


def _sample(pid: int) -> Sample | None:
    """None where it is gone."""
    base = Path(f"/proc/{pid}")
    try:
        memory = dict(
            line.split(":", 1) for line in (base / "smaps_rollup").read_text().splitlines()[1:] if ":" in line
        )
        threads = len(list((base / "task").iterdir()))
        descriptors = len(list((base / "fd").iterdir()))
    except OSError:
        return None

    def of(name: str) -> int:
        return int(memory.get(name, "0 kB").split()[0]) * 1024

    return Sample(time.monotonic(), of("Anonymous"), of("Rss"), of("Pss"), descriptors, threads)
