"""The live view of `make cluster`: what it says of nodes that work, that were killed, and that do not answer."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from examples.cluster.__main__ import Picture, drawn, summary
from pilfer.types import NodeView


@dataclass(frozen=True)
class Machine:
    name: str
    pid: int | None = 4711

    @property
    def address(self) -> str:
        return f"10.77.0.{ord(self.name) - ord('a') + 1}:7400"


def view(name: str, *, state: str = "ready", load: float = 0.0, running: int = 0) -> NodeView:
    return NodeView(
        id="i", host_id="h", name=name, address="", cpu=4.0, memory_bytes=1, version="1", started_at=None,
        not_enforced=(), state=state, role="voter", load=load, running=running, reserved_cpu=0.0,
        reserved_memory_bytes=0, now=None, etcd_version="",
    )  # fmt: skip


def lines(picture: Picture, *machines: Machine) -> list[str]:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(drawn(picture, machines))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_a_working_node_shows_its_load_and_what_it_runs() -> None:
    shown = lines(Picture(nodes=[view("a", load=0.5, running=2)]), Machine("a"))
    assert shown[1] == "a 10.77.0.1:7400 4711 ready voter ######...... 2"


def test_a_killed_node_is_killed_whatever_the_others_still_believe() -> None:
    shown = lines(Picture(nodes=[view("b", load=1.0, running=4)]), Machine("b", pid=None))
    assert shown[1] == "b 10.77.0.2:7400 - killed - ............ 0"


def test_a_node_that_is_not_listed_yet_is_starting() -> None:
    assert lines(Picture(), Machine("c"))[1].startswith("c 10.77.0.3:7400 4711 starting")


def test_figures_or_why_there_are_none() -> None:
    assert summary(Picture(queued=3, running=2, ended=7, rate=1.25, moved=1)) == (
        "queued 3   running 2   done 7 (1.2/s)   run again elsewhere 1"
    )
    assert summary(Picture(ended=7, trouble="all nodes are down")) == (
        "no node answers (all nodes are down); 7 tasks done so far"
    )
