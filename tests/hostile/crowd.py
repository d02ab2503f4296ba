"""A crowd of tasks, a third of them hostile: drawn from a seed, with what must come of each.

What is hostile is quick and has low limits, so that ten thousand of them go through a node in minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from pilfer import Reason, Task, TaskSpec
from tests.hostile.harness import ATTACKS, PYTHON

_MEMORY = 48 << 20
_SCRATCH = 64 << 20
#: Long enough for what ends by itself, on a machine with others on it.
_LONG_S = 60.0

Verdict = Callable[[Task], bool]


@dataclass(frozen=True)
class Kind:
    name: str
    args: tuple[str, ...]
    is_as_meant: Verdict
    timeout_s: float = _LONG_S
    cpu: float = 0.2


def _exits(code: int) -> Verdict:
    return lambda task: task.exit_code == code


def _dies_of(number: int) -> Verdict:
    return lambda task: task.outcome is not None and task.outcome.signal == number


def _ends_by(reason: Reason) -> Verdict:
    return lambda task: task.outcome is not None and task.outcome.reason is reason


def _any_of(*verdicts: Verdict) -> Verdict:
    return lambda task: any(verdict(task) for verdict in verdicts)


_TIMES_OUT = _ends_by(Reason.TIMED_OUT)
_RUNS_OUT_OF_MEMORY = _ends_by(Reason.OUT_OF_MEMORY)

HOSTILE = (
    Kind("forks", ("quick", "forks"), _TIMES_OUT, timeout_s=1.0, cpu=0.1),
    Kind("hog", ("quick", "hog"), _RUNS_OUT_OF_MEMORY),
    Kind("tmp hog", ("quick", "tmp_hog"), _RUNS_OUT_OF_MEMORY),
    Kind("grandchild hog", ("quick", "grandchild_hog"), _RUNS_OUT_OF_MEMORY),
    Kind("descriptors", ("quick", "descriptors"), _exits(0)),
    Kind("deaf", ("quick", "deaf"), _TIMES_OUT, timeout_s=1.0),
    Kind("stopped", ("quick", "stopped"), _TIMES_OUT, timeout_s=1.0),
    Kind("abort", ("quick", "abort"), _dies_of(6)),
    Kind("fault", ("quick", "fault"), _dies_of(11)),
    Kind("suicide", ("quick", "suicide"), _dies_of(9)),
    Kind("everyone", ("quick", "everyone"), _dies_of(9)),
    Kind("deep", ("quick", "deep"), _exits(0)),
    Kind("names", ("quick", "names"), _exits(0)),
    # What a scratch directory holds is looked at from time to time: it may have ended by then.
    Kind("sparse", ("quick", "sparse"), _any_of(_exits(0), _ends_by(Reason.OUT_OF_SCRATCH))),
    Kind("noise", ("quick", "noise"), _exits(0)),
    Kind("cut", ("quick", "cut"), _exits(0)),
    Kind("sockets", ("quick", "sockets"), _exits(0)),
    Kind("namespaces", ("quick", "namespaces"), _exits(0)),
    Kind("objects", ("quick", "objects"), _exits(0)),
    Kind("leave all", ("leave",), _exits(0)),
    Kind("files of others", ("files", "neighbours"), _exits(0)),
    Kind("output", ("files", "stdio"), _exits(0)),
    Kind("settings", ("outside", "settings"), _exits(0)),
    Kind("control groups", ("outside", "cgroups"), _exits(0)),
    Kind("everybody's signals", ("outside", "everyone"), _exits(0)),
)

#: Command, exit code, what it prints.
PLAIN: Mapping[str, tuple[tuple[str, ...], int, bytes]] = {
    "true": (("true",), 0, b""),
    "false": (("false",), 1, b""),
    "echo": (("echo", "hello"), 0, b"hello\n"),
    "sum": (
        ("sh", "-c", "seq 1000 | sha256sum"),
        0,
        b"67d4ff71d43921d5739f387da09746f405e425b07d727e4c69d029461d1f051f  -\n",
    ),
    "files": (("sh", "-c", "echo one >a; cp a b; cat a b"), 0, b"one\none\n"),
    "code": (("sh", "-c", "exit 42"), 42, b""),
}


@dataclass(frozen=True)
class Member:
    """One task of the crowd."""

    kind: str
    spec: TaskSpec
    is_as_meant: Verdict
    is_hostile: bool
    #: What its stdout must be; None: it may be anything.
    stdout: bytes | None = None


def draw(count: int, seed: int, environment: Mapping[str, str]) -> list[Member]:
    """environment: what lets attacks through their guard."""
    random = Random(seed)
    return [_attack(random, environment) if random.random() < 1 / 3 else _plain(random) for _ in range(count)]


def _attack(random: Random, environment: Mapping[str, str]) -> Member:
    kind = random.choice(HOSTILE)
    script, *args = kind.args
    command, *options = PYTHON
    spec = TaskSpec.of(
        *(command, *options, str(ATTACKS / f"{script}.py"), *args),
        env=dict(environment),
        name=kind.name,
        cpu=kind.cpu,
        memory_bytes=_MEMORY,
        scratch_bytes=_SCRATCH,
        pids=16,
        timeout_s=kind.timeout_s,
        grace_s=0.1,
    )
    return Member(kind.name, spec, kind.is_as_meant, is_hostile=True)


def _plain(random: Random) -> Member:
    name = random.choice(sorted(PLAIN))
    (command, *args), code, stdout = PLAIN[name]
    spec = TaskSpec.of(command, *args, name=name, cpu=0.1, memory_bytes=_MEMORY, pids=16, timeout_s=_LONG_S)
    return Member(name, spec, _exits(code), is_hostile=False, stdout=stdout)
