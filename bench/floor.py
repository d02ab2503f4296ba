"""Prepares `sandbox_floor.c`, the C program that does the same steps as the spawner: compiles it, gives it a plan.

The plan is the spawner's own: this starts a `Spawner` in this process (groups, pool of network namespaces, view, pivot,
privileges: all real), asks it for one sandbox per lane with the clone replaced by a recorder, writes down what would
have been cloned, and then executes the C program in its own place. So both do the same system calls in the child, with
the same filter, and whatever is added to a sandbox later is in both.

    python -m bench.floor PROGRAM_FD HOST_ID SCRATCH_ROOT LANES
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import prctl  # type: ignore[import-untyped]  # the library has no stubs

from bench.request import sandbox_spec
from isolation import _sandbox
from isolation.cgroup.v1 import V1Group
from isolation.config import SpawnerConfig
from isolation.sandbox import Sandbox
from isolation.spawner import Spawner

#: More than this process ever opens.
_FDS_MAX = 1024
SOURCE = Path(__file__).parent / "sandbox_floor.c"

_READ_IN_V1 = ("cpuacct.usage", "memory.max_usage_in_bytes", "memory.oom_control", "memory.usage_in_bytes")
_RESET_IN_V1 = {"cpuacct": "cpuacct.usage", "memory": "memory.max_usage_in_bytes"}
_READ_IN_V2 = ("cpu.stat", "memory.peak", "memory.events", "io.stat")

#: (flags, cgroup_fd, calls, paths, argv, envp, report_fd, token), as `_sandbox.spawn` takes them.
_Cloned = tuple[int, int, list[tuple[object, ...]], list[bytes], list[bytes], list[bytes], int, int]


def compile_floor(directory: Path) -> Path:
    """The program, static, since it is executed in the sandboxes' view. Raises CalledProcessError with gcc's words."""
    program = directory / "sandbox_floor"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, SOURCE], check=True)
    return program


def _value(value: object) -> bytes:
    if value is None:
        value = 0
    if isinstance(value, int):
        return struct.pack("=qq", 0, value if value < 2**63 else value - 2**64)
    if isinstance(value, bytes):
        return struct.pack("=qq", 1, len(value)) + value
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no argument of a call")
    return struct.pack("=qq", 2, len(value)) + b"".join(map(_value, value))


def _values(values: tuple[object, ...] | list[int]) -> bytes:
    return struct.pack("=q", len(values)) + b"".join(map(_value, values))


def _plan(cloned: _Cloned, reads: list[int], resets: list[int], scratch_root: int, scratch: str) -> bytes:
    flags, cgroup_fd, calls, paths, argv, envp, _, _ = cloned
    return b"".join(
        [
            struct.pack("=qqq", flags, cgroup_fd, len(calls)),
            *map(_values, calls),
            *map(_value, (paths, argv, envp)),
            _values(reads),
            _values(resets),
            struct.pack("=q", scratch_root),
            _value(scratch.encode()),
        ]
    )


def _files(sandbox: Sandbox) -> tuple[list[int], list[int]]:
    """Descriptors to read usage from, and to write 0 to."""
    group = sandbox.group
    if isinstance(group, V1Group):
        dirs = group._dirs
        reads = [os.open(f, os.O_RDONLY, dir_fd=dirs[f.partition(".")[0]]) for f in _READ_IN_V1]
        if "blkio" in dirs:
            reads.append(os.open("blkio.throttle.io_service_bytes", os.O_RDONLY, dir_fd=dirs["blkio"]))
        return reads, [os.open(file, os.O_WRONLY, dir_fd=dirs[name]) for name, file in _RESET_IN_V1.items()]
    if group.into_fd >= 0:  # version 2: one group for all runs of a lane, which is less than Pilfer does
        return [os.open(file, os.O_RDONLY, dir_fd=group.into_fd) for file in _READ_IN_V2], []
    return [], []


def _keep_capabilities() -> None:
    """Over the exec: the spawner's set-up empties the bounding set, and what is inheritable stays (capabilities(7))."""
    for capability in sorted(prctl.ALL_CAPS):
        with contextlib.suppress(OSError):  # one that this host does not give us
            prctl.set_caps((capability, prctl.CAP_INHERITABLE, True))


def _recorded(config: SpawnerConfig, lanes: int) -> bytes:
    """The plans of all lanes, in the C program's form; afterwards this process is in the sandboxes' view."""
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_RDWR)
    spawner = Spawner(ours, _theirs, config)
    launcher = spawner._launcher
    cloned: list[_Cloned] = []

    def record(*arguments: object) -> int:
        cloned.append(arguments)  # type: ignore[arg-type]  # what the launcher passes to `spawn`
        return 0

    _sandbox.spawn = record  # the one place where the launcher would clone
    sandboxes = [launcher.launch(sandbox_spec(f"floor-{lane}"), (null, null, null)) for lane in range(lanes)]
    plans = [
        _plan(one, *_files(sandbox), launcher._scratch.fd, launcher._scratch.path_of(sandbox.spec.id))
        for one, sandbox in zip(cloned, sandboxes, strict=True)
    ]
    return struct.pack("=q", lanes) + b"".join(plans)


def main(program_fd: int, host_id: str, scratch_root: Path, lanes: int) -> None:
    _keep_capabilities()
    body = _recorded(SpawnerConfig(host_id=host_id, scratch_root=scratch_root), lanes)
    plan = os.memfd_create("plan", 0)
    os.write(plan, body)
    for fd in range(3, _FDS_MAX):  # /proc is not in the view
        with contextlib.suppress(OSError):  # not open
            os.set_inheritable(fd, True)  # noqa: FBT003  (the function takes nothing else)
    os.execve(program_fd, ["sandbox_floor", "sandbox", str(plan)], {})


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
