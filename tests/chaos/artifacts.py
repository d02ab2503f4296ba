"""What a failed run leaves behind: one directory with everything that is needed to understand it.

    README.txt      what was run, how to repeat it, what was found
    story.txt       what was done, with times
    flaws.txt       what was found
    nodes/NAME/     its output, and the small files of its data directory (no etcd data, no keys)
    tasks.jsonl     every task as the cluster knows it; nodes.json: every node as each node sees it
    ended.json      what the ledger knows: open tasks, cancels, counts
    history/        the newest part of etcd's history, one event a line, and the observer's judgement
    beats.txt       the newest beats that the witness heard; runs.jsonl: every run of a task with more than one
    processes.jsonl samples of memory, descriptors and threads, by incarnation
    kernel.txt      the end of the kernel's log, where it can be read

Each file is bounded: of what is too long the end is kept, and `cut.txt` says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from pilfer import PilferError
from tests.chaos.checks import Checks, history_files
from tests.chaos.load import Load
from tests.support.lab import Lab

#: Of any one file.
FILE_BYTES = 24 * 1024 * 1024
#: Of the files of a data directory.
SMALL_BYTES = 64 * 1024
#: Of etcd's own log and its like.
LOG_BYTES = 4 * 1024 * 1024
#: Never kept: what must stay secret, and what nobody reads.
LEFT_OUT = ("*.key", "*.sock", "*.disk")
ASK_S = 5.0


class Kept:
    """Files below one directory, each of a bounded size."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.cut: list[str] = []

    def text(self, name: str, lines: Iterable[str]) -> None:
        path = self._place(name)
        size = 0
        with path.open("w") as file:
            for line in lines:
                size += len(line) + 1
                if size > FILE_BYTES:
                    self.cut.append(f"{name}: what comes after the first {FILE_BYTES} bytes")
                    break
                file.write(f"{line}\n")

    def end_of(self, name: str, source: Path, *, limit_bytes: int = FILE_BYTES) -> None:
        """The end of a file."""
        with contextlib.suppress(OSError), source.open("rb") as file:
            size = source.stat().st_size
            file.seek(max(0, size - limit_bytes))
            data = file.read(limit_bytes)
            # The beginning may be a hole, and the first line half a line.
            data = data.lstrip(b"\0")
            if size > limit_bytes:
                data = data[data.find(b"\n") + 1 :]
                self.cut.append(f"{name}: what comes before its last {limit_bytes} bytes")
            self._place(name).write_bytes(data)

    def _place(self, name: str) -> Path:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def keep(  # noqa: PLR0917  (each is another thing)
    directory: Path, lab: Lab, load: Load, checks: Checks, story: Sequence[str], flaws: Sequence[str]
) -> None:
    """Everything that is needed to understand the run, in this directory, which is made. While the lab is there. What
    cannot be had is said in `cut.txt`, and is no error."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = Kept(directory)
    again = shlex.join(["python", "-m", "tests.chaos", *sys.argv[1:]])
    kept.text("README.txt", [f"command: {again}", load.ends(), checks.summary(), "", *flaws, "", __doc__])
    kept.text("story.txt", story)
    kept.text("flaws.txt", flaws)
    for node in lab.machines:
        keep_node(kept, node)
    _try(kept, "tasks.jsonl", lambda: kept.text("tasks.jsonl", _tasks(lab)))
    _try(kept, "nodes.json", lambda: kept.text("nodes.json", [_json(_nodes(lab), indent=1)]))
    kept.text("ended.json", [_json(_ledger(load), indent=1)])
    for file in history_files(checks):
        kept.end_of(f"history/{file.name}", file, limit_bytes=2 * FILE_BYTES)
    kept.end_of("history/observer.log", checks.directory / "observer.log")
    kept.text("history/judgement.json", [_json(checks.judgement, indent=1)])
    kept.end_of("beats.txt", lab.witness.file)
    kept.text("runs.jsonl", _runs(lab))
    kept.text("processes.jsonl", (_json(life) for life in checks.upkeep.lives()))
    kernel = subprocess.run(["dmesg", "--time-format", "iso"], capture_output=True, text=True, check=False)
    kept.text("kernel.txt", (kernel.stdout or kernel.stderr).splitlines()[-500:])
    kept.text("cut.txt", kept.cut)


class NodeLike(Protocol):
    """As much of a node of the lab as is kept."""

    @property
    def name(self) -> str: ...
    @property
    def data_dir(self) -> Path: ...
    @property
    def log(self) -> Path: ...
    @property
    def host_id(self) -> str: ...
    @property
    def is_up(self) -> bool: ...


def keep_node(kept: Kept, node: NodeLike) -> None:
    """Its output, and what is small and no secret of its data directory."""
    kept.end_of(f"nodes/{node.name}/output.log", node.log)
    with contextlib.suppress(OSError):
        for path in sorted(node.data_dir.rglob("*")):
            inside = path.relative_to(node.data_dir)
            if inside.parts[0] in ("logs", "scratch") or any(path.match(pattern) for pattern in LEFT_OUT):
                continue
            is_small = path.suffix in (".log", ".out") or path.stat().st_size <= SMALL_BYTES
            if is_small and path.is_file() and not path.is_symlink():
                kept.end_of(f"nodes/{node.name}/data/{inside}", path, limit_bytes=LOG_BYTES)
        logs = sum(1 for _ in (node.data_dir / "logs").rglob("*.std*"))
        kept.text(f"nodes/{node.name}/state.txt", [f"host {node.host_id}, up: {node.is_up}, files of logs: {logs}"])


def _tasks(lab: Lab) -> Iterable[str]:
    with lab.any_node().client(patience_s=ASK_S) as client:
        for task in client.list():
            yield _json(task)


def _nodes(lab: Lab) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for node in lab.up():
        try:
            with node.client(patience_s=0.0, timeout_s=ASK_S) as client:
                seen[node.name] = list(client.nodes())
        except (PilferError, OSError) as error:
            seen[node.name] = str(error)
    return seen


def _ledger(load: Load) -> dict[str, Any]:
    ledger = load.ledger
    return {
        "open": {task_id: entry.act.kind for task_id, entry in ledger.open().items()},
        "in doubt": sorted(ledger.doubtful()),
        "cancels": ledger.cancels,
        "counts": ledger.counts,
        "flaws in all": ledger.flaws_in_all,
    }


def _runs(lab: Lab) -> Iterable[str]:
    """Every task that ran more than once, run by run."""
    for task_id, by_start in lab.witness.runs.by_task.items():
        if len(by_start) > 1:
            yield _json({"task": task_id, "runs": lab.witness.runs.of(task_id)})


def _try(kept: Kept, name: str, write: Callable[[], None]) -> None:
    """What asks a cluster that may be broken."""
    try:
        write()
    except (PilferError, OSError, StopIteration) as error:
        kept.cut.append(f"{name}: {error!r}")


def _json(value: object, *, indent: int | None = None) -> str:
    return json.dumps(value, default=_plain, indent=indent)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if hasattr(value, "items"):
        return dict(value.items())
    return str(value)
