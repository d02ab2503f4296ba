"""What this host can do: found out once, at the spawner's start. Nothing is assumed from a kernel's version."""

from __future__ import annotations

import os
from dataclasses import dataclass

from isolation import rootless
from isolation.cgroup import Parent, find
from isolation.config import SpawnerConfig
from isolation.errors import HostLacks

#: What a task can demand: names of `HostReport.limits`.
LIMITS = ("cpu", "memory", "pids", "io")

_KERNEL_MIN = (5, 12)  # mount_setattr(2); clone3, close_range and openat2 are older


@dataclass(frozen=True, slots=True)
class Host:
    parent: Parent
    #: What groups do not enforce, in words.
    not_enforced: tuple[str, ...]
    #: What groups enforce: of LIMITS.
    limits: tuple[str, ...]
    #: This process is no root, and needs a user namespace.
    is_ordinary: bool
    #: It is in a user namespace that somebody else made (a container's), where much may be refused.
    is_confined: bool = False


def probe(config: SpawnerConfig) -> Host:
    """The node's parent group, and what cannot be enforced. Raises HostLacks."""
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
    return Host(parent, missing, _limits(parent, devices), rootless.is_needed(), rootless.is_confined())


def _limits(parent: Parent, devices: tuple[str, ...]) -> tuple[str, ...]:
    there = parent.controllers
    has_io = bool(devices) and not there.isdisjoint({"io", "blkio"})
    return tuple(name for name in LIMITS if name in there or (name == "io" and has_io))


def said(host: Host, own: rootless.Rootless | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to tell of this host: what is not enforced, in words, and which limits are in force, of LIMITS.

    own: the ordinary user that this is; None for root.
    """
    if own is None:
        return host.not_enforced, host.limits
    counts = own.counts_processes and "pids" not in host.limits
    limits = tuple(name for name in LIMITS if name in host.limits or (name == "pids" and counts))
    missing = host.not_enforced
    if not host.parent.version:
        missing = tuple(words for name, words in rootless.WITHOUT_GROUPS.items() if name not in limits)
    return (*rootless.NOT_ENFORCED, *missing), limits
