"""How a copy of etcd's data takes the place of the data, so that neither is lost wherever that is broken off."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from node.datadir import DataDirError
from node.files import exchange, sync_directory, sync_tree


def put_in_place(made: Path, there: Path, aside: str) -> Path | None:
    """`made`, durable, becomes etcd's data directory `there`; what was there before is kept beside it, by a name that
    begins with `aside` and tells the time: that is given. At every moment one of the two is in place. Blocks. Raises
    OSError; then nothing was changed."""
    sync_tree(made)
    if not there.exists():
        made.rename(there)
        sync_directory(there.parent)
        return None
    # First the new data take the name that the old ones are to be kept by: what was there is never at a place that
    # somebody clears.
    kept = there.with_name(f"{aside}{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    made.rename(kept)
    sync_directory(there.parent)
    try:
        exchange(kept, there)
    except OSError:
        kept.rename(made)
        raise
    sync_directory(there.parent)
    return kept


def check_can_change(directory: Path) -> None:
    """Whether etcd's data in this directory can give way to others at once. Raises DataDirError."""
    what = "a symbolic link" if directory.is_symlink() else "a mount point" if directory.is_mount() else None
    if what:
        raise DataDirError(
            f"{directory} is {what}, so other data cannot take its place at once: make it a plain directory with the "
            f"same contents first (to have it on another disk, mount that at {directory.parent})"
        )
