"""`make demo`: a node, started for this alone, hashes and compresses several hundred Python files, one task per file.

Everything goes through the public door: `node start` as a user types it, and `pilfer.Client`. Afterwards each output is
checked against its source, a table is printed, and the node is stopped; the outputs stay, in a directory that is named.
Exit code: 0 when every task succeeded and every output is right, 1 otherwise.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import pilfer
from node.units import format_duration, format_size

#: With fewer files than this the system's Python says too little.
FILES_MIN = 200
#: More would only take longer.
FILES_MAX = 400
#: A first start makes certificates and etcd's data on a disk that may be slow.
START_TIMEOUT_S = 60.0
#: After SIGTERM, before the node is killed.
STOP_TIMEOUT_S = 30.0
#: For all tasks together.
WORK_TIMEOUT_S = 600.0

#: $1 is the source, $2 the output without its suffix. The checksum is of the text, not of a name.
SCRIPT = 'set -e; sha256sum <"$1" >"$2.sha256"; gzip -9 -n -c <"$1" >"$2.gz"'

#: Long paths stay on one line, so that they can be copied.
console = Console(soft_wrap=True)


class DemoFailed(Exception):  # noqa: N818  (what happened, in the past)
    """The demo cannot go on; the text is for the user."""


@dataclass(frozen=True)
class Piece:
    """One file of the input and where its outputs go."""

    source: Path
    output: Path

    @property
    def compressed(self) -> Path:
        return self.output.with_name(self.output.name + ".gz")

    @property
    def checksum(self) -> Path:
        return self.output.with_name(self.output.name + ".sha256")

    @property
    def task(self) -> pilfer.TaskSpec:
        arguments = ("-c", SCRIPT, "demo", self.source, self.output)
        return pilfer.TaskSpec.of("/bin/sh", *arguments, name=self.source.name, labels={"from": "demo"})

    def find_fault(self) -> str | None:
        """What is wrong with the outputs, None where nothing is."""
        try:
            content = self.source.read_bytes()
            if gzip.decompress(self.compressed.read_bytes()) != content:
                return f"{self.compressed} does not unpack to {self.source}"
            if self.checksum.read_text().split()[:1] != [hashlib.sha256(content).hexdigest()]:
                return f"{self.checksum} is not the checksum of {self.source}"
        except (OSError, EOFError) as error:
            return str(error)
        return None


def main() -> int:
    # An ordinary end, so that the node is stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        # Readable by everybody: the outputs are for looking at. The node's own directory in it is not.
        directory = Path(tempfile.mkdtemp(prefix="pilfer-demo-"))
        directory.chmod(0o755)
        outputs = directory / "outputs"
        outputs.mkdir()
        # Tasks run as a user without rights, who has to be able to write here.
        outputs.chmod(0o1777)
        roots, sources = find_input()
        pieces = [Piece(source, outputs / f"{n:04d}-{source.name}") for n, source in enumerate(sources, start=1)]
        return run_all(directory, roots, pieces)
    except DemoFailed as error:
        # A log may hold what rich would take for markup.
        console.print(f"demo: {error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130


def find_input() -> tuple[list[Path], list[Path]]:
    """Directories to be shared with tasks, and the files. Raises DemoFailed."""
    system = python_files(sorted(Path("/usr/lib").glob("python3*")))
    if len(system) >= FILES_MIN:
        # The host's /usr is in every task's view.
        return [], spread(system)
    library = Path(sysconfig.get_path("stdlib")).resolve()
    own = python_files([library])
    if not own:
        raise DemoFailed(f"no Python files, neither below /usr/lib/python3* nor below {library}")
    return [library], spread(own)


def python_files(roots: Sequence[Path]) -> list[Path]:
    found = {path for root in roots for path in root.rglob("*.py")}
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def spread(files: Sequence[Path]) -> list[Path]:
    """At most FILES_MAX of them, from everywhere."""
    step = max(1, -(-len(files) // FILES_MAX))
    return list(files[::step])


def run_all(directory: Path, shares: Sequence[Path], pieces: Sequence[Piece]) -> int:
    outputs = directory / "outputs"
    data_dir = directory / "node"
    flags = [f"--share={outputs}:rw", *(f"--share={path}:ro" for path in shares)]
    console.print(f"Hashing and compressing {len(pieces)} Python files, one task each, into {outputs}", highlight=False)
    with running_node(data_dir, directory / "node.log", flags) as start_s, connected(data_dir) as client:
        console.print(f"The node was up in {format_duration(start_s)}.", highlight=False)
        began = time.monotonic()
        tasks = run_tasks(client, pieces)
        took_s = time.monotonic() - began
    faults = [fault for piece in pieces if (fault := piece.find_fault())]
    shutil.rmtree(data_dir)
    console.print(summary(pieces, tasks, took_s, len(faults)))
    failed = [task for task in tasks if not task.succeeded]
    for task in failed[:5]:
        detail = task.outcome.detail if task.outcome else ""
        line = f"{task.spec.name}: {task.status}, {task.reason}, exit code {task.exit_code} {detail}"
        console.print(line, style="red", markup=False, highlight=False)
    for fault in faults[:5]:
        console.print(f"wrong output: {fault}", style="red", markup=False, highlight=False)
    if failed or faults or len(tasks) != len(pieces):
        console.print(f"The node's log is {directory / 'node.log'}", highlight=False)
        return 1
    (directory / "node.log").unlink()
    print_next(outputs)
    return 0


@contextlib.contextmanager
def running_node(data_dir: Path, log: Path, flags: Sequence[str]) -> Iterator[float]:
    """Gives the seconds until it served; stops it at the end. Raises DemoFailed with the end of its log."""
    command = [sys.executable, "-m", "node", "start", f"--data-dir={data_dir}", "--name=demo", *flags]
    began = time.monotonic()
    with log.open("wb") as log_file:
        # A group of its own: Ctrl-C is for the demo, which then stops the node.
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log_file, process_group=0)
    try:
        assert node.stdout is not None  # noqa: S101  (for mypy: it is a pipe)
        with node.stdout as stdout:
            readable, _, _ = select.select([stdout], [], [], START_TIMEOUT_S)
            if not readable or not stdout.readline():
                raise DemoFailed(f"the node did not start; the end of {log}:\n{tail(log)}")
            yield time.monotonic() - began
            if node.poll() is not None:
                raise DemoFailed(f"the node ended by itself; the end of {log}:\n{tail(log)}")
    except pilfer.PilferError as error:
        raise DemoFailed(f"{error}; the end of {log}:\n{tail(log)}") from error
    finally:
        stop(node)


def stop(node: subprocess.Popen[bytes]) -> None:
    node.terminate()
    try:
        node.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        console.print(f"[red]The node did not stop within {format_duration(STOP_TIMEOUT_S)}: killed.[/red]")
        node.kill()
        node.wait()


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def connected(data_dir: Path) -> pilfer.Client:
    return pilfer.Client(f"unix:{data_dir / 'node.sock'}")


def run_tasks(client: pilfer.Client, pieces: Sequence[Piece]) -> list[pilfer.Task]:
    """Submits all, and gives each task as it was when it had ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("tasks", total=len(pieces))
        ids = client.submit_many(piece.task for piece in pieces)
        tasks: list[pilfer.Task] = []
        for task in client.as_ended(ids, timeout_s=WORK_TIMEOUT_S):
            tasks.append(task)
            progress.update(bar, completed=len(tasks))
    return tasks


def summary(pieces: Sequence[Piece], tasks: Sequence[pilfer.Task], took_s: float, faults: int) -> Table:
    failures = sum(not task.succeeded for task in tasks)
    read_bytes = sum(piece.source.stat().st_size for piece in pieces)
    written_bytes = sum(piece.compressed.stat().st_size for piece in pieces if piece.compressed.exists())
    table = Table(show_header=False, title="Demo")
    table.add_row("tasks", str(len(tasks)))
    table.add_row("failures", str(failures))
    table.add_row("outputs checked", f"{len(pieces)}, {faults} wrong" if faults else f"{len(pieces)}, all right")
    table.add_row("time", format_duration(took_s))
    table.add_row("tasks/s", f"{len(tasks) / took_s:.0f}")
    table.add_row("compressed", f"{format_size(read_bytes)} to {format_size(written_bytes)}")
    slowest = sorted(tasks, key=wall_s, reverse=True)[:3]
    table.add_row("slowest", "\n".join(f"{task.spec.name}  {format_duration(wall_s(task))}" for task in slowest))
    return table


def wall_s(task: pilfer.Task) -> float:
    return task.usage.wall_s if task.usage else 0.0


def print_next(outputs: Path) -> None:
    node = Path(sysconfig.get_path("scripts")) / "node"
    shown = node.relative_to(Path.cwd()) if node.is_relative_to(Path.cwd()) else node
    lines = (
        f"ls {outputs}",
        f"{shown} start                       # a node of your own; leave it running",
        f"{shown} run -- uname -a             # in another terminal: a command, its output, its exit code",
        f"{shown} submit -- sleep 60          # queue one and come back later",
        f"{shown} list                        # what there is",
        f"{shown} --help",
        "make cluster                         # three nodes on this machine, to be hurt by hand (as root)",
    )
    console.print("Next, type:", *(f"  {line}" for line in lines), sep="\n", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
