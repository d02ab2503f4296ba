"""What a spec may be: each rule at its edge, the field that is named, and the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core import validate
from node.core.model import Mount, Network, Requirements, TaskSpec
from node.core.validate import mounts_not_allowed, network_not_allowed, task_id_violation, violations

GOOD = TaskSpec(
    "/bin/sh",
    args=("-c", "echo $X é", ""),
    env={"X": "a=b\nc", "EMPTY": ""},
    cwd="/work dir",
    stdin=b"\0\xff",
    name="Ein Name",
    labels={"team/app": "x = y", "flag": ""},
    requirements=Requirements(0.5, 64 << 20, 10, 1, 1),
    timeout_s=0.001,
    grace_s=0.0,
    max_attempts=1,
    network=Network.HOST,
    mounts=(Mount("/data/in", "/in"), Mount("/data/in", "/out/a", read_only=False)),
)


def requirements(**changes: object) -> TaskSpec:
    return replace(GOOD, requirements=replace(GOOD.requirements, **changes))  # type: ignore[arg-type]  # fields by name


def fields(spec: TaskSpec) -> list[str]:
    return [violation.field for violation in violations(spec)]


def test_good_ones() -> None:
    assert violations(GOOD) == []
    assert violations(TaskSpec("true")) == []


LONGEST = "x" * (validate.ARGUMENT_MAX_BYTES - 1)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (replace(GOOD, command=""), "command"),
        (replace(GOOD, command="a\0b"), "command"),
        (replace(GOOD, command="x" * 4096), "command"),
        (replace(GOOD, command="\udc80"), "command"),
        (replace(GOOD, args=("a", "b", "c", "d\0")), "args[3]"),
        (replace(GOOD, args=("a", LONGEST + "x")), "args[1]"),
        (replace(GOOD, args=("é" * (validate.ARGUMENT_MAX_BYTES // 2),)), "args[0]"),
        (replace(GOOD, args=("",) * 250_000), "args"),
        (replace(GOOD, env={"": "x"}), 'env[""]'),
        (replace(GOOD, env={"A=B": "x"}), 'env["A=B"]'),
        (replace(GOOD, env={"A\0": "x"}), 'env["A\\x00"]'),
        (replace(GOOD, env={"A": "x\0"}), 'env["A"]'),
        (replace(GOOD, env={"A": LONGEST}), 'env["A"]'),
        (replace(GOOD, cwd=""), "cwd"),
        (replace(GOOD, cwd="relative"), "cwd"),
        (replace(GOOD, cwd="/a\0"), "cwd"),
        (replace(GOOD, stdin=b"x" * (1 << 20)), "stdin"),
        (replace(GOOD, args=(LONGEST,) * 9), "args"),
        (requirements(cpu=0.0), "requirements.cpu"),
        (requirements(cpu=-1.0), "requirements.cpu"),
        (requirements(cpu=NAN), "requirements.cpu"),
        (requirements(cpu=INF), "requirements.cpu"),
        (requirements(cpu=0.009), "requirements.cpu"),
        (requirements(cpu=100_001.0), "requirements.cpu"),
        (requirements(memory_bytes=0), "requirements.memory_bytes"),
        (requirements(memory_bytes=-(1 << 30)), "requirements.memory_bytes"),
        (requirements(memory_bytes=(1 << 20) - 1), "requirements.memory_bytes"),
        (requirements(memory_bytes=1 << 63), "requirements.memory_bytes"),
        (requirements(pids=0), "requirements.pids"),
        (requirements(pids=(1 << 22) + 1), "requirements.pids"),
        (requirements(io_read_bytes_per_s=0), "requirements.io_read_bytes_per_s"),
        (requirements(io_write_bytes_per_s=-5), "requirements.io_write_bytes_per_s"),
        (replace(GOOD, timeout_s=0.0), "timeout_s"),
        (replace(GOOD, timeout_s=-1.0), "timeout_s"),
        (replace(GOOD, timeout_s=NAN), "timeout_s"),
        (replace(GOOD, timeout_s=INF), "timeout_s"),
        (replace(GOOD, grace_s=-0.1), "grace_s"),
        (replace(GOOD, grace_s=NAN), "grace_s"),
        (replace(GOOD, grace_s=3601.0), "grace_s"),
        (replace(GOOD, max_attempts=0), "max_attempts"),
        (replace(GOOD, max_attempts=1001), "max_attempts"),
        (replace(GOOD, name="x" * 257), "name"),
        (replace(GOOD, name="a\nb"), "name"),
        (replace(GOOD, name="\x1b[31m"), "name"),
        (replace(GOOD, labels={str(n): "" for n in range(65)}), "labels"),
        (replace(GOOD, labels={"": "x"}), 'labels[""]'),
        (replace(GOOD, labels={"a=b": "x"}), 'labels["a=b"]'),
        (replace(GOOD, labels={"a": "x\n"}), 'labels["a"]'),
        (replace(GOOD, labels={"a": "x" * 257}), 'labels["a"]'),
        (replace(GOOD, mounts=(Mount("/a", "/b"),) + (Mount("/a", "/c"),) * 100), "mounts"),
        (replace(GOOD, mounts=(Mount("a", "/b"),)), "mounts[0].source"),
        (replace(GOOD, mounts=(Mount("/a/../b", "/b"),)), "mounts[0].source"),
        (replace(GOOD, mounts=(Mount("/a/", "/b"),)), "mounts[0].source"),
        (replace(GOOD, mounts=(Mount("/a\0", "/b"),)), "mounts[0].source"),
        (replace(GOOD, mounts=(Mount("/a", ""),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "/"),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "//"),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "/./b"),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "/proc"),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "/dev/null"),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "/sys/fs"),)), "mounts[0].target"),
        (replace(GOOD, mounts=(Mount("/a", "/b"), Mount("/c", "/b"))), "mounts[1].target"),
    ],
)
def test_each_fault_names_its_field_alone(spec: TaskSpec, field: str) -> None:
    assert fields(spec) == [field]


@pytest.mark.parametrize(
    "spec",
    [
        replace(GOOD, args=(LONGEST,)),
        replace(GOOD, env={"A": LONGEST[2:]}),
        replace(GOOD, stdin=b"x" * (1024 * 1024 - 1000)),
        requirements(cpu=0.01),
        requirements(memory_bytes=None),
        requirements(memory_bytes=1 << 20),
        requirements(pids=1),
        replace(GOOD, timeout_s=None),
        replace(GOOD, grace_s=3600.0),
        replace(GOOD, max_attempts=1000),
        replace(GOOD, name="x" * 256),
        replace(GOOD, mounts=(Mount("/", "/host"), Mount("/a", "/process"), Mount("/a", "/devices"))),
    ],
)
def test_the_edge_is_allowed(spec: TaskSpec) -> None:
    assert violations(spec) == []


def test_messages_say_what_is_wrong_and_what_is_allowed() -> None:
    (long,) = violations(replace(GOOD, args=(LONGEST + "x",)))
    assert "131072 bytes" in long.message
    assert "131071" in long.message
    (cpu,) = violations(requirements(cpu=-2.0))
    assert "-2 is not between 0.01 and 100000 CPUs" in cpu.message
    (memory,) = violations(requirements(memory_bytes=-5))
    assert "-5 is too little" in memory.message


def test_all_faults_are_told_at_once_but_not_without_end() -> None:
    assert fields(replace(GOOD, command="", grace_s=-1.0)) == ["command", "grace_s"]
    many = replace(GOOD, args=("\0",) * 1000)
    assert len(violations(many)) == validate.VIOLATIONS_MAX


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        "x",
        "../../etc/passwd",
        "01900000-0000-7000-8000-00000000000G",
        "01900000-0000-7000-8000-00000000000A",
        "0190000000007000800000000000000a",
        "{01900000-0000-7000-8000-00000000000a}",
        "01900000-0000-7000-8000-00000000000a\n",
        "01900000-0000-7000-8000-00000000000a/x",
        "x" * 100_000,
    ],
)
def test_bad_task_ids(task_id: str) -> None:
    violation = task_id_violation(task_id)
    assert violation is not None
    assert violation.field == "id"
    assert "UUID" in violation.message
    assert len(violation.message) < 300


def test_good_task_id() -> None:
    assert task_id_violation("01900000-0000-7000-8000-00000000000a") is None


ALLOWED = ["/data", "/srv/"]
SHARES = [("/models", True), ("/out", False)]


@pytest.mark.parametrize(
    "mount",
    [
        Mount("/data", "/x"),
        Mount("/data/deep/er", "/x", read_only=False),
        Mount("/srv/a", "/x"),
        Mount("/models/a", "/x"),
        Mount("/out", "/x", read_only=False),
    ],
)
def test_allowed_mounts(mount: Mount) -> None:
    assert mounts_not_allowed([mount], ALLOWED, SHARES) == []


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("/etc", "/x"), "--allow-mount"),
        (Mount("/etc", "/x"), "--share"),
        (Mount("/", "/x"), "--allow-mount"),
        (Mount("/database", "/x"), "/database may not be mounted"),  # a prefix of letters is none of directories
        (Mount("/models/a", "/x", read_only=False), "shared read-only"),
    ],
)
def test_refused_mounts_name_the_setting(mount: Mount, words: str) -> None:
    good = Mount("/data", "/y")
    (violation,) = mounts_not_allowed([good, mount], ALLOWED, SHARES)
    assert violation.field == "mounts[1].source"
    assert words in violation.message


def test_root_as_allowed_prefix_allows_all_and_nothing_allows_nothing() -> None:
    assert mounts_not_allowed([Mount("/etc", "/x")], ["/"], []) == []
    (violation,) = mounts_not_allowed([Mount("/etc", "/x")], [], [])
    assert "allowed: none" in violation.message


def test_host_network_is_the_nodes_to_allow() -> None:
    assert network_not_allowed(Network.NONE, allow_host_network=False) == []
    assert network_not_allowed(Network.HOST, allow_host_network=True) == []
    (violation,) = network_not_allowed(Network.HOST, allow_host_network=False)
    assert (violation.field, "--allow-host-network" in violation.message) == ("network", True)


_texts = st.text(max_size=20)


@given(
    command=_texts,
    args=st.lists(_texts, max_size=5),
    env=st.dictionaries(_texts, _texts, max_size=5),
    cpu=st.floats(),
    memory=st.none() | st.integers(-(2**63), 2**63 - 1),
    mounts=st.lists(st.tuples(_texts, _texts), max_size=3),
)
def test_whatever_the_wire_can_carry_gets_an_answer(
    *,
    command: str,
    args: list[str],
    env: Mapping[str, str],
    cpu: float,
    memory: int | None,
    mounts: list[tuple[str, str]],
) -> None:
    spec = TaskSpec(
        command,
        args=tuple(args),
        env=env,
        requirements=Requirements(cpu=cpu, memory_bytes=memory),
        mounts=tuple(Mount(source, target) for source, target in mounts),
    )
    for violation in violations(spec):
        assert violation.field.isprintable()
        assert violation.message.isprintable()
