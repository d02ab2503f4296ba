"""When a scratch directory is worth measuring, and what is too much. Pure: no clock, no files.

A tree is measured by walking it, which costs microseconds for a few files and seconds for a million; asking a file
system how much is free in it costs one microsecond. So the free space is asked often, and tells how much anybody can
have written since a tree was measured: one that held less than its limit then cannot be over it before the free space
has fallen by what was left to it. It is measured again when half of that is gone, so the steps get smaller as it
nears its limit. What is freed at the same time hides what is written; so each tree is measured again from time to time
anyway, the more seldom, the longer that takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Between two looks at the free space, while anything runs.
LOOK_EVERY_S = 0.1
#: A tree is measured again after so long, whatever the free space says.
AGAIN_S = 5.0
#: A task that holds files in messages is ended when it has done so for so long while much is gone that nobody has.
HIDING_S = 2.0
#: But for at most this part of the time (a twentieth).
REST_FACTOR = 20.0
#: And all of them together for a hundredth.
ROUTINE_REST_FACTOR = 100.0

#: The default limit: of the size of the file system.
DEFAULT_PART = 4
#: A file is given so much of a limit in bytes.
BYTES_PER_FILE = 16 * 1024
FILES_MIN = 10_000
#: A tree that may have more could not be counted in reasonable time and memory.
FILES_MAX = 1_000_000

#: The least step, of a limit.
_STEP_PART = 32
_STEP_BYTES_MIN = 1024 * 1024
_STEP_FILES_MIN = 500


@dataclass(frozen=True, slots=True)
class Space:
    """So many bytes, and so many files (directories and every name of a file count): used, free, or allowed."""

    bytes: int
    files: int

    def is_over(self, limit: Space) -> bool:
        """Used, against what is allowed."""
        return self.bytes > limit.bytes or self.files > limit.files


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a tree since it was last measured; of a new one: that it was empty."""

    used: Space
    #: In the file system, when that began.
    free: Space
    at_s: float
    took_s: float = 0.0


def limit_of(wanted_bytes: int | None, allowed_bytes: int) -> Space:
    """What a tree may hold: at most what the node allows to each."""
    limit = allowed_bytes if wanted_bytes is None else min(wanted_bytes, allowed_bytes)
    return Space(limit, min(max(limit // BYTES_PER_FILE, FILES_MIN), FILES_MAX))


def default_bytes(size: int) -> int:
    """What each may hold on a file system of this size (bytes), where nobody says otherwise."""
    return max(1, size // DEFAULT_PART)


def is_worth_measuring(known: Known, limit: Space, free: Space, now_s: float, *, is_routine_due: bool = True) -> bool:
    """Whether a tree may be over its limit by now, as far as the free space tells, or was not looked at for long.
    is_routine_due: whether the latter counts now (`routine_rest_s`)."""
    rest_s = known.took_s * REST_FACTOR
    if is_routine_due and now_s - known.at_s >= max(AGAIN_S, rest_s):
        return True
    if now_s - known.at_s < known.took_s:
        return False  # a walk that takes long must leave room for others
    bytes_step = max((limit.bytes - known.used.bytes) // 2, limit.bytes // _STEP_PART, _STEP_BYTES_MIN)
    files_step = max((limit.files - known.used.files) // 2, limit.files // _STEP_PART, _STEP_FILES_MIN)
    return known.free.bytes - free.bytes >= bytes_step or known.free.files - free.files >= files_step


def routine_rest_s(took_s: float) -> float:
    """After a walk, how long nothing is walked without a reason: a thousand small trees are a lot of work too."""
    return took_s * ROUTINE_REST_FACTOR


def next_to_measure(
    trees: Iterable[tuple[str, Known, Space]], free: Space, now_s: float, *, is_routine_due: bool = True
) -> str | None:
    """Which tree to measure now: of those worth it the one that was fullest, and of equal ones the newest (the last).
    None: none."""
    best: tuple[float, str] | None = None
    for name, known, limit in trees:
        if is_worth_measuring(known, limit, free, now_s, is_routine_due=is_routine_due):
            fullness = max(known.used.bytes / limit.bytes, known.used.files / limit.files)
            if best is None or fullness >= best[0]:
                best = (fullness, name)
    return best[1] if best is not None else None


def unexplained_bytes(free_before: Space, free: Space, used: Iterable[Space]) -> int:
    """What is gone from the file system since then that none of its directories has."""
    return max(0, free_before.bytes - free.bytes - sum(one.bytes for one in used))


def words(used: Space, limit: Space) -> str:
    """For people: what was too much."""
    if used.bytes > limit.bytes:
        return f"its scratch directory held {_mib(used.bytes)} or more, and may hold {_mib(limit.bytes)}"
    return f"its scratch directory held {used.files} files or more, and may hold {limit.files}"


def words_of_hidden(count: int, limit: Space) -> str:
    """For people: why a task was ended though its directory was not found full."""
    return (
        f"{_mib(count)} of its scratch file system are gone since it began that no directory has, while it held files"
        f" in messages, or among too many others, where they cannot be measured; its scratch directory may hold"
        f" {_mib(limit.bytes)}"
    )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
