"""The plan: a sandbox spec and what the host gave for it, as an ordered list of named system calls.

The order, and why:

(For an ordinary user `user namespace` follows `cgroup`: without a mapped id no file can be made. What else differs is
in `isolation/rootless.py`.)

1. `cgroup`: first of all, so that everything after it, and the command, is under the limits and can be frozen.
   (Version 2: the child is cloned into its group, and there is no such step.)
2. `cgroup namespace`: now, because its root is the group that the child is in at this moment.
3. `network`: entering a ready namespace.
4. `proc`, `tmp`, `pts`, `scratch`, `mount`: in the copy of the spawner's view; /proc after the PID namespace.
   `stage` then covers the directory that holds everybody's scratch with an empty one. (Unmounting it instead would
   wait for an RCU grace period, a millisecond or more on an idle machine; a task cannot uncover it.)
5. `hostname`.
6. `stdio`: descriptors 0 to 2; then all but the report socket are closed, before anything of the task's runs.
7. `limits`: of descriptors.
8. `user`: groups before user, since the right to change groups goes with it. Capabilities go here.
9. `death signal` after `user`, because a change of identity clears it (prctl(2)). Not dumpable: the task, which has
   the same user, must not read or write PID 1's memory.
10. `chdir` as the user, so that a directory that the user may not enter is an error and not a way in.
11. `seccomp` last: the steps before need calls that it refuses.

Then PID 1 goes on in C. Nothing here runs anything: the list is data, and tests read it.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from isolation import _sandbox as sys_
from isolation import kernel
from isolation.mounts import EMPTY, STAGE, Attachment
from isolation.rootless import UserSteps
from isolation.spec import SCRATCH_DIR, SandboxSpec
from isolation.step import Call, Step

#: Descriptor of the report socket, in the spawner and in every PID 1.
REPORT_FD = 3
#: The lowest that is free after `stdio`.
FREE_FD = REPORT_FD + 1
_ALL_FDS = 2**32 - 1

_RLIMIT_NOFILE = 7
_NO_SET = sys_.MS_NOSUID | sys_.MS_NODEV
_HOSTNAME_MAX = 63

#: Where a command without a slash is looked for when its environment has no PATH (as execvp(3)).
DEFAULT_PATH = "/bin:/usr/bin"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the spawner prepared for one sandbox."""

    task_fds: Sequence[int]
    #: None: the host's network.
    network_fd: int | None
    attachments: Sequence[Attachment]
    uid: int
    gid: int
    #: Path of its scratch directory below the one that holds all.
    scratch: str
    #: stdin, stdout, stderr; none of them is 0 to 3.
    stdio: tuple[int, int, int]
    nofile: tuple[int, int]
    #: From `seccomp.program()`.
    filter: bytes
    #: What an ordinary user's sandbox has instead (`isolation/rootless.py`); None for root.
    user_steps: UserSteps | None = None
    #: Files in /proc to cover.
    masked_in_proc: Sequence[str] = ()


def steps(spec: SandboxSpec, r: Resources) -> list[Step]:
    """The whole plan in order."""
    own = r.user_steps
    plan = [Step("cgroup", "", (0, sys_.SYS_write, fd, b"0", 1)) for fd in r.task_fds]
    if own is not None:
        plan += own.map_ids
    plan.append(_CGROUP_NAMESPACE)
    if r.network_fd is not None:
        plan.append(Step("network", "", (0, sys_.SYS_setns, r.network_fd, sys_.CLONE_NEWNET)))
    plan.append(_PROC)
    plan += _masked(tuple(r.masked_in_proc))
    plan += _mounts(None if own is None else own.tmp_bytes)
    plan.append(_mount("scratch", f"{STAGE}/{r.scratch}", SCRATCH_DIR, "", flags=sys_.MS_BIND))
    for attachment in r.attachments:
        plan += _attach(attachment)
    plan.append(_STAGE)
    hostname = spec.id[:_HOSTNAME_MAX].encode()
    plan.append(Step("hostname", "", (0, sys_.SYS_sethostname, hostname, len(hostname))))
    plan += [Step("stdio", str(i), (0, sys_.SYS_dup3, fd, i, 0)) for i, fd in enumerate(r.stdio)]
    plan.append(_CLOSE_THE_REST)
    if own is not None:
        plan += own.loopback
    plan += _identity(r)
    cwd = spec.cwd or SCRATCH_DIR
    plan.append(Step("chdir", cwd, (0, sys_.SYS_chdir, os.fsencode(cwd))))
    plan.append(_seccomp(r.filter))
    return plan


@cache
def _seccomp(filter_: bytes) -> Step:
    program: list[int | bytes | list[int | bytes]] = [len(filter_) // 8, filter_]
    return Step("seccomp", "", (0, sys_.SYS_prctl, kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, program, 0, 0))


def _mount(name: str, source: str, target: str, fstype: str, *, flags: int, options: str = "") -> Step:
    call = (0, sys_.SYS_mount, source.encode(), target.encode(), fstype.encode(), flags, options.encode())
    return Step(name, target, call)


# The same in every sandbox, and so made once: a launch makes half as many steps.
_CGROUP_NAMESPACE = Step("cgroup namespace", "", (0, sys_.SYS_unshare, sys_.CLONE_NEWCGROUP))
_STAGE = _mount("stage", EMPTY, STAGE, "", flags=sys_.MS_BIND)
_CLOSE_THE_REST = Step("stdio", "", (0, sys_.SYS_close_range, FREE_FD, _ALL_FDS, 0))
_LAST_OF_IDENTITY = (
    Step("death signal", "", (0, sys_.SYS_prctl, kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)),
    Step("death signal", "", (0, sys_.SYS_prctl, kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)),
)
_PROC = _mount("proc", "proc", "/proc", "proc", flags=_NO_SET | sys_.MS_NOEXEC)
_PTS = _mount(
    *("pts", "pts", "/dev/pts", "devpts"),
    flags=sys_.MS_NOSUID | sys_.MS_NOEXEC,
    options="newinstance,ptmxmode=0666,mode=0620",
)
# Charged to the sandbox's memory, so it needs no size of its own where that is limited.
_TMP = _mount("tmp", "tmp", "/tmp", "tmpfs", flags=_NO_SET, options="mode=1777")  # noqa: S108  (the sandbox's own)


@cache
def _masked(in_proc: tuple[str, ...]) -> list[Step]:
    return [_mount("proc", "/dev/null", f"/proc/{name}", "", flags=sys_.MS_BIND) for name in in_proc]


def _mounts(tmp_bytes: int | None) -> list[Step]:
    if tmp_bytes is None:
        return [_TMP, _PTS]
    options = f"mode=1777,size={tmp_bytes}"
    return [_mount("tmp", "tmp", "/tmp", "tmpfs", flags=_NO_SET, options=options), _PTS]  # noqa: S108  (as above)


def _attach(attachment: Attachment) -> list[Step]:
    target = attachment.target
    made: list[Step] = []
    for i, path in enumerate(attachment.parents):
        raw = os.fsencode(path)
        is_file = not attachment.is_dir and i == len(attachment.parents) - 1
        call: Call = (
            (errno.EEXIST, sys_.SYS_mknodat, kernel.AT_FDCWD, raw, stat.S_IFREG | 0o444, 0)
            if is_file
            else (errno.EEXIST, sys_.SYS_mkdirat, kernel.AT_FDCWD, raw, 0o755)
        )
        made.append(Step("mount", path, call))
    move: Call = (
        *(0, sys_.SYS_move_mount, attachment.fd, b"", kernel.AT_FDCWD, os.fsencode(target)),
        sys_.MOVE_MOUNT_F_EMPTY_PATH,
    )
    return [*made, Step("mount", target, move)]


def _identity(r: Resources) -> list[Step]:
    # struct rlimit64 is two words, soft and hard.
    bounds: list[int | bytes | list[int | bytes]] = list(r.nofile)
    own = r.user_steps
    return [
        Step("limits", "descriptors", (0, sys_.SYS_prlimit64, 0, _RLIMIT_NOFILE, bounds, 0)),
        *(_user(r) if own is None else (*own.limits, *own.drop)),
        *_LAST_OF_IDENTITY,
    ]


def _user(r: Resources) -> list[Step]:
    subject = str(r.uid)
    return [
        Step("user", subject, (0, sys_.SYS_setgroups, 0, None)),
        Step("user", subject, (0, sys_.SYS_setresgid, r.gid, r.gid, r.gid)),
        Step("user", subject, (0, sys_.SYS_setresuid, r.uid, r.uid, r.uid)),
    ]


def candidates(spec: SandboxSpec) -> list[bytes]:
    """The paths at which the command may be, in order; tried inside the sandbox."""
    command = spec.argv[0]
    if "/" in command:
        return [os.fsencode(command)]
    path = spec.env.get("PATH", DEFAULT_PATH)
    return [os.fsencode(f"{directory or '.'}/{command}") for directory in path.split(":")]
