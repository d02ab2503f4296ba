"""Ten thousand tasks through a whole node, a third of them hostile: what becomes of each, and of the machine.

    python -m tests.hostile.ten_thousand --count 10000 --seed 1

A first crowd makes the node what it stays (pools grow, libraries are loaded); then the machine is looked at, the tasks
run, and the machine is looked at again. Others may work on it at the same time, so what belongs to nobody in particular
(memory as a whole, the kernel's network namespaces) is printed and bounded, and what can be told to be ours (user ids
of tasks, the node's process tree, its groups, its directory) must be the same to the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pilfer import Task
from tests.hostile.crowd import Member, draw
from tests.hostile.nodes import HostileNode, hostile_node
from tests.hostile.snapshot import POOL, namespaces_of

#: Tasks before the first look.
FIRST_CROWD = 100
#: Tasks of which the output is read and compared.
READ_EVERY = 10
#: For what is removed beside the work: groups, trash, the kernel's own clearing away of namespaces.
SETTLE_S = 60.0
#: Of one task, on two cores that others use as well.
TASK_LIMIT_S = 1.0

#: User ids of this run's tasks: those of others on the machine have the default ones.
FIRST_UID, UID_COUNT = 2_040_000_000, 8192

_MIB = 1 << 20


@dataclass(frozen=True)
class Bound:
    """How much more there may be afterwards."""

    more: float
    #: Whether it fails the run; what others on the machine change, too, does not.
    is_ours: bool = True


#: Everything else that is counted: not one more.
BOUNDS = {
    "groups": Bound(POOL),
    "spawner: descriptors": Bound(POOL),
    "node: descriptors": Bound(10),
    "etcd: descriptors": Bound(20),
    "spawner: RSS MiB": Bound(8),
    # The queue's view, grpc's buffers; the records are etcd's.
    "node: RSS MiB": Bound(150),
    # About 20 KiB of history a task until it is compacted (etcd/server.py).
    "etcd: RSS MiB": Bound(600),
    "namespaces of the spawner's processes": Bound(0),
    "machine: network namespaces": Bound(POOL, is_ours=False),
    "machine: memory in use MiB": Bound(1000, is_ours=False),
    "machine: slab MiB": Bound(300, is_ours=False),
    "machine: unreclaimable slab MiB": Bound(100, is_ours=False),
    "machine: processes": Bound(30, is_ours=False),
    "machine: mounts": Bound(20, is_ours=False),
}


@dataclass(frozen=True)
class Look:
    """What there is at one moment: numbers, and things by name."""

    numbers: dict[str, float]
    things: dict[str, frozenset[str]]


def look(node: HostileNode) -> Look:
    own = {
        "node": psutil.Process(node.node.pid),
        "spawner": _spawner(node),
        "etcd": node.node.child("etcd"),
    }
    below = [child.pid for child in own["spawner"].children(recursive=True)]
    numbers: dict[str, float] = {"groups": len(node.node.cgroups())}
    for name, process in own.items():
        numbers[f"{name}: descriptors"] = process.num_fds()
        numbers[f"{name}: RSS MiB"] = process.memory_info().rss / _MIB
    memory = _memory()
    numbers |= {
        "namespaces of the spawner's processes": len(namespaces_of((own["spawner"].pid, *below))),
        "machine: network namespaces": _slab_objects("net_namespace"),
        "machine: memory in use MiB": (memory["MemTotal"] - memory["MemAvailable"]) / _MIB,
        "machine: slab MiB": memory["Slab"] / _MIB,
        "machine: unreclaimable slab MiB": memory["SUnreclaim"] / _MIB,
        "machine: processes": len(psutil.pids()),
        "machine: mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
    }
    return Look(numbers, _things(node, own["spawner"].pid, below))


def _things(node: HostileNode, spawner_pid: int, below: Sequence[int]) -> dict[str, frozenset[str]]:
    data_dir = node.node.data_dir
    return {
        "processes below the spawner": frozenset(map(str, below)),
        "processes of tasks' users": frozenset(_processes_of_tasks()),
        "processes in the groups": frozenset(map(str, _in_groups(node))),
        "mounts in the spawner's view": frozenset(Path(f"/proc/{spawner_pid}/mountinfo").read_text().splitlines()),
        "mounts of the machine that name the node": frozenset(
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(data_dir) in line
        ),
        "files of tasks' users": frozenset(_files_of_tasks(("/tmp", "/var/tmp", "/dev/shm", "/run", "/opt"))),
        "files in scratch": frozenset(_below(data_dir / "scratch")),
        "other files of the node": frozenset(_other_files(data_dir)),
        "System V objects": frozenset(_objects_of_tasks()),
        "loop devices": frozenset(str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")),
        "named network namespaces": frozenset(str(path) for path in Path("/run/netns").glob("*")),
    }


def _spawner(node: HostileNode) -> psutil.Process:
    return next(c for c in psutil.Process(node.node.pid).children() if not c.name().startswith("etcd"))


def _is_of_a_task(uid: int) -> bool:
    return FIRST_UID <= uid < FIRST_UID + UID_COUNT


def _processes_of_tasks() -> Iterator[str]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if _is_of_a_task(process.uids().real):
                yield f"{process.pid} {process.name()}"


def _in_groups(node: HostileNode) -> Iterator[int]:
    for group in node.node.cgroups():
        with contextlib.suppress(OSError):
            yield from map(int, (group / "cgroup.procs").read_text().split())


def _below(root: Path) -> Iterator[str]:
    """Spare directories are kept, empty; their parents are the spawner's own."""
    for directory, names, files in os.walk(root):
        place = os.path.relpath(directory, root)
        yield from (f"{place}/{name}" for name in files)
        if place != ".spare":
            yield from (f"{place}/{name}" for name in names if name not in (".spare", ".trash"))


def _other_files(data_dir: Path) -> Iterator[str]:
    """Neither logs nor scratch nor what etcd keeps in its data."""
    for directory, names, files in os.walk(data_dir):
        if directory == str(data_dir):
            names[:] = [name for name in names if name not in ("logs", "scratch", "snapshots", "backups")]
        names[:] = [name for name in names if name not in ("wal", "snap")]
        yield from (f"{directory}/{name}" for name in files)


def _files_of_tasks(roots: Sequence[str]) -> Iterator[str]:
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in (*names, *files):
                with contextlib.suppress(OSError):
                    if _is_of_a_task(os.lstat(f"{directory}/{name}").st_uid) and "/.spare/" not in f"{directory}/":
                        yield f"{directory}/{name}"


def _objects_of_tasks() -> Iterator[str]:
    for kind in ("shm", "msg", "sem"):
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            if any(word.isdigit() and _is_of_a_task(int(word)) for word in line.split()):
                yield f"{kind} {line}"


def _memory() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(words.split()[0]) * 1024 for name, _, words in (line.partition(":") for line in lines)}


def _slab_objects(name: str) -> int:
    for line in Path("/proc/slabinfo").read_text().splitlines():
        if line.startswith(name + " "):
            return int(line.split()[1])
    return 0


@dataclass
class Findings:
    """What came of a crowd."""

    seconds: float = 0.0
    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run_crowd(node: HostileNode, crowd: Sequence[Member], say: Callable[[str], None]) -> Findings:
    """Submits them, waits for all, and judges each."""
    findings = Findings()
    began = time.monotonic()
    ids = node.client.submit_many([member.spec for member in crowd])
    members = dict(zip(ids, crowd, strict=True))
    limit_s = 120.0 + TASK_LIMIT_S * len(crowd)
    for number, task in enumerate(node.client.as_ended(ids, timeout_s=limit_s), start=1):
        _judge(node, members[task.id], task, findings, is_read=number % READ_EVERY == 0)
        if number % 500 == 0:
            say(f"{number} of {len(crowd)} after {time.monotonic() - began:.0f} s")
    findings.seconds = time.monotonic() - began
    return findings


def _judge(node: HostileNode, member: Member, task: Task, findings: Findings, *, is_read: bool) -> None:
    outcome = task.outcome
    reason = str(outcome.reason) if outcome is not None else "none"
    findings.endings[member.kind, f"{task.status} {reason}"] += 1
    if not member.is_as_meant(task):
        findings.wrong.append(f"{member.kind} {task.id}: {task.status}, {outcome}")
    elif is_read and member.stdout is not None:
        stdout = node.output(task.id, "stdout")
        if stdout != member.stdout:
            findings.wrong.append(f"{member.kind} {task.id}: printed {stdout!r}")


def differences(before: Look, after: Look) -> list[str]:
    """What there is more of than there may be, in words."""
    found = []
    for name, things in after.things.items():
        found += [f"{name}: {thing}" for thing in sorted(things - before.things[name])]
    for name, number in after.numbers.items():
        bound = BOUNDS[name]
        if bound.is_ours and number > before.numbers[name] + bound.more:
            found.append(f"{name}: {before.numbers[name]:.0f} before, {number:.0f} now, {bound.more:.0f} more may be")
    return found


def settle(node: HostileNode, before: Look) -> tuple[Look, list[str]]:
    """Looks until there is no difference, or for as long as clearing away may take."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        after = look(node)
        found = differences(before, after)
        if not found or time.monotonic() > deadline:
            return after, found
        time.sleep(0.5)


def table(before: Look, after: Look) -> Iterator[str]:
    yield f"{'':<42}{'before':>10}{'after':>10}"
    for name, number in after.numbers.items():
        yield f"{name:<42}{before.numbers[name]:>10.0f}{number:>10.0f}"
    for name, things in after.things.items():
        yield f"{name:<42}{len(before.things[name]):>10}{len(things):>10}"


def run(count: int, seed: int, say: Callable[[str], None]) -> list[str]:
    """Everything that is wrong, in words; says the figures on the way."""
    with hostile_node("--uids", f"{FIRST_UID}:{UID_COUNT}") as node:
        first = run_crowd(node, draw(FIRST_CROWD, seed + 1, node.environment), say)
        before = look(node)
        crowd = draw(count, seed, node.environment)
        hostile = sum(member.is_hostile for member in crowd)
        say(f"{count} tasks, {hostile} of them hostile, seed {seed}")
        findings = run_crowd(node, crowd, say)
        after, left = settle(node, before)
        say(f"ended after {findings.seconds:.0f} s, {count / findings.seconds:.0f} tasks/s")
        for (kind, ending), number in sorted(findings.endings.items()):
            say(f"  {kind:<22}{ending:<28}{number:>6}")
        for line in table(before, after):
            say(line)
        return [*first.wrong, *findings.wrong, *left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    wrong = run(given.count, given.seed, lambda line: print(line, flush=True))
    for line in wrong[:50]:
        print(f"WRONG  {line}")
    print(f"{len(wrong)} differences" if wrong else "the machine is as it was")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
