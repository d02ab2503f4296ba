"""What the node tells the spawner once, at its start: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isolation.spec import BindMount

#: nobody, on every Linux.
NOBODY = 65534

#: The default range of users, 0x7A000000 and on. Above all that accounts are commonly given: systemd leaves 1879048192
#: to 2147352575 unused (its UIDS-GIDS document: container ranges end below, foreign ids begin above), directory
#: services (SSSD, FreeIPA) end at 2000200000. Below 2**31, from where on programs, and devpts, take a user id for a
#: negative number.
FIRST_UID = 0x7A00_0000
UID_COUNT = 65_536

#: Below are the accounts of the system's own services (systemd's UIDS-GIDS document).
UID_MIN = 1000
#: One more would be taken for a negative number, as above.
UID_MAX = 2**31 - 1
UID_COUNT_MAX = 1_000_000
#: (uid_t) -1 of old programs (the same document).
_NO_UID_16 = 65535


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
    #: Host directories that no sandbox may see, besides those of `isolation/shown.py`: the node's own data.
    hidden: tuple[Path, ...] = ()
    #: Bound for all sandboxes together, also those without a limit of their own; None: the machine's.
    memory_bytes: int | None = None
    #: Sandboxes run as uid_base to uid_base + uid_count - 1, each as one that no living sandbox has, or all as
    #: uid_base where the count is 1 (`problem_of_uids` checks a range).
    uid_base: int = FIRST_UID
    uid_count: int = UID_COUNT
    #: The group of all sandboxes, so that a writable share can be opened to them.
    gid: int = FIRST_UID
    #: What each scratch directory may hold at most; None: a quarter of the file system that they are on.
    scratch_limit_bytes: int | None = None
    #: A file that the spawner locks for its life, so that the next one begins when this one is gone
    #: (`isolation/succession.py`); made if absent. None: whoever starts it makes sure of that.
    lock: Path | None = None


def problem_of_uids(first: int, count: int) -> str:
    """What is wrong with a range of user ids for tasks, in words; "" if nothing is."""
    if not 1 <= count <= UID_COUNT_MAX:
        return f"{count} user ids: from 1 (all tasks share one) to {UID_COUNT_MAX}"
    if first < UID_MIN:
        return f"user id {first} is below {UID_MIN}: those are the accounts of the system's own services"
    if first + count - 1 > UID_MAX:
        return f"user id {first + count - 1} is above {UID_MAX}: programs take it for a negative number"
    if first <= _NO_UID_16 < first + count or (first <= NOBODY < first + count and count > 1):
        return f"user ids {first} to {first + count - 1} hold {NOBODY} or {_NO_UID_16}, which mean nobody in particular"
    return ""
