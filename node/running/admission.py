"""What this node lets a task ask for: checked when a task is submitted here, and again before one is run here.

The second check matters: the task may have come in through a node, or an earlier run of this one, that allows more.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.config import Settings
from node.core.model import TaskSpec
from node.core.validate import Violation, mounts_not_allowed, network_not_allowed


@dataclass(frozen=True, slots=True)
class Admission:
    allow_mounts: tuple[str, ...]
    #: (path, is read-only)
    shares: tuple[tuple[str, bool], ...]
    allow_host_network: bool

    @classmethod
    def of(cls, settings: Settings) -> Admission:
        return cls(
            allow_mounts=settings.allow_mounts,
            shares=tuple((share.path, share.read_only) for share in settings.shares),
            allow_host_network=settings.allow_host_network,
        )

    def violations(self, spec: TaskSpec) -> list[Violation]:
        """What of the spec this node does not allow, by field."""
        found = mounts_not_allowed(spec.mounts, self.allow_mounts, self.shares)
        return found + network_not_allowed(spec.network, allow_host_network=self.allow_host_network)
