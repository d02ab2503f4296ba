"""`make cluster`: a cluster of three nodes on this machine, at work, to be hurt by hand.

Each node has a network namespace with an address of its own. A small load keeps them busy; the screen shows who does
what, and what to type elsewhere to kill a node and see its tasks go on with the others. A node that was killed is
started again after a while. Ctrl-C stops everything; nothing is left. Needs root.

    python -m examples.cluster [--nodes N] [--seconds N]
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

import pilfer
from examples.cluster.machines import LOOK_EVERY_S, ClusterFailed, Machine, running_cluster, wait_voters
from examples.cluster.network import NetworkError, find_lack
from pilfer.types import NodeView

#: Tasks that are kept waiting or running, for each node.
LOAD_PER_NODE = 12
TASK_S = 1.5
#: A killed node is started again after this, so that its tasks are seen to go elsewhere first.
RESTART_AFTER_S = 15.0
#: The rate is that of so many looks.
RATE_LOOKS = 20
BAR_WIDTH = 12

console = Console(soft_wrap=True)


@dataclass(slots=True)
class Picture:
    """What one look has shown."""

    nodes: Sequence[NodeView] = ()
    queued: int = 0
    running: int = 0
    ended: int = 0
    #: Tasks that needed more than one attempt, for their node was lost.
    moved: int = 0
    rate: float = 0.0
    #: Why there is nothing to show, while no node answers.
    trouble: str = ""


class Shown(Protocol):
    """What the view needs of a machine."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def pid(self) -> int | None:
        """None while it does not run."""


@dataclass(slots=True)
class Load:
    """Keeps the cluster busy, and counts what becomes of its tasks."""

    machines: Sequence[Machine]
    open: list[str] = field(default_factory=list)
    ended: int = 0
    moved: int = 0
    _client: pilfer.Client | None = None
    _ends: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_LOOKS))

    def look(self) -> Picture:
        """Tops the load up, and shows how things stand. Through another node where the last one does not answer."""
        trouble = "all nodes are down"
        for machine in self.machines:
            if self._client is None and machine.pid is not None:
                self._client = machine.client()
            if self._client is None:
                continue
            try:
                return self._look(self._client)
            except pilfer.PilferError as error:
                trouble = str(error)
                self.close()
        return Picture(ended=self.ended, moved=self.moved, trouble=trouble)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _look(self, client: pilfer.Client) -> Picture:
        missing = LOAD_PER_NODE * len(self.machines) - len(self.open)
        if missing > 0:
            spec = pilfer.TaskSpec.of("/bin/sleep", str(TASK_S), name="demo", labels={"from": "cluster"})
            self.open += client.submit_many([spec] * missing)
        tasks = client.status(self.open)
        over = [task for task in tasks if task.status.is_terminal]
        self.open = [task.id for task in tasks if not task.status.is_terminal]
        self.ended += len(over)
        self.moved += sum(any(a.outcome and a.outcome.reason == "node_lost" for a in task.attempts) for task in over)
        self._ends.append((time.monotonic(), self.ended))
        (since, before), (now, after) = self._ends[0], self._ends[-1]
        return Picture(
            nodes=client.nodes(),
            queued=sum(task.status == "queued" for task in tasks),
            running=sum(task.status == "running" for task in tasks),
            ended=self.ended,
            moved=self.moved,
            rate=(after - before) / (now - since) if now > since else 0.0,
        )


def drawn(picture: Picture, machines: Sequence[Shown]) -> RenderableType:
    """The live view."""
    table = Table(title=None, box=None, pad_edge=False)
    for column in ("NODE", "ADDRESS", "PID", "STATE", "ROLE", "LOAD", "RUNNING"):
        table.add_column(column, justify="right" if column in ("PID", "RUNNING") else "left")
    views = {view.name: view for view in picture.nodes}
    for machine in machines:
        view = views.get(machine.name)
        state = "killed" if machine.pid is None else view.state if view else "starting"
        color = {"ready": "green", "killed": "red", "gone": "red"}.get(state, "yellow")
        filled = round(view.load * BAR_WIDTH) if view and state == "ready" else 0
        table.add_row(
            machine.name,
            machine.address,
            str(machine.pid or "-"),
            Text(state, style=color),
            view.role if view and state == "ready" else "-",
            "#" * filled + "." * (BAR_WIDTH - filled),
            str(view.running if view and state == "ready" else 0),
        )
    return Group(table, Text(), Text(summary(picture)))


def summary(picture: Picture) -> str:
    """One line of figures."""
    if picture.trouble:
        return f"no node answers ({picture.trouble}); {picture.ended} tasks done so far"
    return (
        f"queued {picture.queued}   running {picture.running}   done {picture.ended} ({picture.rate:.1f}/s)   "
        f"run again elsewhere {picture.moved}"
    )


def hints(machines: Sequence[Machine]) -> str:
    """What to type in another terminal."""
    first, last = machines[0], machines[-1]
    node = f"{sys.executable} -m node" if shutil.which("node") is None else "node"
    rows = (
        (f"{node} nodes", "who is in the cluster"),
        (f"{node} run -- sh -c 'echo $PILFER_NODE_ID'", "run something, somewhere"),
        (f"{node} drain {last.name}", "its tasks go elsewhere; back with --undo"),
        (f"kill -9 {last.pid}", f"kill node {last.name}: its tasks run elsewhere within 6 s"),
        (f"kill -STOP {last.pid}", "freeze it instead; kill -CONT brings it back, under a new id"),
    )
    return f"""
In another terminal:

    export PILFER_ADDRESS={first.socket}
{_in_columns(rows)}

Every node has a socket of its own: {first.data.parent}/NAME/node.sock, and its log beside it. Ctrl-C stops all.
"""


def _in_columns(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(command) for command, _ in rows)
    return "\n".join(f"    {command:<{width}}   {what}" for command, what in rows)


class Keeper:
    """Starts killed nodes again, after a pause."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self._dead_since: dict[str, float] = {}

    def look(self) -> None:
        for machine in self._machines:
            if machine.pid is not None:
                self._dead_since.pop(machine.name, None)
            elif time.monotonic() - self._dead_since.setdefault(machine.name, time.monotonic()) > RESTART_AFTER_S:
                machine.begin()


def show(machines: Sequence[Machine], seconds: float | None) -> Picture:
    """Until Ctrl-C, or for so many seconds. On a terminal it is drawn anew in place, elsewhere told line by line."""
    until = None if seconds is None else time.monotonic() + seconds
    load, keeper, picture = Load(machines), Keeper(machines), Picture()
    drawing = Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext()
    with drawing as live:
        try:
            while until is None or time.monotonic() < until:
                started = time.monotonic()
                keeper.look()
                picture = load.look()
                if live is not None:
                    live.update(drawn(picture, machines), refresh=True)
                else:
                    print(summary(picture), flush=True)
                time.sleep(max(0.0, LOOK_EVERY_S - (time.monotonic() - started)))
        except KeyboardInterrupt:
            pass
        finally:
            load.close()
    return picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, help="stop by itself; default: at Ctrl-C")
    options = parser.parse_args()
    if not 1 <= options.nodes <= 200:
        parser.error("--nodes: between 1 and 200")
    lack = find_lack()
    if lack is not None:
        print(f"cluster: {lack}", file=sys.stderr)
        return 1
    directory = Path(tempfile.mkdtemp(prefix="pilfer-cluster-"))
    try:
        print(f"starting {options.nodes} nodes ...", flush=True)
        with running_cluster(directory, options.nodes) as machines:
            print("waiting until enough of them vote, so that any one may be lost (about ten seconds) ...", flush=True)
            wait_voters(machines)
            console.print(hints(machines), highlight=False, markup=False)
            show(machines, options.seconds)
            print("stopping ...", flush=True)
    except KeyboardInterrupt:
        return 130
    except (ClusterFailed, NetworkError, pilfer.PilferError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
