"""What a claimed task becomes for the spawner: its sandbox's spec, its standard input, its fence token.

Pure translation, but for the descriptor of standard input.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from etcd.store import Claim
from isolation.spec import SCRATCH_DIR, BindMount, Limits, SandboxSpec
from node.core.model import Network, Task
from node.running.admission import Admission

USER_NAME = "task"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every task of this node gets from it."""

    #: Bound of tasks that ask for no memory limit of their own.
    node_memory_bytes: int
    admission: Admission


def stdin_of(data: bytes) -> int:
    """A descriptor to read `data` from; /dev/null where there is none."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        # A descriptor of its own for reading: the task cannot write to what is its input.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def fence_token(epoch: int, fence_revision: int) -> int:
    """One number that only grows over the life of a cluster, restores included (a restore raises the epoch).

    A revision has 48 bits here: at 10,000 writes a second that is 890 years.
    """
    return (epoch << 48) + fence_revision


def sandbox_spec(task: Task, claim: Claim, context: RunContext) -> SandboxSpec:
    spec, needs = task.spec, task.spec.requirements
    env = {
        "PATH": DEFAULT_PATH,
        "HOME": SCRATCH_DIR,
        # Its user id has no account from which programs could learn a name.
        "USER": USER_NAME,
        "LOGNAME": USER_NAME,
        **spec.env,
        "PILFER_TASK_ID": task.id,
        "PILFER_ATTEMPT": str(task.attempt),
        "PILFER_FENCE": str(fence_token(claim.epoch, claim.fence_revision)),
        "PILFER_NODE_ID": claim.identity.node_id,
    }
    return SandboxSpec(
        id=f"{task.id}.{task.attempt}",
        argv=(spec.command, *spec.args),
        env=env,
        limits=Limits(
            cpu=needs.cpu,
            memory_bytes=needs.memory_bytes if needs.memory_bytes is not None else context.node_memory_bytes,
            pids=needs.pids,
            io_read_bytes_per_s=needs.io_read_bytes_per_s,
            io_write_bytes_per_s=needs.io_write_bytes_per_s,
            scratch_bytes=needs.scratch_bytes,
        ),
        cwd=spec.cwd,
        mounts=tuple(BindMount(m.source, m.target, read_only=m.read_only) for m in spec.mounts),
        host_network=spec.network is Network.HOST,
        timeout_s=spec.timeout_s,
        grace_s=spec.grace_s,
    )
