"""What is to be done, and by whom: nodes and tasks drawn from one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from etcd import keys
from node.core import lifecycle
from node.core.model import Capacity, Requirements, Task, TaskSpec

EQUAL_CPUS = 4.0
MIXED_CPUS = (2.0, 4.0, 8.0, 16.0)
#: Of the big ones: each tenth task, with so many CPUs, for so many times as long.
BIG_EVERY, BIG_CPUS, BIG_TIMES = 10, 4.0, 4.0
#: A trickle keeps so much of the cluster busy.
TRICKLE_LOAD = 0.7
#: A backlog comes in so many calls at a time, each of so many tasks.
CALLERS, CALL_TASKS = 8, 1000
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    nodes: int
    tasks: int
    load: str = "backlog"
    nodes_kind: str = "equal"
    tasks_kind: str = "small"
    #: Of a small task, on average.
    task_s: float = 1.0
    window: int = 10_000
    seed: int = 1

    def capacities(self) -> list[Capacity]:
        chance = Random(self.seed)
        cpus = [EQUAL_CPUS if self.nodes_kind == "equal" else chance.choice(MIXED_CPUS) for _ in range(self.nodes)]
        return [Capacity(cpu, 64 * GIB) for cpu in cpus]

    def specs(self) -> Iterator[TaskSpec]:
        chance = Random(self.seed + 1)
        for _ in range(self.tasks):
            seconds = self.task_s * chance.uniform(0.5, 1.5)
            is_big = self.tasks_kind == "big" and chance.randrange(BIG_EVERY) == 0
            cpu = BIG_CPUS if is_big else 1.0
            seconds *= BIG_TIMES if is_big else 1.0
            yield TaskSpec("sim", (f"{seconds:.4f}",), requirements=Requirements(cpu=cpu))

    def rate_per_s(self) -> float:
        """Of a trickle."""
        cpus = sum(capacity.cpu for capacity in self.capacities())
        return TRICKLE_LOAD * cpus / (work_s(self.specs()) / self.tasks)


def cpu_s(spec: TaskSpec) -> float:
    """CPU seconds that it takes."""
    return float(spec.args[0]) * spec.requirements.cpu


def work_s(specs: Iterator[TaskSpec]) -> float:
    return sum(map(cpu_s, specs))


def queued(spec: TaskSpec, now: float, ids: Random) -> Task:
    return lifecycle.submit(keys.new_task_id(now, ids), spec, now=now)
