"""The plan is data: its order is checked here, without a kernel."""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

from isolation import _sandbox as sys_
from isolation import plan
from isolation.errors import StepFailed
from isolation.mounts import Attachment, check_target
from isolation.spec import Limits, SandboxSpec
from isolation.step import Step

SPEC = SandboxSpec("id-1", ("prog", "x"), {"PATH": "/a::/b"}, Limits(1.0, None, 5))
RESOURCES = plan.Resources(
    task_fds=(20, 21),
    network_fd=22,
    attachments=(),
    uid=65534,
    gid=65533,
    scratch=".spare/1",
    stdio=(30, 31, 32),
    nofile=(1024, 4096),
    filter=b"\0" * 16,
)


def names(steps: list[Step]) -> list[str]:
    return [name for name, _ in groupby(step.name for step in steps)]


def test_order() -> None:
    attachment = Attachment(40, "/tmp/a/f", is_dir=False, parents=("/tmp/a", "/tmp/a/f"))
    assert names(plan.steps(SPEC, replace(RESOURCES, attachments=(attachment,)))) == [
        *("cgroup", "cgroup namespace", "network", "proc", "tmp", "pts", "scratch", "mount", "stage", "hostname"),
        *("stdio", "limits", "user", "death signal", "chdir", "seccomp"),
    ]


def test_host_network_and_version_2_leave_steps_out() -> None:
    steps = names(plan.steps(SPEC, replace(RESOURCES, network_fd=None, task_fds=())))
    assert "network" not in steps
    assert "cgroup" not in steps


def _position(steps: list[Step], number: int) -> int:
    return next(i for i, step in enumerate(steps) if step.call[1] == number)


def test_what_must_come_before_what() -> None:
    steps = plan.steps(SPEC, RESOURCES)
    assert _position(steps, sys_.SYS_write) == 0  # limits before anything
    assert (
        _position(steps, sys_.SYS_setgroups)
        < _position(steps, sys_.SYS_setresgid)
        < _position(steps, sys_.SYS_setresuid)
    )
    assert _position(steps, sys_.SYS_setresuid) < _position(steps, sys_.SYS_chdir)
    assert _position(steps, sys_.SYS_close_range) < _position(steps, sys_.SYS_setresuid)
    assert steps[-1].name == "seccomp"
    after_identity = steps[_position(steps, sys_.SYS_setresuid) + 1 :]
    assert [step.name for step in after_identity] == ["death signal", "death signal", "chdir", "seccomp"]


def test_targets_are_made_in_the_child_only_where_they_are_its_own() -> None:
    attachment = Attachment(40, "/tmp/a/f", is_dir=False, parents=("/tmp/a", "/tmp/a/f"))
    steps = [s for s in plan.steps(SPEC, replace(RESOURCES, attachments=(attachment,))) if s.name == "mount"]
    assert [(s.subject, s.call[0], s.call[1]) for s in steps] == [
        ("/tmp/a", errno.EEXIST, sys_.SYS_mkdirat),
        ("/tmp/a/f", errno.EEXIST, sys_.SYS_mknodat),
        ("/tmp/a/f", 0, sys_.SYS_move_mount),
    ]


@pytest.mark.parametrize(
    ("argv0", "env", "expected"),
    [
        ("prog", {"PATH": "/a::/b"}, [b"/a/prog", b"./prog", b"/b/prog"]),
        ("prog", {}, [b"/bin/prog", b"/usr/bin/prog"]),
        ("./prog", {"PATH": "/a"}, [b"./prog"]),
        ("/x/prog", {}, [b"/x/prog"]),
    ],
)
def test_candidates(argv0: str, env: dict[str, str], expected: list[bytes]) -> None:
    assert plan.candidates(replace(SPEC, argv=(argv0,), env=env)) == expected


#: Our /var has links, which a mount's target must not be made behind.
THROUGH_LINKS = [
    ("/var/tmp/a", "/tmp/a"),
    ("/var/run", "/run"),
    ("/var/lock/x", "/run/lock/x"),
    ("/var/tmpx", "/var/tmpx"),
]


@pytest.mark.parametrize(
    ("target", "plain"), [("/a//b/", "/a/b"), ("/a/./b", "/a/b"), ("/tmp", "/tmp"), *THROUGH_LINKS]
)
def test_targets(target: str, plain: str) -> None:
    assert check_target(target) == plain


@pytest.mark.parametrize("target", ["", "a", "/", "//", "/..", "/a/../b", "/proc", "/proc/self", "/dev/shm", "/sys"])
def test_refused_targets(target: str) -> None:
    with pytest.raises(StepFailed):
        check_target(target)


def test_the_kernel_refuses_what_is_no_call() -> None:
    sys_.set_deadline(0)
    odd: list[Any] = [[("x",)], [1], [(0, 1.5)], [(0, 1, 2, 3, 4, 5, 6, 7, 8)], [(0, 1, {"a": 1})]]
    for calls in odd:
        with pytest.raises(TypeError):
            sys_.spawn(0, -1, calls, [], [], [], 0, 0)
