"""What this host can do: found out once, at the spawner's start. Nothing is assumed from a kernel's version."""

from __future__ import annotations

import os
from dataclasses import dataclass

from isolation.cgroup import Parent, find
from isolation.config import SpawnerConfig
from isolation.errors import HostLacks

_KERNEL_MIN = (5, 12)  # mount_setattr(2); clone3, close_range and openat2 are older

#: An unprivileged user cannot make the namespaces without a user namespace, nor cgroups; later work.
_NEEDS_ROOT = (
    "the spawner must run as root to make namespaces, mounts and control groups; "
    "this build has no mode for ordinary users yet"
)


@dataclass(frozen=True, slots=True)
class Host:
    parent: Parent
    not_enforced: tuple[str, ...]


def probe(config: SpawnerConfig) -> Host:
    """The node's parent group, and what cannot be enforced. Raises HostLacks."""
    if os.geteuid() != 0:
        raise HostLacks(_NEEDS_ROOT)
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if version < _KERNEL_MIN:
        raise HostLacks(f"Linux {release} is too old: 5.12 or later is needed (mount_setattr)")
    devices = find.block_devices((config.scratch_root, config.scratch_root.parent))
    try:
        parent, missing = find.find_parent(config.host_id, memory_bytes=config.memory_bytes, io_devices=devices)
    except OSError as error:
        raise HostLacks(f"cannot make the node's control group: {error}") from error
    if parent.version and not devices and "disk io limits" not in missing:
        missing = (*missing, "disk io limits (the scratch directory is on no block device of its own)")
    return Host(parent, missing)
