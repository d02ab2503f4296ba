"""What the node tells the spawner once, at its start: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isolation.spec import BindMount

#: nobody, on every Linux.
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class SpawnerConfig:
    #: Names the parent cgroup `pilfer/HOST_ID`, below the cgroup that the spawner is started in. [A-Za-z0-9.-].
    host_id: str
    #: Scratch directories live at scratch_root/SANDBOX_ID; made if absent, and emptied at start.
    scratch_root: Path
    #: Host paths in every sandbox's view, at the place that `target` names (the same as the source by default).
    shares: tuple[BindMount, ...] = ()
    #: Whether a spec may ask for the host's network.
    allow_host_network: bool = False
    #: Host directories that no sandbox may see, besides /run, /root, /home, /tmp and /var/tmp: the node's own data.
    hidden: tuple[Path, ...] = ()
    #: Bound for all sandboxes together, also those without a limit of their own; None: the machine's.
    memory_bytes: int | None = None
    #: Sandboxes run as uid_base to uid_base + uid_count - 1, each as one that no living sandbox has, or all as
    #: uid_base where the count is 1. Group likewise.
    uid_base: int = NOBODY
    uid_count: int = 1
    #: A file that the spawner locks for its life, so that the next one begins when this one is gone
    #: (`isolation/succession.py`); made if absent. None: whoever starts it makes sure of that.
    lock: Path | None = None
