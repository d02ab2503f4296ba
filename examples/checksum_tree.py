"""Checksums of a whole tree, worked out by the cluster: many small tasks in one call, results in order.

    node start                                       # in another terminal
    python -m examples.checksum_tree /usr/share/doc  # prints what `sha256sum` would, in order of the paths

Tasks see the host's files read-only, except for what is hidden from them (/home, /root, /srv, /mnt, /var
and others, see docs/isolation.md): a tree there needs `node start --share DIR`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pilfer

#: Files hashed by one task: starting a task costs milliseconds, as hashing a few dozen small files does.
FILES_PER_TASK = 50


def regular_files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())


def specs(files: Sequence[Path], *, label: str) -> Iterator[pilfer.TaskSpec]:
    for start in range(0, len(files), FILES_PER_TASK):
        some = files[start : start + FILES_PER_TASK]
        yield pilfer.TaskSpec.of("sha256sum", "--", *some, cpu=0.5, labels={"example": label}, timeout_s=300.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the checksums; exit status 1 when a task did not succeed."""
    parser = argparse.ArgumentParser(description="Checksums of a tree, worked out by the cluster.")
    parser.add_argument("tree", type=Path, nargs="?", default=Path("/usr/share/doc"))
    parser.add_argument("--address", help="unix:/path/node.sock or HOST:PORT; else PILFER_ADDRESS")
    given = parser.parse_args(arguments)
    files = regular_files(given.tree.resolve())
    with pilfer.Client(given.address) as client:
        ids = client.submit_many(specs(files, label=f"checksum-{pilfer.new_task_id()[:13]}"))
        failures = 0
        for task in client.wait(ids):
            for chunk in client.log(task.id):
                out = sys.stdout if chunk.stream is pilfer.Stream.STDOUT else sys.stderr
                out.buffer.write(chunk.data)
            if not task.succeeded:
                failures += 1
                print(f"task {task.id}: {task.reason} {task.exit_code}", file=sys.stderr)
    print(f"{len(files)} files, {len(ids)} tasks, {failures} failed", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pilfer.PilferError as error:
        sys.exit(str(error))
